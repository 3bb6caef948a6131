"""What a run is: frozen dataclasses, validated in words, that survive a round trip through JSON.

A `Run` is everything needed to train one model once. Two equal runs train to the same numbers; a run's
`id` is a hash of its configuration, so a directory named by it can never hold something else.
"""

import dataclasses
import difflib
import functools
import hashlib
import json
import math
import numbers
import types
import typing
from dataclasses import dataclass, field
from typing import Any, Literal

LONGEST = 480  # characters of a message
MOST_CHECKPOINTS = 10**6  # of a run
MIXED = 1000  # rows in a row of which each corpus of a mixture has its share exactly, rounded to whole rows


class InputError(Exception):
    """The user's input is wrong. The message says what, where, and what would be right; the CLI exits with 2.

    One line whatever it quotes: what cannot be printed is escaped, and of what is too long the middle is left out.
    """

    def __init__(self, message: str):
        line = message if message.isprintable() else "".join(map(_printable, message))
        super().__init__(line if len(line) <= LONGEST else f"{line[: LONGEST - 155]} ... {line[-150:]}")


def _printable(char: str) -> str:
    return char if char.isprintable() else char.encode("unicode_escape").decode()


class Preempted(Exception):
    """SIGTERM arrived; the state is saved, and the same command continues."""


# What other libraries call our keys.
SYNONYMS = {"layers": "depth", "n_layers": "depth", "num_layers": "depth", "n_layer": "depth", "d_model": "width",
            "hidden_size": "width", "n_embd": "width", "n_heads": "heads", "num_heads": "heads", "d_ff": "ffn_width",
            "head_dim": "head_width",
            "context_length": "context", "seq_len": "context", "vocab": "vocab_size", "rank": "head_rank",
            "warmup": "warmup_steps", "max_lr": "learning_rate", "dataset": "corpus"}  # fmt: skip


def unknown(kind: str, name: str, known: typing.Iterable[str]) -> InputError:
    """The error for a name that does not exist: names it, suggests the nearest, or lists what there is."""
    near = nearest(name, known := sorted(known))
    hint = f"did you mean {near!r}?" if near else f"known: {', '.join(known)}"
    return InputError(f"unknown {kind} {name!r}; {hint}")


def nearest(name: str, known: typing.Iterable[str]) -> str | None:
    """Of `known`: another library's word for it, then what it abbreviates (lr), then the most alike, or None."""
    known = sorted(known)
    section, _, last = name.rpartition(".")
    words = {key: key.rpartition(".")[2] for key in known}
    near = [key for key in known if words[key] == SYNONYMS.get(last)]
    near += [key for key in known if "_" in words[key] and last == "".join(word[0] for word in words[key].split("_"))]
    near.sort(key=lambda key: key.rpartition(".")[0] != section)
    near += difflib.get_close_matches(name, known, n=1)
    return near[0] if near else None


@dataclass(frozen=True)
class ModelConfig:
    """A decoder-only transformer. Defaults are a small Llama-like model; see `jaxsat.model.families`."""

    depth: int = 2  # layers
    width: int = 64  # d: the residual stream
    heads: int = 4
    kv_heads: int | None = None  # grouped-query attention; None: as many as heads
    head_width: int | None = None  # dimensions of an attention head; None: width / heads
    ffn_width: int | None = None  # None: 4 x width
    context: int = 64  # tokens a row
    vocab_size: int = 1024  # V: rows of the embedding, columns of the head
    head_rank: int | None = None  # r: logits = (x A) B with A: d x r, B: r x V; None: one full matrix
    tied_head: bool = False  # the head is the embedding's transpose
    head: Literal["linear", "mixture", "nonlinear"] = "linear"  # mixture of softmaxes; gelu(x A) B; see `model.heads`
    head_softmaxes: int = 4  # of a mixture
    norm: Literal["rms", "layer", "rms_unit_offset"] = "rms"  # the last with a gain of 1 + its parameter, as in Gemma
    norm_eps: float = 1e-5
    # gelu: the exact erf form; geglu: gelu_tanh of the gate
    activation: Literal["swiglu", "geglu", "gelu", "gelu_tanh", "relu"] = "gelu"
    positions: Literal["rotary", "learned"] = "rotary"
    rotary_fraction: float = 1.0  # part of each attention head's dimensions that is rotated
    rotary_base: float = 10_000.0
    scaled_embedding: bool = False  # times sqrt(width), as in Gemma
    parallel_residual: bool = False  # x + attention(norm1 x) + ffn(norm2 x), as in GPT-NeoX
    bias: bool = False  # biases in every linear layer but the head
    scan_layers: bool = False  # True: one compiled layer for any depth; False: unrolled, ~20 % faster on CPU at L=2
    compute_dtype: Literal["float32", "bfloat16"] = "float32"  # parameters are always float32

    @property
    def head_dim(self) -> int:
        return self.head_width or self.width // self.heads

    @property
    def gated(self) -> bool:
        return self.activation in ("swiglu", "geglu")

    @property
    def rank(self) -> int:
        """The largest rank that the head's d x V matrix can have; of a nonlinear head the width of its bottleneck."""
        if self.head == "nonlinear" and self.head_rank:
            return self.head_rank
        return min(self.head_rank or self.width, self.width, self.vocab_size)


@dataclass(frozen=True)
class TrainConfig:
    """AdamW or Muon with warm-up, then `cosine` or `linear` (constant, then linear over `decay_fraction`) decay."""

    steps: int = 1500
    batch_size: int = 16  # rows a step, over all devices
    learning_rate: float = 6e-3  # peak
    warmup_steps: int | None = None  # None: 30, or a tenth of the steps where that is less
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    decay_fraction: float = 0.2  # of the steps; linear only
    final_lr: float = 0.1  # of the peak, at the last step
    optimizer: Literal["adamw", "muon"] = "adamw"  # muon: of the blocks' matrices; AdamW of all else
    weight_decay: float = 0.1  # on matrices only
    init_scale: float = 1.0  # of every initial matrix, times its usual standard deviation
    beta1: float = 0.9
    beta2: float = 0.95
    eps: float = 1e-8
    clip_norm: float = 1.0  # of the gradient's norm, all parameters together; 0: no clipping
    checkpoint_every: int = 250  # steps; below it at 0 and at the powers of two

    @property
    def warmup(self) -> int:
        return min(30, self.steps // 10) if self.warmup_steps is None else self.warmup_steps


@dataclass(frozen=True)
class DataConfig:
    corpus: tuple[str, ...] = ("bible_web", "bible_basic")  # names, TFDS names, or paths of .txt, .jsonl, .tsv files
    # "bpe": trained on the training split to model.vocab_size; "words": its words, as white space parts them; else a
    # tokenizer.json
    tokenizer: str = "bpe"
    heldout_fraction: float = 0.02  # of the documents (ids); at least 50 where there are 500
    heldout_tokens: int = 50_000  # the fixed slice on which the loss is measured: rows spread over all held-out text
    heldout: tuple[str, ...] = ()  # texts to hold out instead of a part of `corpus`
    weights: tuple[float, ...] = ()  # shares of the rows, one a corpus; (): all are one text, each row once an epoch


@dataclass(frozen=True)
class Start:
    """Where the parameters of a run come from: from its seed, or a checkpoint of another run; see `Run.branch`."""

    run: str | None = None  # id of the other, or the name of an import; None: drawn from the seed
    step: int | None = None  # of its checkpoint
    kept: tuple[Literal["optimizer", "schedule", "data"], ...] = ()  # of the other besides; the rest begins afresh


@dataclass(frozen=True)
class Imported:
    """Whose series this is, if it was trained elsewhere."""

    name: str | None = None
    steps: tuple[int, ...] = ()  # of its checkpoints, ascending
    tokens_per_step: int = 1  # 1: not known, and tokens count steps


@dataclass(frozen=True)
class Run:
    """One model trained once."""

    model: ModelConfig = field(default_factory=ModelConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    data: DataConfig = field(default_factory=DataConfig)
    seed: int = 0  # of the initial parameters
    data_seed: int | None = None  # of the data order; None: seed
    task: str = ""  # name of one of the experiment's TASKS; "": a language model
    start: Start = field(default_factory=Start)
    imported: Imported = field(default_factory=Imported)
    allow_divergence: bool = False  # it may diverge without its study being called failed
    keep_optimizer: bool = False  # at all checkpoints, not the newest two alone: for runs that will start from there

    @property
    def order_seed(self) -> int:
        return self.seed if self.data_seed is None else self.data_seed

    @functools.cached_property
    def id(self) -> str:
        """A hash of what differs from the defaults, so that a field added later orphans no directory; of an imported
        series a hash of its name, so that it can grow."""
        defaults = flatten(Run())
        differing = {key: value for key, value in flatten(override(self, {})).items() if value != defaults[key]}
        if self.imported.name:
            differing = {"imported.name": self.imported.name}
        return hashlib.sha256(_canonical(differing).encode()).hexdigest()[:12]

    @property
    def tokens_per_step(self) -> int:
        if self.imported.name:
            return self.imported.tokens_per_step
        return self.train.batch_size * self.model.context

    @property
    def first_step(self) -> int:
        """At which training begins: that of the checkpoint it starts from, where it keeps the schedule."""
        return (self.start.step or 0) if "schedule" in self.start.kept else 0

    @property
    def batch_offset(self) -> int:
        """Its update from step s takes batch s + this."""
        return ((self.start.step or 0) if "data" in self.start.kept else 0) - self.first_step

    @property
    def last_step(self) -> int:
        return self.imported.steps[-1] if self.imported.name else self.train.steps

    @property
    def checkpoint_steps(self) -> tuple[int, ...]:
        if self.imported.name:
            return self.imported.steps
        first = self.first_step
        return (first, *(step for step in checkpoint_steps(self.train) if step > first))

    def branch(self, step: int, values: dict[str, Any], kept: typing.Iterable[str] = ()) -> "Run":
        """A run that starts from the checkpoint of this one at `step`, with some dotted keys changed. Of it are `kept`,
        besides the parameters: "optimizer", its moments; "schedule", its step, so that training goes on to
        `train.steps`; "data", its place in the batches. What is not begins afresh."""
        start = {"start.run": self.id, "start.step": step, "start.kept": tuple(kept)}
        cleared = {f"imported.{f.name}": f.default for f in dataclasses.fields(Imported)}
        return override(self, cleared | start | values)


@dataclass(frozen=True)
class Layout:
    """How a pack lies over the devices. It changes no number, so it is no part of a run; what is None is chosen."""

    pack: int | None = None
    """Devices over which the runs of a pack are spread. They do not talk to each other."""
    data: int | None = None
    """Devices over which the rows of a batch are split, and with them parameters and optimizer (FSDP)."""
    model: int = 1
    """Devices over which attention heads, feed-forward layers and the vocabulary are split."""
    remat: Literal["none", "dots", "full"] | None = None
    """What the backward pass computes again to save memory: nothing, all but products with weights, every layer."""
    runs: int | None = None
    """Runs that one program trains, at most. Of a study that has begun it changes nothing."""


def dumps(config: Any) -> str:
    """Canonical JSON of a configuration: equal configurations give equal strings (1 and 1.0 are one learning rate)."""
    return _canonical(dataclasses.asdict(override(config, {})))


def flatten(config: Any, prefix: str = "") -> dict[str, Any]:
    """Dotted keys to values: {"model.width": 64, ...}."""
    out: dict[str, Any] = {}
    for f in dataclasses.fields(config):
        value, key = getattr(config, f.name), prefix + f.name
        out.update(flatten(value, key + ".") if dataclasses.is_dataclass(value) else {key: value})
    return out


def override(config: Any, values: dict[str, Any]) -> Any:
    """`config` with dotted keys replaced. Raises InputError on an unknown key or a value of the wrong type."""
    hints = _dotted_types(type(config))
    for key in values:
        if key not in hints:
            raise unknown("configuration key", key, hints)
    merged = flatten(config) | values
    return _unflatten(type(config), {key: _typed(key, merged[key], hint) for key, hint in hints.items()})


def from_dict(cls: type, data: dict[str, Any], where: str = "") -> Any:
    """The inverse of `dataclasses.asdict`, with unknown keys and wrong types named; missing keys take defaults."""
    if not isinstance(data, dict):
        raise InputError(f"{where or cls.__name__} must be an object, not {data!r}")
    try:
        return override(cls(), _dotted(data))
    except InputError as e:
        raise InputError(f"{where}: {e}" if where else str(e)) from None


def validate(run: Run) -> Run:
    """Checks what the types cannot. Raises InputError with the key, the value, and what would be right."""
    m, t, d = run.model, run.train, run.data
    for key, value in flatten(run).items():
        least = 0 if key in ("seed", "data_seed", "train.warmup_steps", "start.step") else 1
        if isinstance(value, int) and not isinstance(value, bool) and value < least:
            raise InputError(f"{key} = {value}: must be at least {least}")
        if isinstance(value, int) and value >= 2**31 and key.partition(".")[0] in ("model", "train"):
            raise InputError(f"{key} = {value}: must be below 2^31")
        if isinstance(value, float) and not 0 <= value < math.inf:
            raise InputError(f"{key} = {value}: must be a finite number, at least 0")
    for key, seed in {"seed": run.seed, "data_seed": run.order_seed}.items():
        if seed >= 2**32:
            raise InputError(f"{key} = {seed}: must be below 2^32")
    if m.width % m.heads and not m.head_width:
        divisors = {d for i in range(1, math.isqrt(m.width) + 1) if m.width % i == 0 for d in (i, m.width // i)}
        fewer = max(d for d in divisors if d < m.heads)
        raise InputError(
            f"model.width = {m.width} is not divisible by model.heads = {m.heads}: try model.heads = {fewer}"
        )
    if m.kv_heads and m.heads % m.kv_heads:
        raise InputError(f"model.heads = {m.heads} is not divisible by model.kv_heads = {m.kv_heads}")
    if m.head == "nonlinear" and (m.head_rank is None or m.tied_head):
        raise InputError(
            f"model.head = 'nonlinear' with model.head_rank = {m.head_rank}, model.tied_head = {m.tied_head}: it needs "
            "a head_rank, the width of its bottleneck, and matrices of its own"
        )
    if m.head != "mixture" and m.head_softmaxes != ModelConfig().head_softmaxes:
        raise InputError(
            f"model.head_softmaxes = {m.head_softmaxes} with model.head = {m.head!r}: only a 'mixture' has several"
        )
    if m.head_rank and m.head_rank > m.width and m.head != "nonlinear":
        raise InputError(
            f"model.head_rank = {m.head_rank} is above model.width = {m.width}: a head of width d has rank d at most"
        )
    if m.head_rank and m.tied_head:
        raise InputError(
            f"model.head_rank = {m.head_rank} with model.tied_head: a tied head is the embedding and cannot be factored"
        )
    if not 0 < m.rotary_fraction <= 1 or (m.positions == "rotary" and int(m.head_dim * m.rotary_fraction) < 2):
        raise InputError(
            f"model.rotary_fraction = {m.rotary_fraction} of {m.head_dim} dimensions a head: needs at least 2"
        )
    if not 0 < d.heldout_fraction < 1:
        raise InputError(f"data.heldout_fraction = {d.heldout_fraction}: must lie between 0 and 1")
    if not 0 <= t.decay_fraction <= 1:
        raise InputError(f"train.decay_fraction = {t.decay_fraction}: must lie between 0 and 1")
    for key in ("beta1", "beta2"):
        if getattr(t, key) >= 1:
            raise InputError(f"train.{key} = {getattr(t, key)}: must be below 1")
    if t.steps // t.checkpoint_every > MOST_CHECKPOINTS:
        raise InputError(
            f"train.checkpoint_every = {t.checkpoint_every}: of train.steps = {t.steps} more than {MOST_CHECKPOINTS} "
            "checkpoints would be kept"
        )
    if t.warmup > t.steps:
        raise InputError(f"train.warmup_steps = {t.warmup_steps} is above train.steps = {t.steps}")
    if (run.start.run is None) != (run.start.step is None) or run.start.kept and run.start.run is None:
        raise InputError(
            f"start.run = {run.start.run!r}, start.step = {run.start.step}, start.kept = {run.start.kept}: "
            "a start needs both run and step"
        )
    if run.first_step >= t.steps and not run.imported.name:
        raise InputError(
            f"train.steps = {t.steps}: must be above start.step = {run.start.step}, whose schedule is kept"
        )
    if not d.corpus and not run.imported.name:
        raise InputError("data.corpus is empty: name at least one corpus or file")
    if d.weights and len(d.weights) != len(d.corpus):
        raise InputError(
            f"data.weights = {d.weights} for data.corpus = {d.corpus}: must be as many as there are corpora, or none"
        )
    for weight in d.weights:
        if not 0 < weight < math.inf or not sum(d.weights) < math.inf or MIXED * weight < sum(d.weights):
            raise InputError(f"data.weights = {d.weights}: must each be at least 1 / {MIXED} of their sum")
    return run


def validate_layout(layout: Layout) -> Layout:
    """Checks what needs no devices. Raises InputError."""
    for key, value in dataclasses.asdict(layout).items():
        if isinstance(value, int) and value < 1:
            raise InputError(f"layout.{key} = {value}: must be at least 1")
    return layout


def checkpoint_steps(train: TrainConfig) -> tuple[int, ...]:
    """0, 1, 2, 4, ... below `checkpoint_every`, then its multiples, and the last step (the Pythia schedule)."""
    k, n = train.checkpoint_every, train.steps
    powers = {2**i for i in range(n.bit_length()) if 2**i < min(k, n)}
    return tuple(sorted({0, n, *powers, *range(k, n, k)}))


def _canonical(data: dict[str, Any]) -> str:
    return json.dumps(data, sort_keys=True, separators=(",", ":"))


def _dotted(data: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    out: dict[str, Any] = {}
    for key, value in data.items():
        out.update(_dotted(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value})
    return out


def _dotted_types(cls: type, prefix: str = "") -> dict[str, Any]:
    out: dict[str, Any] = {}
    for name, hint in typing.get_type_hints(cls).items():
        out.update(_dotted_types(hint, f"{prefix}{name}.") if dataclasses.is_dataclass(hint) else {prefix + name: hint})
    return out


def _unflatten(cls: type, values: dict[str, Any], prefix: str = "") -> Any:
    hints = typing.get_type_hints(cls)
    return cls(
        **{
            name: _unflatten(hint, values, f"{prefix}{name}.")
            if dataclasses.is_dataclass(hint)
            else values[prefix + name]
            for name, hint in hints.items()
        }
    )


def _typed(key: str, value: Any, hint: Any) -> Any:
    """`value` as `hint`, where that loses nothing: ints for floats, lists for tuples."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if isinstance(value, numbers.Number) and hasattr(value, "item"):  # NumPy's
        value = value.item()
    if origin in (types.UnionType, typing.Union):
        return None if value is None else _typed(key, value, args[0])
    if origin is Literal:
        if value not in args:
            raise InputError(f"{key} = {value!r}: must be one of {', '.join(map(repr, args))}")
        return value
    if origin is tuple:
        items = (value,) if isinstance(value, str) else value
        if not isinstance(items, (list, tuple)):
            raise InputError(f"{key} = {value!r}: must be a list")
        return tuple(_typed(key, v, args[0]) for v in items)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        if abs(value) >= 2**1023:
            raise InputError(f"{key} = {str(value)[:20]}...: must be a number that a float can hold")
        return float(value)
    if hint is int and isinstance(value, float) and value.is_integer():
        return int(value)
    if not isinstance(value, hint) or (isinstance(value, bool) and hint is not bool):
        raise InputError(f"{key} = {value!r}: must be of type {hint.__name__}")
    return value
