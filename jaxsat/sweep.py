"""What a sweep is: a base run and the points around it, each a few dotted keys to change; and its packs.

    points = chain(
        product({"model.width": [8, 16], "seed": [0, 1]}),
        zipped({"model.width": [32, 64], "train.learning_rate": [1e-2, 6e-3]}),
    )
    sweep = Sweep("mine", Run(), points)

`product`, `zipped` and `chain` take and return plain lists of points, so they nest.
"""

import dataclasses
import hashlib
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jaxsat.config import InputError, ModelConfig, Run, flatten, override, validate

Point = dict[str, Any]
Axes = Mapping[str, Sequence[Any]]


def product(*parts: Axes | Sequence[Point]) -> list[Point]:
    """Every combination: of the values of each key, and of the points of each part."""
    lists = [p for part in parts for p in _axes(part)]
    return [{k: v for point in combo for k, v in point.items()} for combo in itertools.product(*lists)]


def zipped(axes: Axes) -> list[Point]:
    """The i-th value of every key together. Raises InputError when lengths differ."""
    _axes(axes)
    lengths = {key: len(values) for key, values in axes.items()}
    if len(set(lengths.values())) > 1:
        raise InputError(f"zipped keys have different lengths: {lengths}")
    return [dict(zip(axes, values)) for values in zip(*axes.values())]


def chain(*parts: Sequence[Point]) -> list[Point]:
    """One list of points after the other."""
    return [point for part in parts for point in part]


@dataclass(frozen=True)
class Sweep:
    """A named set of runs. `runs` are validated and unique: points that give the same run count once. A point may also
    be a whole run, such as a branch of another."""

    name: str
    base: Run
    points: Sequence[Point | Run] = ({},)

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not isinstance(self.base, Run):
            raise InputError(f"Sweep({self.name!r:.40}, {self.base!r:.40}): needs a name, a base Run and points")

    @property
    def runs(self) -> tuple[Run, ...]:
        if isinstance(self.points, Mapping) or not all(isinstance(point, Mapping | Run) for point in self.points):
            raise InputError(
                f"sweep {self.name!r}: points must be a list of {{key: value}}, as product({{...}}) gives, or runs"
            )
        runs = []
        for i, point in enumerate(self.points):
            try:
                runs.append(validate(point if isinstance(point, Run) else override(self.base, point)))
            except InputError as e:
                raise InputError(f"sweep {self.name!r}, point {i} {point}: {e}") from None
        if not runs:
            raise InputError(f"sweep {self.name!r} has no runs")
        return tuple(dict.fromkeys(runs))


def differing_keys(runs: Sequence[Run]) -> list[str]:
    """The dotted keys in which the runs are not all the same: what a table of them needs to show."""
    flat = [flatten(run) for run in runs]
    return [key for key in flat[0] if len({f[key] for f in flat}) > 1]


# Runs a pack, where memory allows. On 2 CPU cores throughput no longer grows beyond 8.
MAX_RUNS = 8


@dataclass(frozen=True)
class Pack:
    """Runs that one program trains together: the same shapes, data and length, stacked on a leading axis K.
    They differ in seeds, learning rate, weight decay, initial scale and head rank."""

    runs: tuple[Run, ...]

    @property
    def id(self) -> str:
        ids = [run.id for run in self.runs]
        return ids[0] if len(ids) == 1 else hashlib.sha256("".join(ids).encode()).hexdigest()[:12]

    @property
    def model(self) -> ModelConfig:
        """The configuration that all runs are stored as: a factored head as wide as the largest rank."""
        model = self.runs[0].model
        return dataclasses.replace(model, head_rank=model.head_rank and max(run.model.rank for run in self.runs))

    def starts(self, runs: Iterable[Run]) -> set[int]:
        """Steps from which some of `runs` start with its optimizer."""
        ours = {run.id for run in self.runs}
        return {run.start.step for run in runs if run.start.run in ours and "optimizer" in run.start.kept}


def make_packs(
    runs: Iterable[Run], sizes: Callable[[Run, int], tuple[int, int]] = lambda run, n_runs: (1, MAX_RUNS)
) -> list[Pack]:
    """Groups runs that can share a program, in the order of their first run, into packs of nearly equal size.

    `sizes(run, n_runs)`: (m, n), packs of n_runs such runs have a multiple of m, n at most; what is left over by a
    group is a pack of its own. `parallel.pack_size` knows how many devices there are and what fits their memory.
    """
    by_id, groups = {run.id: run for run in runs}, {}

    def generation(run: Run) -> int:  # parents are trained first, so never in one pack with their children
        parent = by_id.get(run.start.run)
        return 0 if parent is None else 1 + generation(parent)

    for run in by_id.values():
        groups.setdefault((generation(run), _shared(run)), []).append(run)
    packs = []
    for group in groups.values():
        multiple, most = sizes(max(group, key=lambda run: run.model.rank), len(group))
        whole = len(group) // multiple * multiple
        n_packs = -(-whole // most)
        cuts = [round(i * whole / max(1, n_packs) / multiple) * multiple for i in range(n_packs + 1)] + [len(group)]
        packs += [Pack(tuple(group[a:b])) for a, b in zip(cuts, cuts[1:]) if b > a]
    return packs


def parents_first(packs: Sequence[Pack]) -> list[Pack]:
    """The packs, none before one from which a run of it starts. Raises InputError for a cycle of starts."""
    left, ordered = list(packs), []
    while left:
        waiting = {run.id for pack in left for run in pack.runs}
        free = [pack for pack in left if not any(run.start.run in waiting for run in pack.runs)]
        if not free:
            raise InputError(f"runs {', '.join(sorted(waiting))} start from each other: a cycle")
        ordered += free
        left = [pack for pack in left if pack not in free]
    return ordered


def describe_packs(packs: Sequence[Pack]) -> str:
    """What the planner did, in one line."""
    shapes = {(pack.model, len(pack.runs)) for pack in packs}
    sizes = ", ".join(str(len(pack.runs)) for pack in packs)
    return f"{sum(len(p.runs) for p in packs)} runs in {len(packs)} packs ({sizes}) of {len(shapes)} shapes"


def _axes(part: Axes | Sequence[Point]) -> list[list[Point]]:
    if isinstance(part, Mapping):
        for key, values in part.items():
            if isinstance(values, str) or not isinstance(values, Iterable):
                raise InputError(f"{key} = {values!r}: an axis is a list of values, such as [{values!r}]")
        return [[{key: value} for value in values] for key, values in part.items()]
    return [list(part)]


def _shared(run: Run) -> object:
    """What the runs of a pack have in common: all but what a training step takes as an array of length K."""
    train = dataclasses.replace(run.train, learning_rate=0.0, weight_decay=0.0, init_scale=1.0)
    model = dataclasses.replace(run.model, head_rank=run.model.head_rank and run.model.width)
    imported = run.imported.name  # its parameters are read alone
    return model, train, run.data, dataclasses.replace(run.start, run=run.start.run and ""), imported, run.task
