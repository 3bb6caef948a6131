"""What an experiment measures, as values: of every checkpoint of its models, and of no model at all.

    Measure("head_norm", lambda c: {"head_norm": np.linalg.norm(c.params["head"]["kernel"])})
    Computed("dynamics", lambda: pd.DataFrame(...))

A number is known by (series, step, key of the measure, version): what is in the table is not made again, and a measure
that is added to a finished study, whose function changes or whose version rises, is made for all its checkpoints.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import jax
import numpy as np
import pandas as pd
from etils import epath
from numpy.typing import ArrayLike

from jaxsat import model
from jaxsat.config import DataConfig, InputError, ModelConfig, Run
from jaxsat.corpus import Corpus
from jaxsat.evaluate.scores import BLOCK_TOKENS

Rows = Mapping[str, ArrayLike] | pd.DataFrame
MAX_UNITS = 128  # of the held-out slice, for paired tests: rows of the table grow with them


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["tokens_NxBxT1", "unit_NxBxT", "bytes_per_token"],
    meta_fields=["n_units", "marked"],
)
@dataclass(frozen=True, eq=False)
class Heldout:
    """The fixed slice of held-out text, in N blocks of B rows for one forward pass each; -1 where a block is not
    full, or a row of pairs."""

    tokens_NxBxT1: jax.Array
    unit_NxBxT: jax.Array  # of each target, rows[:, 1:]: which of the n_units it is of; -1: it is none
    n_units: int  # the slice's documents, neighbours joined where they are more than MAX_UNITS
    bytes_per_token: jax.Array | np.float32  # of all held-out text, an end of text being a token without bytes
    marked: bool  # there are pairs in it: see `model.read_marks`


@partial(jax.tree_util.register_dataclass, data_fields=[], meta_fields=[])
@dataclass(frozen=True)
class NoText:
    """The held-out text of a model that has none: an imported one, or one that is no language model."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        raise InputError(
            "a measure asks for held-out text, and this model has none: leave it out, or give the import a corpus"
        )


NO_TEXT = NoText()


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """One model at one step: what a measure is given.

    `params`: as `model.init` draws them, float32. `rank`: of the head, to which its factors are cut. Where `of` is
    traced (see `Measure`) they are tracers, factors are as wide as the largest rank in the pack, with zeros beyond
    `rank`, and `run`, `step`, `tokens`, `corpus` and `tokenizer` are None.
    """

    config: ModelConfig
    params: model.Params
    rank: int | jax.Array
    heldout: Heldout | NoText
    run: Run | None = None
    step: int | None = None
    tokens: int | None = None  # seen in training
    corpus: Corpus | None = None
    tokenizer: epath.Path | None = None  # its tokenizer.json


def blocks(rows_MxT1: np.ndarray, n_devices: int = 1) -> np.ndarray:
    """The rows as blocks_NxBxT1, each for one forward pass on `n_devices`; -1 where the last is not full."""
    m, t1 = rows_MxT1.shape
    size = n_devices * min(max(1, BLOCK_TOKENS // (t1 - 1)), -(-m // n_devices))
    return np.pad(rows_MxT1, ((0, -m % size), (0, 0)), constant_values=-1).reshape(-1, size, t1)


def heldout(corpus: Corpus, put: Callable[[np.ndarray], jax.Array] = jax.numpy.asarray, n_devices: int = 1) -> Heldout:
    """The fixed slice of a corpus on the devices where `put` puts it."""
    n_units = min(corpus.heldout_documents, MAX_UNITS)
    unit_MxT = corpus.heldout_document_MxT.astype(np.int64) * n_units // corpus.heldout_documents
    tokens_NxBxT1 = blocks(corpus.heldout_MxT1, n_devices)
    unit_NxBxT = np.pad(unit_MxT, ((0, tokens_NxBxT1.shape[0] * tokens_NxBxT1.shape[1] - len(unit_MxT)), (0, 0)),
                        constant_values=-1).reshape(*tokens_NxBxT1.shape[:2], -1)  # fmt: skip
    arrays = put(tokens_NxBxT1), put(unit_NxBxT.astype(np.int32))
    return Heldout(*arrays, n_units, np.float32(corpus.bytes_per_token), corpus.heldout_marked)


def every(run: Run) -> bool:
    return True


def _key(self: "Measure | Computed") -> str:
    """By what the table knows it: measures of two experiments in one directory may have one name, but not one code."""
    return f"{self.name}@{self.code}" if self.code else self.name


@dataclass(frozen=True)
class Measure:
    """`of` maps a Checkpoint to {metric: number, vector over `index`, or matrix layer x index}, or to a table with
    columns metric, value and, where wanted, layer and index.

    at: every checkpoint, the last, the best (least held-out loss), or those of some steps. runs: of which runs.
    version: raise it when what `of` calls elsewhere changes, and all is measured again. traced: `of` is a pure JAX
    function; one compiled program runs it for all models of a pack, over all devices. Otherwise each model is measured
    in plain Python, the checkpoints dealt out over the hosts. code: the `identity` of `of`, set as the experiment is
    loaded. text: of which, by the model's own tokenizer, `of` is given all as held out, instead of the run's; a name
    stands for one text, so it holds its hash.

    Raises InputError on a name or a step that cannot be.
    """

    name: str
    of: Callable[[Checkpoint], Rows]
    at: Literal["every", "last", "best"] | tuple[int, ...] = "every"
    runs: Callable[[Run], bool] = every
    version: int = 1
    traced: bool = False
    code: str = ""
    text: DataConfig | None = None

    key = property(_key)

    def __post_init__(self) -> None:
        _check(self.name, self.version, self.of)
        steps = isinstance(self.at, tuple) and self.at and all(isinstance(s, int) and s >= 0 for s in self.at)
        if self.at not in ("every", "last", "best") and not steps:
            raise InputError(
                f"measure {self.name!r}: at = {self.at!r} must be 'every', 'last', 'best' or a tuple of steps"
            )


@dataclass(frozen=True)
class Computed:
    """Rows of no trained model: an ODE, a published table, a language whose answer is known. `of` takes nothing and
    returns what `Measure.of` does; the rows' series is `name`, their step 0 unless a table says otherwise (columns
    step, tokens)."""

    name: str
    of: Callable[[], Rows]
    version: int = 1
    code: str = ""

    key = property(_key)

    def __post_init__(self) -> None:
        _check(self.name, self.version, self.of)


def _check(name: str, version: int, of: object) -> None:
    if not isinstance(name, str) or not name or not callable(of):
        raise InputError(f"measure {name!r} of {of!r}: needs a name and a function")
    if not isinstance(version, int) or version < 1:
        raise InputError(f"measure {name!r}: version = {version!r} must be 1 or more")


def values(found: Rows, name: str) -> pd.DataFrame:
    """What a measure returned as a table of metric, layer, index and value (and step and tokens, where it says so);
    layer -1 is of no layer. Raises InputError with the measure's name when it is something else."""
    if isinstance(found, pd.DataFrame):
        if missing := {"metric", "value"} - set(found.columns):
            raise InputError(f"measure {name!r} returned a table without the column {min(missing)!r}")
        if unknown := {*map(str, found.columns)} - {"metric", "value", "layer", "index", "step", "tokens"}:
            raise InputError(f"measure {name!r} returned a table with an unknown column {min(unknown)!r}")
        filled = {"layer": -1, "index": 0} | ({"step": found["tokens"]} if "tokens" in found else {})
        return _checked(found.assign(**{k: v for k, v in filled.items() if k not in found}), name)
    if not isinstance(found, Mapping):
        raise InputError(f"measure {name!r} returned {type(found).__name__}: must be {{metric: numbers}} or a table")
    parts = []
    for metric, value in found.items():
        try:
            array = np.asarray(value, np.float64)
        except (TypeError, ValueError):
            raise InputError(f"measure {name!r}: {metric!r} is {value!r:.80}, which is no number or array") from None
        if array.ndim > 2:
            raise InputError(f"measure {name!r}: {metric!r} has shape {array.shape}: a matrix, layer x index, at most")
        table = np.atleast_2d(array)
        layer, index = np.indices(table.shape).reshape(2, -1)
        layer = layer if array.ndim == 2 else np.full(table.size, -1)
        parts.append(pd.DataFrame({"metric": str(metric), "layer": layer, "index": index, "value": table.ravel()}))
    return (
        pd.concat(parts, ignore_index=True)
        if parts
        else pd.DataFrame({k: [] for k in ("metric", "layer", "index", "value")})
    )


def _checked(table: pd.DataFrame, name: str) -> pd.DataFrame:
    """A table that a measure returned, whose rows can be told apart and whose numbers are numbers."""
    for column in ("value", "layer", "index", "step", "tokens"):
        if column in table:
            values = pd.to_numeric(table[column], errors="coerce").astype(float)
            wrong = values.isna() & table[column].notna() if column == "value" else values % 1 != 0
            if wrong.any():
                right = "a number" if column == "value" else "a whole number"
                raise InputError(f"measure {name!r}: {column} = {table.loc[wrong, column].iloc[0]} must be {right}")
    places = [column for column in ("metric", "step", "layer", "index") if column in table]
    if (again := table.duplicated(places)).any():
        place = ", ".join(f"{column} {value}" for column, value in table.loc[again, places].iloc[0].items())
        raise InputError(
            f"measure {name!r} returned two rows of {place}: tell them apart by `index`, `layer` or `step`"
        )
    return table
