"""The training loop of one pack: batches in, checkpoints and metrics out; killed anywhere, it continues to the same
numbers."""

import contextlib
import errno
import math
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from etils import epath

from jaxsat import corpus as corpora
from jaxsat.checkpoints import Store
from jaxsat.config import InputError, checkpoint_steps
from jaxsat.parallel import make_mesh, per_run, per_run_and_row
from jaxsat.sweep import Pack
from jaxsat.train.logs import RunLog, read_metrics
from jaxsat.train.step import Program, abstract_state, hypers, initializer, train_step

WINDOW = 10  # steps between looks at the losses

Progress = Callable[[int, list[float]], None]  # (steps done, latest loss of each run)


class Preempted(Exception):
    """SIGTERM arrived; the state is saved, and the same command continues."""


def train_pack(
    pack: Pack,
    corpus: corpora.Corpus,
    out: epath.Path,
    progress: Progress = lambda step, losses: None,
    mesh: jax.sharding.Mesh | None = None,
    tensorboard: bool = False,
) -> None:
    """Trains every run of `pack` to its last step, from the newest checkpoint under `out` or from the start. When all
    have diverged, it ends there.

    Raises Preempted after SIGTERM and KeyboardInterrupt after Ctrl-C, with everything saved; InputError where `out`
    holds something else or is full.
    """
    train, program = pack.runs[0].train, Program.of(pack)
    mesh = mesh or make_mesh(len(pack.runs), train.batch_size)
    hyper = jax.device_put(hypers(pack.runs), per_run(mesh))
    if all("diverged" in line for run in pack.runs for line in read_metrics(out / "runs" / run.id)[-1:] or [{}]):
        return
    abstract = abstract_state(program, mesh, hyper)
    with contextlib.ExitStack() as stack:
        stack.enter_context(_full_disk_named(out, abstract))
        stop = stack.enter_context(_Stop())
        store = stack.enter_context(Store(out / "checkpoints" / pack.id, [run.id for run in pack.runs], writable=True))
        found = store.latest(abstract)
        state, spent = found or (initializer(program, mesh)(hyper), 0.0)
        start = int(state["step"])
        if start == train.steps:
            return
        window = stack.enter_context(contextlib.closing(_Window(pack, out, start, tensorboard)))
        batches = stack.enter_context(contextlib.closing(_stacked(pack, corpus, start)))
        began = time.monotonic() - spent
        saves = set(checkpoint_steps(train))
        if not found:
            store.save(0, state, 0.0)
        for step in range(start + 1, train.steps + 1):
            rows_KxBxT1 = jax.device_put(next(batches), per_run_and_row(mesh))
            state, metrics = train_step(program, mesh, state, hyper, rows_KxBxT1)
            window.add(step, metrics)
            if step % WINDOW == 0:
                window.write_previous()
                progress(step, window.losses)
            stopped = stop.signal  # asked once a step: between saving and raising it may change
            if step in saves or stopped:
                window.write_all()
                store.save(step, state, time.monotonic() - began)
            if stopped:
                raise stop.error(f"stopped at step {step}")
            if window.all_diverged:
                break
        window.write_all()
        progress(train.steps, window.losses)


class _Window:
    """Metrics of the steps since the last line, read one window late so that dispatch never waits."""

    def __init__(self, pack: Pack, out: epath.Path, start: int, tensorboard: bool):
        self.pack = pack
        self.logs = [RunLog(out / "runs" / run.id, run, start, tensorboard) for run in pack.runs]
        self.losses = [float("nan")] * len(pack.runs)
        self._previous: list[tuple[int, dict[str, jax.Array]]] = []
        self._current: list[tuple[int, dict[str, jax.Array]]] = []
        self._clock = time.monotonic()

    @property
    def all_diverged(self) -> bool:
        return all(log.diverged for log in self.logs)

    def add(self, step: int, metrics: dict[str, jax.Array]) -> None:
        self._current.append((step, metrics))

    def write_previous(self) -> None:
        self._write(self._previous)
        self._previous, self._current = self._current, []

    def write_all(self) -> None:
        self.write_previous()
        self._write(self._previous)
        self._previous = []
        for log in self.logs:
            log.write()

    def close(self) -> None:
        for log in self.logs:
            log.close()

    def _write(self, window: list[tuple[int, dict[str, jax.Array]]]) -> None:
        if not window:
            return
        steps = [step for step, _ in window]
        values = jax.device_get([metrics for _, metrics in window])
        now = time.monotonic()
        tokens = len(steps) * sum(run.tokens_per_step for run in self.pack.runs)
        tokens_per_second = round(tokens / max(now - self._clock, 1e-9))  # of the whole pack
        self._clock = now
        for k, (run, log) in enumerate(zip(self.pack.runs, self.logs)):
            if log.diverged:
                continue
            for step, value in zip(steps, values):
                if not all(math.isfinite(v[k]) for v in value.values()):
                    log.diverge(step)
                    break
                log.add(
                    {"step": step, "tokens": step * run.tokens_per_step} | {m: float(v[k]) for m, v in value.items()}
                )
                self.losses[k] = float(value["loss"][k])
            else:
                log.add({"step": steps[-1], "tokens_per_second": tokens_per_second})


def _stacked(pack: Pack, corpus: corpora.Corpus, start: int) -> Iterator[np.ndarray]:
    """Batches rows_KxBxT1 from step `start` on: every run in the order of its own seed, equal seeds read once."""
    batch_size = pack.runs[0].train.batch_size
    by_seed = {r.seed: corpora.batches(corpus, r.seed, batch_size, start) for r in pack.runs}
    try:
        while True:
            rows = {seed: next(batches) for seed, batches in by_seed.items()}
            yield np.stack([rows[r.seed] for r in pack.runs])
    finally:
        for batches in by_seed.values():
            batches.close()


@contextlib.contextmanager
def _full_disk_named(out: epath.Path, abstract: Any) -> Iterator[None]:
    """What a full disk raises, as InputError: OSError from a file, ValueError from tensorstore."""
    try:
        yield
    except (OSError, ValueError) as e:
        if not any(os.strerror(code) in str(e) for code in (errno.ENOSPC, errno.EDQUOT)):
            raise
        mib = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(abstract)) / 2**20
        raise InputError(
            f"no space left in {out}: a checkpoint of this pack takes {mib:.1f} MiB; free some, and the same command "
            "continues from the last complete one"
        ) from e


class _Stop:
    """Notes SIGTERM and Ctrl-C instead of dying of them: a preempted machine gives about 30 s to save, and an exception
    inside a save would leave a thread of orbax that keeps the process for 5 minutes. A second Ctrl-C does not wait.
    A signal too late for the loop to see, as it ends or saves for the last time, is raised on leaving."""

    def __init__(self):
        self.signal: int | None = None

    def __enter__(self) -> "_Stop":
        self._before: dict[int, Any] = {}
        if threading.current_thread() is threading.main_thread():
            self._before = {s: signal.signal(s, self._note) for s in (signal.SIGTERM, signal.SIGINT)}
        return self

    def _note(self, number: int, _: object) -> None:
        if self.signal == number == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal = number

    def error(self, where: str) -> BaseException:
        message = f"{where}; the same command continues from there"
        return KeyboardInterrupt(message) if self.signal == signal.SIGINT else Preempted(message)

    def __exit__(self, error: object, *_: object) -> None:
        for number, before in self._before.items():
            signal.signal(number, before)
        if self.signal and error is None:
            raise self.error("stopped after the last step of a pack")
