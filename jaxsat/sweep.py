"""What a sweep is: a base run and the points around it, each a few dotted keys to change.

    points = chain(
        product({"model.width": [8, 16], "seed": [0, 1]}),
        zipped({"model.width": [32, 64], "train.learning_rate": [1e-2, 6e-3]}),
    )
    sweep = Sweep("mine", Run(), points)

`product`, `zipped` and `chain` take and return plain lists of points, so they nest.
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jaxsat.config import InputError, Run, flatten, override, validate

Point = dict[str, Any]
Axes = Mapping[str, Sequence[Any]]


def product(*parts: Axes | Sequence[Point]) -> list[Point]:
    """Every combination: of the values of each key, and of the points of each part."""
    lists = [p for part in parts for p in _axes(part)]
    return [{k: v for point in combo for k, v in point.items()} for combo in itertools.product(*lists)]


def zipped(axes: Axes) -> list[Point]:
    """The i-th value of every key together. Raises InputError when lengths differ."""
    lengths = {key: len(values) for key, values in axes.items()}
    if len(set(lengths.values())) > 1:
        raise InputError(f"zipped keys have different lengths: {lengths}")
    return [dict(zip(axes, values)) for values in zip(*axes.values())]


def chain(*parts: Sequence[Point]) -> list[Point]:
    """One list of points after the other."""
    return [point for part in parts for point in part]


@dataclass(frozen=True)
class Sweep:
    """A named set of runs. `runs` are validated and unique: points that give the same run count once."""

    name: str
    base: Run
    points: Sequence[Point] = ({},)

    @property
    def runs(self) -> tuple[Run, ...]:
        runs = []
        for i, point in enumerate(self.points):
            try:
                runs.append(validate(override(self.base, point)))
            except InputError as e:
                raise InputError(f"sweep {self.name!r}, point {i} {point}: {e}") from None
        if not runs:
            raise InputError(f"sweep {self.name!r} has no runs")
        return tuple(dict.fromkeys(runs))


def differing_keys(runs: Sequence[Run]) -> list[str]:
    """The dotted keys in which the runs are not all the same: what a table of them needs to show."""
    flat = [flatten(run) for run in runs]
    return [key for key in flat[0] if len({f[key] for f in flat}) > 1]


def _axes(part: Axes | Sequence[Point]) -> list[list[Point]]:
    if isinstance(part, Mapping):
        return [[{key: value} for value in values] for key, values in part.items()]
    return [list(part)]
