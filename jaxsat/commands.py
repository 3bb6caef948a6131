"""What the command line takes: a class a command, a field an option; their docstrings are its help.

Imported at every start, so neither JAX nor pandas is.
"""

from dataclasses import dataclass
from typing import Annotated, Literal

import tyro

from jaxsat.config import Layout
from jaxsat.fit_options import Column, MaybeColumn, Repeatable
from jaxsat.fit_options import Options as TableOptions

Positional = tyro.conf.Positional


@dataclass(frozen=True)
class What:
    name: Annotated[Positional[str], tyro.conf.arg(metavar="NAME|FILE")]
    """An experiment that comes with jaxsat, or the path of your own Python file."""
    scale: Literal["laptop", "workstation", "pod"] = "laptop"
    """laptop: minutes on 2 cores; workstation: about an hour on one GPU; pod: the paper's own sizes."""


@dataclass(frozen=True)
class Where(What):
    out: Annotated[str | None, tyro.conf.arg(metavar="DIR", help_behavior_hint="(default: runs/NAME)")] = None
    """Output directory. The default ends in -SCALE unless that is laptop."""


@dataclass(frozen=True)
class Compute(Where):
    layout: Layout = Layout()
    share: Annotated[str | None, tyro.conf.arg(metavar="I/N", help_behavior_hint="(default: all)")] = None
    """Only the I-th of N shares of the work, for N jobs with one --out; the report is made after them, without it."""
    only: Annotated[
        Repeatable, tyro.conf.arg(metavar="NAME", help_behavior_hint="(default: what is not optional)")
    ] = ()
    """One part, measure, computed or claim of the experiment, and what it needs. Repeatable."""
    dry_run: bool = False
    """Say what would be trained, measured and computed, and stop."""


@dataclass(frozen=True)
class Reproduce(Compute):
    """Train, measure, fit and report. The same command again continues, or finishes at once."""

    tensorboard: bool = False
    """Also write TensorBoard files under runs/<id> (needs the extra: pip install 'jaxsat[tensorboard]')."""


@dataclass(frozen=True)
class Train(Reproduce):
    """Train the runs of a sweep, from their newest checkpoints."""


@dataclass(frozen=True)
class Measure(Compute):
    """Measure every checkpoint that a measure has not seen yet, and what is computed without a model."""


@dataclass(frozen=True)
class Fit(Where):
    """Fit scaling laws and print their constants with intervals: those of an experiment to its measurements, or one
    form to any TABLE (.csv, .csv.gz, .parquet or .jsonl)."""

    name: Annotated[Positional[str], tyro.conf.arg(metavar="NAME|FILE|TABLE")]
    """An experiment that comes with jaxsat, the path of your own Python file, or that of a table."""
    table: Annotated[TableOptions, tyro.conf.arg(name="")] = TableOptions()


@dataclass(frozen=True, kw_only=True)
class Detect:
    """Which runs get worse late in training: of any TABLE of losses, perplexities or accuracies along it, a verdict a
    run from its own noise (docs/verdicts.md)."""

    table: Annotated[Positional[str], tyro.conf.arg(metavar="TABLE")]
    """.csv, .csv.gz, .tsv, .parquet or .jsonl: a row a checkpoint."""
    run: MaybeColumn = None
    """What tells the runs apart; without it, all rows are one run."""
    step: Column = "step"
    """Steps or tokens of training."""
    value: Column
    """What is looked at. Of several rows of a run and step the mean is taken."""
    higher_is_better: bool = False
    """Of accuracies."""
    where: Annotated[Repeatable, tyro.conf.arg(metavar="RULE")] = ()
    """Keep only the rows where "COLUMN < VALUE" (or <=, >, >=, ==, !=). Repeatable."""
    json: bool = False
    """JSON instead of a table."""


@dataclass(frozen=True)
class Ngrams:
    """How many dimensions a text needs: the spectrum of what follows its most frequent contexts (docs/ngrams.md)."""

    corpus: Annotated[Positional[tuple[str, ...]], tyro.conf.arg(metavar="CORPUS|FILE...")]
    """Names from `jaxsat corpus list`, TFDS names, or .txt, .jsonl or .tsv files."""
    n: int = 5
    """Tokens: n - 1 of context, and the next one."""
    contexts: Annotated[str, tyro.conf.arg(metavar="C,C,...")] = "1000,10000,100000"
    """How many of the most frequent contexts. The rank grows with them."""
    tokenizer: Annotated[str, tyro.conf.arg(metavar="bpe|words|FILE")] = "bpe"
    """bpe or words, trained on the text, or a tokenizer.json."""
    vocab_size: int = 8192
    """Of a tokenizer that is trained."""
    values: int = 0
    """So many of the leading singular values too, in --json."""
    json: bool = False
    """JSON instead of a table."""


@dataclass(frozen=True)
class Report(Where):
    """Rebuild the report from the measurements. Needs neither text nor network."""

    to: Annotated[str | None, tyro.conf.arg(metavar="FOLDER", help_behavior_hint="(default: in DIR)")] = None
    """Where the report is put, if not in the output directory: of a study that is not yours to write to."""


@dataclass(frozen=True)
class Check:
    """Read everything in an output directory and name what is damaged. Exit code 1: something is."""

    out: Annotated[Positional[str], tyro.conf.arg(metavar="DIR")]


@dataclass(frozen=True, kw_only=True)
class Plan(What):
    """Compile a sweep for TPUs that are not here: what fits, memory, FLOPs, chip-hours. Exit code 1: it does not fit.

    Needs the extra: pip install 'jaxsat[tpu]'. A shape takes minutes the first time."""

    topology: Annotated[str, tyro.conf.arg(metavar="CHIP:SHAPE")]
    """One slice, such as v5e:16x16. Chips: v4, v5e, v5p, v6e."""
    slices: int = 1
    """Slices, between which the network is slow."""
    layout: Layout = Layout()
    mfu: float = 0.4
    """The part of the chips' peak FLOP/s that is taken to be used, for the chip-hours."""
    json: bool = False
    """JSON instead of a table."""


@dataclass(frozen=True)
class Index:
    """One page over several studies: each claim with its verdict, counts a paper, and links to the reports."""

    dirs: Annotated[Positional[tuple[str, ...]], tyro.conf.arg(metavar="DIR...")]
    """Output directories of studies, such as runs/*; or single reports."""
    to: Annotated[str, tyro.conf.arg(metavar="FILE")] = "index.html"
    """The page. Its links lead to the reports from where it lies."""


@dataclass(frozen=True)
class Show:
    """A table of the runs in an output directory: step, loss, state."""

    out: Annotated[Positional[str], tyro.conf.arg(metavar="DIR")]
    """An output directory, such as runs/saturation."""


@dataclass(frozen=True)
class Import:
    """Bring models that others have trained into an output directory: GPT-NeoX (Pythia), GPT-2, OPT, Llama, Mistral,
    Gemma, from folders of safetensors or the hub (pip install 'jaxsat[hub]'). Several steps of one are a series."""

    src: Annotated[Positional[tuple[str, ...]], tyro.conf.arg(metavar="SRC...")]
    """A folder with config.json, a folder of such folders with steps in their names, or hf:ORG/NAME@REVISION."""
    to: Annotated[str, tyro.conf.arg(metavar="DIR")]
    """An output directory, new or not."""
    name: str | None = None
    """Of the series; by default that of the (first) folder."""
    step: tuple[int, ...] = ()
    """These steps alone; or, where no folder's name tells, those of the sources in their order."""
    tokens_per_step: int = 1
    """Tokens that a step was trained on (Pythia: 2097152). By default tokens count steps."""
    corpus: tuple[str, ...] = ()
    """Texts on which the loss is measured."""
    measure: tuple[str, ...] = ()
    """Measures by name (loss, head, ...): each step is fetched, measured and dropped, so that a series may be larger
    than the disk. Also the path of an experiment, for all of its measures."""
    layout: Layout = Layout()


@dataclass(frozen=True)
class Export:
    """Write a model as a folder that transformers loads: safetensors, config.json, tokenizer.json."""

    out: Annotated[Positional[str], tyro.conf.arg(metavar="DIR")]
    """An output directory."""
    run: Annotated[Positional[str], tyro.conf.arg(metavar="RUN")]
    """A run of it, see `jaxsat show`, or the name of an import."""
    to: Annotated[str, tyro.conf.arg(metavar="FOLDER")]
    """A folder, new or empty."""
    step: Annotated[int | None, tyro.conf.arg(help_behavior_hint="(default: the last)")] = None


@dataclass(frozen=True)
class Ask:
    where: Annotated[Positional[str], tyro.conf.arg(metavar="DIR|SRC")]
    """An output directory, or a model as `jaxsat import` takes it."""
    run: Annotated[str | None, tyro.conf.arg(help_behavior_hint="(default: all)")] = None
    """One run of the directory, or an import by its name."""


@dataclass(frozen=True, kw_only=True)
class Evaluate(Ask):
    """Score items: minimal pairs, choices, clozes, exact match. In a directory the scores are kept as measurements."""

    items: Annotated[tuple[str, ...], tyro.conf.arg(metavar="FILE...")]
    """.jsonl files, a line an item: {"good", "bad"}, {"context", "options", "answer"}, {"context", "last"} or
    {"source", "target"}, each with an optional id and group."""
    step: Annotated[tuple[int, ...], tyro.conf.arg(help_behavior_hint="(default: the last)")] = ()
    every: bool = False
    """Every step of the series."""
    cut: bool = False
    """Cut the beginning of a context that is longer than the model's, rather than refuse it."""
    json: bool = False
    """JSON instead of a table."""


@dataclass(frozen=True, kw_only=True)
class Generate(Ask):
    """Write on from a prompt."""

    prompt: Annotated[tuple[str, ...], tyro.conf.arg(metavar="TEXT...")]
    step: Annotated[int | None, tyro.conf.arg(help_behavior_hint="(default: the last)")] = None
    tokens: int = 64
    """At most."""
    temperature: float | None = None
    """Draw tokens at this temperature; by default the most likely one is taken."""
    top_k: int | None = None
    """Draw from the k most likely."""
    top_p: float | None = None
    """Draw from the fewest that have this probability together."""
    seed: int = 0


@dataclass(frozen=True)
class CorpusList:
    """The corpora that come with jaxsat."""


@dataclass(frozen=True)
class CorpusPrepare:
    """Build a corpus now, so that training need not."""

    name: Annotated[Positional[str], tyro.conf.arg(metavar="NAME|FILE")]
    """A name from `jaxsat corpus list`, a TFDS name such as c4/en, or the path of a .txt, .jsonl or .tsv file."""


Corpus = Annotated[CorpusList, tyro.conf.subcommand("list")] | Annotated[CorpusPrepare, tyro.conf.subcommand("prepare")]
Command = (
    Annotated[Reproduce, tyro.conf.subcommand("reproduce")]
    | Annotated[Train, tyro.conf.subcommand("train")]
    | Annotated[Measure, tyro.conf.subcommand("measure")]
    | Annotated[Fit, tyro.conf.subcommand("fit")]
    | Annotated[Detect, tyro.conf.subcommand("detect")]
    | Annotated[Ngrams, tyro.conf.subcommand("ngrams")]
    | Annotated[Report, tyro.conf.subcommand("report")]
    | Annotated[Plan, tyro.conf.subcommand("plan")]
    | Annotated[Index, tyro.conf.subcommand("index")]
    | Annotated[Show, tyro.conf.subcommand("show")]
    | Annotated[Check, tyro.conf.subcommand("check")]
    | Annotated[Import, tyro.conf.subcommand("import")]
    | Annotated[Export, tyro.conf.subcommand("export")]
    | Annotated[Evaluate, tyro.conf.subcommand("evaluate")]
    | Annotated[Generate, tyro.conf.subcommand("generate")]
    | Annotated[Corpus, tyro.conf.subcommand("corpus", description="List or prepare corpora.")]
)
