"""One step, one loop, many runs in one program."""

from jaxsat.train.logs import read_metrics
from jaxsat.train.loop import Preempted, train_pack
from jaxsat.train.packs import Pack, describe, make_packs
from jaxsat.train.step import Hyper, Program, State, hypers, initializer, learning_rate, train_step

__all__ = [
    "Hyper",
    "Pack",
    "Preempted",
    "Program",
    "State",
    "describe",
    "hypers",
    "initializer",
    "learning_rate",
    "make_packs",
    "read_metrics",
    "train_pack",
    "train_step",
]
