"""Which runs train together: a pack is a set of runs that one program serves."""

import dataclasses
import hashlib
from collections.abc import Iterable, Sequence

from jaxsat.config import Run
from jaxsat.train.step import Program

# Runs a pack. On 2 CPU cores throughput no longer grows beyond 8; large models do not fit more than a few.
MAX_RUNS = 8


@dataclasses.dataclass(frozen=True)
class Pack:
    """Runs with the same shapes, data and length; they differ in seed, learning rate, weight decay and head rank."""

    runs: tuple[Run, ...]

    @property
    def id(self) -> str:
        ids = [run.id for run in self.runs]
        return ids[0] if len(ids) == 1 else hashlib.sha256("".join(ids).encode()).hexdigest()[:12]

    @property
    def program(self) -> Program:
        return Program.of(self.runs[0], max(run.model.rank for run in self.runs))


def make_packs(runs: Iterable[Run], max_runs: int = MAX_RUNS) -> list[Pack]:
    """Groups runs that can share a program, in the order of their first run, into packs of nearly equal size."""
    groups: dict[object, list[Run]] = {}
    for run in runs:
        groups.setdefault(_shared(run), []).append(run)
    packs = []
    for group in groups.values():
        n_packs = -(-len(group) // max_runs)
        packs += [
            Pack(tuple(group[i * len(group) // n_packs : (i + 1) * len(group) // n_packs])) for i in range(n_packs)
        ]
    return packs


def describe(packs: Sequence[Pack]) -> str:
    """What the planner did, in one line."""
    shapes = {pack.program for pack in packs}
    sizes = ", ".join(str(len(pack.runs)) for pack in packs)
    return f"{sum(len(p.runs) for p in packs)} runs in {len(packs)} packs ({sizes}) of {len(shapes)} shapes"


def _shared(run: Run) -> object:
    """What the runs of a pack have in common: everything but what `Hyper` carries; equal length keeps all of it busy."""
    train = dataclasses.replace(run.train, learning_rate=0.0, weight_decay=0.0)
    model = dataclasses.replace(run.model, head_rank=run.model.head_rank and run.model.width)
    return model, train, run.data
