"""A series: the checkpoints of one model in the order of its tokens, whoever trained it.

`Import` says where those of others lie and in which order; `open_series` reads one, ours or theirs; the rest tells
whether the steps can be what they are called.
"""

import contextlib
import dataclasses
import functools
import logging
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from etils import epath
from tokenizers import Tokenizer

from jaxsat import evaluate, interop, lease, model
from jaxsat.checkpoints import Store, cut_head, find_run, finite
from jaxsat.config import DataConfig, Imported, InputError, ModelConfig, Run, validate
from jaxsat.corpus import tokenizer as bpe
from jaxsat.directory import Directory
from jaxsat.measure import table
from jaxsat.measure.items import item_rows, measure_name
from jaxsat.measure.measure import values

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Import:
    """A series that was trained elsewhere, under a name of yours.

    source: a folder of safetensors and config.json, a folder of such folders with the step in each name, several of
    either, or `hf:ORG/NAME@REVISION` of the hub, once for each step. steps: of those the ones wanted, () all; where no
    name tells, those of the sources in their order. tokens_per_step: 1 where it is not known. data: the text on which
    its loss is measured, by its own tokenizer; none by default.
    """

    name: str
    source: str | Sequence[str]
    steps: tuple[int, ...] = ()
    tokens_per_step: int = 1
    data: DataConfig = DataConfig(corpus=())

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not re.fullmatch(r"[\w.-]+", self.name):
            raise InputError(f"import {self.name!r}: a name is letters, digits, dots and dashes")
        if self.tokens_per_step < 1:
            raise InputError(f"import {self.name!r}: tokens_per_step = {self.tokens_per_step}: must be at least 1")
        if len(set(self.steps)) < len(self.steps):
            raise InputError(f"import {self.name!r}: step {self.steps[_again(self.steps)]} is given twice")
        validate(Run(data=self.data, imported=Imported(self.name)))

    @property
    def id(self) -> str:
        """Of the run that it becomes in a directory."""
        return Run(imported=Imported(self.name)).id

    def found(self) -> dict[int, str]:
        """Step -> where it lies, ascending. Raises InputError for what is missing or cannot be told apart."""
        sources = [self.source] if isinstance(self.source, str) else list(self.source)
        places = [place for source in sources for place in _models(source)]
        named = [interop.step_of(place) for place in places]
        if None in named or len(set(named)) < len(named):
            if len(places) == 1:
                named = [self.steps[0] if self.steps else named[0] or 0]
            elif len(self.steps) == len(places):
                named = list(self.steps)
            else:
                unclear = places[named.index(None)] if None in named else places[_again(named)]
                raise InputError(
                    f"{unclear}: which step is it? Have it in the folder's name (step1000), or give --step"
                )
        found = dict(sorted(zip(named, places)))
        if missing := sorted(set(self.steps) - found.keys()):
            have = ", ".join(map(str, found))
            raise InputError(f"{self.name}: no step {missing[0]} in {', '.join(sources)}, which has {have}")
        return {step: place for step, place in found.items() if not self.steps or step in self.steps}

    def run(self, config: ModelConfig, steps: Sequence[int]) -> Run:
        """Raises InputError for steps that a table cannot hold."""
        if (last := max(steps)) * self.tokens_per_step >= 2**63:
            raise InputError(f"{self.name}: step {last} has {last * self.tokens_per_step} tokens, below 2^63 can be")
        return Run(config, data=self.data, imported=Imported(self.name, tuple(sorted(steps)), self.tokens_per_step))


def _models(source: str) -> list[str]:
    """The folders of models that a source is, or holds."""
    if source.startswith(interop.HUB):
        steps = [] if "@" in source else [r for r in interop.revisions(source) if interop.step_of(r) is not None]
        return [f"{source}@{revision}" for revision in steps] or [source]
    folder = Path(source)
    if not folder.is_dir():
        raise InputError(f"no folder {source}: give one with config.json and *.safetensors, or hf:ORG/NAME@REVISION")
    inside = sorted(str(p) for p in folder.iterdir() if (p / "config.json").is_file())
    return inside if inside and not (folder / "config.json").exists() else [source]


@contextlib.contextmanager
def opened(place: str) -> Iterator[interop.Source]:
    """A model of `Import.found`; what had to be fetched for it is gone afterwards. Raises InputError."""
    with interop.local(place) as folder:
        yield interop.Source(folder)


@dataclass(frozen=True)
class Series:
    """What can be asked of one model. `params(step)`: float32, on one device of this host, a head cut to its rank."""

    name: str  # a run's id, an import's name, or the folder's
    id: str  # of the run
    config: ModelConfig
    steps: tuple[int, ...]
    tokens_per_step: int
    params: Callable[[int], model.Params]
    tokenizer_file: epath.Path | None

    @property
    def tokenizer(self) -> Tokenizer:
        """Raises InputError where it has none."""
        if self.tokenizer_file is None or not self.tokenizer_file.exists():
            raise InputError(
                f"{self.name} has no tokenizer.json: put the one it was trained with beside its config.json"
            )
        return bpe.load(str(self.tokenizer_file), self.config.vocab_size, ends=False)


def open_series(where: str, run: str | None = None, steps: Sequence[int] = ()) -> list[Series]:
    """The series of an output directory (one of its runs, an import by its name too), or of a source of `Import`;
    `steps`: of them these. Raises InputError."""
    out = epath.Path(where)
    if where.startswith(interop.HUB) or not ((out / "sweep.json").exists() or (out / "checkpoints").exists()):
        if run is not None:
            raise InputError(f"{where} is no output directory: --run is of one")
        return [_theirs(where, tuple(steps))]
    runs = Directory.open(where).runs if (out / "sweep.json").exists() else {}  # none: what `train_pack` writes
    found = [
        _ours(out, id) for id in ([run] if run else runs or sorted(path.name for path in (out / "runs").iterdir()))
    ]
    dropped = [s.name for s in found if not s.steps and s.name != s.id]
    if not run:  # what can be asked: not what is still to come, was dropped, or is no language model
        found = [s for s in found if s.steps and (s.id not in runs or not runs[s.id].task or s.tokenizer_file.exists())]
    if not found or not found[0].steps:
        if dropped:
            only = f"has no weights of {dropped[0]}, only what was measured of it"
            raise InputError(f"{out} {only}: import it without --measure")
        raise InputError(f"{run or where} has no checkpoints of a language model: train it, or import it, first")
    for series in found:
        if missing := sorted(set(steps) - set(series.steps)):
            raise InputError(f"run {series.name} has no step {missing[0]}, only {', '.join(map(str, series.steps))}")
    return [dataclasses.replace(series, steps=tuple(sorted(steps)) or series.steps) for series in found]


def scored(
    where: str, series: Series, step: int, items: Sequence[evaluate.Items], cut: bool = False
) -> list[evaluate.Scores]:
    """The scores of each set of items. Where `where` is an output directory they become measurements of it too."""
    params, found = series.params(step), []
    with contextlib.ExitStack() as stack:
        out = epath.Path(where)
        writer = None
        if (out / "sweep.json").exists():
            stack.enter_context(lease.held(out, "items", waiting=functools.cache(logger.warning)))  # each once
            writer = stack.enter_context(table.Writer(out / "measurements", "items"))
        for each in items:
            found.append(evaluate.score(series.config, params, series.tokenizer, each, cut=cut))
            if writer:
                rows = values(item_rows(found[-1]), each.name)
                made = series.id, step, step * series.tokens_per_step, measure_name(each, cut), 1, rows
                writer.add(table.rows(*made))
    return found


def name_of(source: str) -> str:
    """For a series: of a folder, or of a model of the hub; where that is a step, of what it is a step of."""
    if source.startswith(interop.HUB):
        source = source.removeprefix(interop.HUB).partition("@")[0]
    parts = [part for part in source.split("/") if part not in ("", ".")]
    named = [part for part in parts if interop.step_of(part) is None and part != ".."]
    return re.sub(r"[^\w.-]", "-", named[-1]) if named else "imported"


def _ours(out: epath.Path, id: str) -> Series:
    run, pack = find_run(out, id)

    def params(step: int) -> model.Params:
        with Store(out / "checkpoints" / pack.id, alone=True) as store:
            return _finite(cut_head(run.model, store.params_of(run.id, step)), f"run {id}", step)

    folder, name = out / "checkpoints" / pack.id, run.imported.name or run.id
    steps: tuple[int, ...] = ()
    if not run.imported.name or folder.exists() and any(folder.iterdir()):
        with Store(folder, alone=True) as store:
            steps = tuple(store.steps)
    return Series(name, run.id, run.model, steps, run.tokens_per_step, params, out / "runs" / run.id / "tokenizer.json")


def _theirs(source: str, steps: tuple[int, ...]) -> Series:
    found = Import(name_of(source), source, steps).found()

    def params(step: int) -> model.Params:
        with opened(found[step]) as model_of_step:
            return _finite(model_of_step.params(), source, step)

    with opened(next(iter(found.values()))) as first:
        config, tokenizer = first.config, first.tokenizer
    return Series(name_of(source), "", config, tuple(found), 1, params, tokenizer)


def _finite(params: model.Params, who: str, step: int) -> model.Params:
    if not finite(params):
        raise InputError(f"{who} has parameters that are no numbers at step {step}, as when it diverged: ask another")
    return params


def _again(found: Sequence[object]) -> int:
    return next(i for i, item in enumerate(found) if item in found[:i])


def check_hashes(name: str, hashes: Mapping[int, str]) -> list[str]:
    """Of the content hashes of a series, what to say. Raises InputError for two steps of equal weights: one of them is
    not what it is called (86 of 154 public steps of pythia-2.8b held weights of the end). Public series begin with
    several: the first steps may be equal, from 0 on, and are named."""
    first: dict[str, int] = {}
    steps = sorted(hashes)
    for i, step in enumerate(steps):
        was = first.setdefault(hashes[step], step)
        if was != step and (steps[0] != 0 or any(hashes[s] != hashes[step] for s in steps[:i])):
            raise InputError(
                f"{name}: steps {was} and {step} have equal weights: one of them is another's; leave it out (--step)"
            )
    equal = [step for step in steps if steps[0] == 0 and hashes[step] == hashes[0]]
    return [f"{name}: steps {', '.join(map(str, equal))} have equal weights"] if len(equal) > 1 else []


def missing_steps(steps: Sequence[int]) -> list[int]:
    """Steps that a series of regular distance leaves out: the most frequent distance, of at least three."""
    steps = sorted(steps)
    distances, counts = np.unique(np.diff(steps), return_counts=True)
    if not len(counts) or counts.max() < 3:
        return []
    every = int(distances[counts.argmax()])
    expected = range(next(a for a, b in zip(steps, steps[1:]) if b - a == every), steps[-1] + 1, every)
    return sorted(set(expected) - set(steps))
