"""What a run leaves beside its checkpoints: runs/<id>/{config.json, env.json, metrics.jsonl, tokenizer.json}, and the
first run of a pack account.json."""

import json
import os
import platform
import sys
import time
from importlib import metadata
from typing import Any, TypedDict

import jax
from etils import epath

from jaxsat.config import InputError, Run, dumps
from jaxsat.disk import read_json, read_lines, write_atomically

ACCOUNT_SECONDS = 15  # so exactly it is known what a kill has cost


class _Packages(TypedDict):
    jax: str


class _Launch(TypedDict):
    """What `environment` says, as far as anybody asks for it."""

    python: str
    platform: str
    devices: list[str]
    packages: _Packages


class _Step(TypedDict):
    step: int


class _Line(_Step, total=False):
    """What `read_metrics` says, as far as anybody asks for it."""

    loss: float
    diverged: bool


def environment() -> dict[str, Any]:
    """Versions, devices and XLA's flags: what one needs to explain a difference between two machines."""
    packages = ("jaxsat", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")
    return {
        "python": sys.version.split()[0],
        "platform": platform.platform(),
        "devices": [f"{d.platform} {d.device_kind}" for d in jax.devices()],
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
        "packages": {name: metadata.version(name) for name in packages},
    }


class Account(TypedDict):
    """What the training of a pack took, over all its launches."""

    step: int  # to which the last launch came
    seconds: float  # of wall time
    began: float  # of these had gone when the last launch began
    device_seconds: float
    restarts: int  # launches that went on with what another had left
    steps_again: int  # that were lost with one that was killed
    seconds_again: float


NOTHING = Account(step=0, seconds=0.0, began=0.0, device_seconds=0.0, restarts=0, steps_again=0, seconds_again=0.0)


class Clock:
    """Keeps the account of a pack while it trains on from `step`, at which `spent` seconds had gone. The first of many
    hosts writes it, into the folder of the pack's first run, each `ACCOUNT_SECONDS` and whenever it is told to."""

    def __init__(self, directory: epath.Path | None, step: int, spent: float, n_devices: int):
        self._path = directory / "account.json" if directory and jax.process_index() == 0 else None
        self._n_devices, found = n_devices, read_account(directory) if directory else NOTHING
        self._account = Account(**found)
        if found != NOTHING:
            self._account["restarts"] += 1
            self._account["steps_again"] += max(0, found["step"] - step)
            self._account["seconds_again"] += max(0.0, found["seconds"] - max(spent, found["began"]))
        self._began = self._written = time.monotonic()
        self._account["began"] = self._account["seconds"] = max(found["seconds"], spent)
        self.write(step)

    @property
    def seconds(self) -> float:
        return self._account["began"] + time.monotonic() - self._began

    def write(self, step: int) -> None:
        now, account = self.seconds, self._account
        account["step"] = step
        account["device_seconds"] += self._n_devices * (now - account["seconds"])
        account["seconds"] = now
        self._written = time.monotonic()
        if self._path:
            write_atomically(self._path, json.dumps(account))

    def tick(self, step: int) -> None:
        if time.monotonic() - self._written > ACCOUNT_SECONDS:
            self.write(step)


class RunLog:
    """metrics.jsonl of one run, one JSON object a line; written whole at each checkpoint, so the two never disagree
    and object storage, which cannot append, will do. A run that continues from `step` keeps the lines up to it.
    Only the first of many hosts writes, and none without a directory."""

    def __init__(
        self,
        directory: epath.Path | None,
        run: Run,
        step: int,
        tensorboard: bool = False,
        tokenizer: epath.PathLike | None = None,
    ):
        self._directory = directory if jax.process_index() == 0 else None
        self._events = _summary_writer(directory / "tensorboard", step) if tensorboard and self._directory else None
        self.lines = [line for line in read_metrics(directory) if line["step"] <= step] if directory else []
        self.diverged = any("diverged" in line for line in self.lines)
        if self._directory:
            write_atomically(directory / "config.json", dumps(run))
            if tokenizer:
                write_atomically(directory / "tokenizer.json", epath.Path(tokenizer).read_text())
            launches = [*read_launches(directory), environment()]  # each may be on another machine
            write_atomically(directory / "env.json", json.dumps(launches, indent=2))

    def add(self, line: dict[str, Any]) -> None:
        self.lines.append(line)
        for name in line.keys() - {"step"} if self._events else ():
            self._events.add_scalar(name, line[name], line["step"])

    def diverge(self, step: int) -> None:
        """The loss of the step that led to `step` was not finite: the run's numbers end here."""
        self.diverged = True
        self.add({"step": step, "diverged": True})

    def write(self) -> None:
        if self._directory:
            write_atomically(self._directory / "metrics.jsonl", "".join(json.dumps(line) + "\n" for line in self.lines))
        if self._events:
            self._events.flush()

    def close(self) -> None:
        if self._events:
            self._events.close()


def _summary_writer(directory: epath.Path, step: int):
    """Events of the steps after `step`; TensorBoard drops those that an interrupted session wrote beyond it."""
    try:
        from tensorboardX import SummaryWriter
    except ImportError:
        raise InputError("TensorBoard files need tensorboardX: pip install 'jaxsat[tensorboard]'") from None
    return SummaryWriter(str(directory), purge_step=step + 1)


def read_launches(directory: epath.PathLike) -> list[dict[str, Any]]:
    """The `environment` of each launch of a run, from its env.json."""
    path = epath.Path(directory) / "env.json"
    todo = "remove it, and only where the run was trained is lost"
    return read_json(path, list[_Launch], "a list of environments", todo) if path.exists() else []


def read_account(directory: epath.PathLike) -> Account:
    """Of the pack whose first run has this directory."""
    path = epath.Path(directory) / "account.json"
    todo = "remove it, and only the account of time and restarts is lost"
    return read_json(path, Account, "an account of training", todo) if path.exists() else NOTHING


def read_metrics(directory: epath.PathLike, last: int = 0) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl, or the `last` few: {step, tokens, loss, grad_norm, learning_rate}; {step, diverged};
    and, of the whole pack since the last such line, {step, tokens_per_second, input_stall, mfu, memory_gib}.

    diverged: the loss of that step was not finite. A step whose gradient's norm alone was not has a line without
    grad_norm: clipped by an infinite norm, such a gradient moves nothing.

    input_stall: the part of the wall time in which this host waited for its next batch with no step running. mfu:
    tokens_per_second x `model.flops_per_token` / (devices x peak FLOP/s); only where `machine.chip` knows it.
    memory_gib: the most that a device of this host has held; only where it tells.
    """
    todo = "remove it, and the same command as ever makes what can be made of it"
    return read_lines(epath.Path(directory) / "metrics.jsonl", _Line, "the log of a run", todo, last)
