"""One step, one loop, many runs in one program."""

from jaxsat.config import Preempted
from jaxsat.train.logs import Account, environment, read_account, read_launches, read_metrics, write_atomically
from jaxsat.train.loop import on_its_text, train_pack, train_run
from jaxsat.train.step import Hyper, Program, State, hypers, initializer, learning_rate, train_step
from jaxsat.train.task import LANGUAGE_MODEL, ON_PAIRS, Task, drawn_from, own_samples

__all__ = [
    "Account",
    "LANGUAGE_MODEL",
    "ON_PAIRS",
    "Hyper",
    "Preempted",
    "Program",
    "State",
    "Task",
    "drawn_from",
    "environment",
    "hypers",
    "initializer",
    "learning_rate",
    "on_its_text",
    "own_samples",
    "read_account",
    "read_launches",
    "read_metrics",
    "train_pack",
    "train_run",
    "train_step",
    "write_atomically",
]
