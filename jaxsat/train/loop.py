"""The training loop of one pack: batches in, checkpoints and metrics out; killed anywhere, it continues to the same
numbers. On many hosts each reads its own rows, the first one writes the logs, and what they need to know of each other
(losses, a signal to stop, their speed) goes around once a window, behind the steps.
"""

import contextlib
import dataclasses
import errno
import functools
import math
import operator
import os
import time
from collections.abc import Callable, Collection, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jax.sharding import NamedSharding, PartitionSpec

from jaxsat import corpus as corpora
from jaxsat import hosts, model
from jaxsat.checkpoints import Retention, Store
from jaxsat.config import InputError, Layout, Run, validate
from jaxsat.machine import chip
from jaxsat.parallel import make_mesh, pack_layout, per_run, per_run_and_row, put, replicated
from jaxsat.stop import Stop, stopped
from jaxsat.sweep import Pack
from jaxsat.train.logs import Clock, RunLog, read_metrics
from jaxsat.train.start import first_state
from jaxsat.train.step import Program, abstract_state, hypers, train_step
from jaxsat.train.task import LANGUAGE_MODEL, ON_PAIRS, Task
from jaxsat.watch import heard

WINDOW = 10  # steps between looks at the losses; fewer where they take longer than WINDOW_SECONDS
WINDOW_SECONDS = 5  # all hosts save one to two windows after one is told to stop, of the 30 s it is given
SAVE_SECONDS = 300  # between saves at most: what a killed host loses

Progress = Callable[[int, list[float]], None]  # (steps done, latest loss of each run)


def train_run(
    run: Run,
    corpus: corpora.Corpus | None,
    progress: Progress = lambda step, losses: None,
    layout: Layout = Layout(),
    task: Task = LANGUAGE_MODEL,
) -> tuple[model.Params, list[dict[str, Any]]]:
    """(parameters, lines as `read_metrics` has them) of one run, trained from the start; nothing is written.

    The numbers are those that it has in a directory. The parameters are whole, on one device of this host, as those of
    `checkpoints.load_run`. Raises InputError. For checkpoints, from which to continue: `train_pack(Pack((run,)), ...)`.
    """
    if run.task and task == LANGUAGE_MODEL:
        raise InputError(f"run.task is {run.task!r}: give that task to train_run, or leave it out of the run")
    params_K, (lines,) = train_pack(Pack((validate(run),)), corpus, None, progress, layout, task=task)
    whole = replicated(jax.tree.leaves(params_K)[0].sharding.mesh)
    params = jax.jit(lambda tree: jax.tree.map(operator.itemgetter(0), tree), out_shardings=whole)(params_K)
    return jax.tree.map(lambda x: x.addressable_data(0), params), lines


def train_pack(
    pack: Pack,
    corpus: corpora.Corpus | None,
    out: epath.PathLike | None,
    progress: Progress = lambda step, losses: None,
    layout: Layout = Layout(),
    mesh: jax.sharding.Mesh | None = None,
    tensorboard: bool = False,
    task: Task = LANGUAGE_MODEL,
    starts: Collection[int] = (),
) -> tuple[model.Params, list[list[dict[str, Any]]]] | None:
    """Trains every run of `pack` to its last step, from the newest checkpoint under `out` or from the start. When all
    have diverged, it ends there. `corpus` is None for a task that reads no text. `starts`: steps from which others will
    start with its optimizer.

    Without `out` nothing is written, a signal is its caller's business, and it returns the parameters, stacked on a
    leading axis K, and the metrics of each run. Raises Preempted after SIGTERM and KeyboardInterrupt after Ctrl-C, with
    everything saved; InputError where `out` holds something else or is full, and where the devices have too little
    memory.
    """
    out = None if out is None else epath.Path(out)
    train = pack.runs[0].train
    # By the memory of one device, the same for all hosts.
    layout = Layout(**hosts.first(lambda layout=layout: dataclasses.asdict(pack_layout(pack, layout))))
    mesh = mesh or make_mesh(pack, layout)
    task = on_its_text(pack.runs[0], task, corpus)
    program = Program.of(pack, layout.remat, task)
    hyper = jax.tree.map(lambda x: put(np.asarray(x), per_run(mesh)), hypers(pack.runs))
    diverged, ended = hosts.first(lambda: _ends(pack, out))
    if all(diverged):
        return None
    abstract = abstract_state(program, mesh, hyper)
    with contextlib.ExitStack() as stack:
        stack.enter_context(_full_memory_named(pack, mesh, program.remat))
        stop, store, found = Stop("stopped after the last step of a pack"), None, None
        if out:
            stack.enter_context(_full_disk_named(out, abstract))
            stack.enter_context(stop)
            folder = out / "checkpoints" / pack.id
            ids, kept = [run.id for run in pack.runs], Retention.of(pack, starts)
            store = stack.enter_context(Store(folder, ids, writable=True, retention=kept))
            if any(diverged) and all(ended) and train.steps in store.steps:  # a pack that its caller asks for again
                return None
            found = store.latest(abstract)
        state, spent = found or (first_state(pack, program, mesh, hyper, out, layout), 0.0)
        start = int(state["step"])
        if start == train.steps:
            return None
        window = _Window(pack, corpus, out, start, spent, mesh, stop, tensorboard)
        stack.enter_context(contextlib.closing(window))
        batches = stack.enter_context(
            contextlib.closing(_batches(pack, corpus, start + pack.runs[0].batch_offset, per_run_and_row(mesh)))
        )
        saves = set(pack.runs[0].checkpoint_steps) if store else set()
        if store and not found:
            store.save(start, state, 0.0)
        for step in range(start + 1, train.steps + 1):
            with window.waiting():
                rows_KxBxT1 = next(batches)
            state, metrics = train_step(program, mesh, state, hyper, rows_KxBxT1)
            window.add(step, metrics)
            if step % window.every == 0:
                window.write_previous()
                window.account.tick(step)
                progress(step, window.losses)
            stopped_by = window.stopped()  # asked once a step: between saving and raising it may change
            if stopped_by:
                heard()
            if step in saves or stopped_by or store and window.since_save > SAVE_SECONDS:
                window.write_all()
                store.save(step, state, window.account.seconds)
                window.saved(step)
            if stopped_by:
                raise stopped(stopped_by, f"stopped at step {step}")
            if window.all_diverged:
                break
        window.write_all()
        progress(train.steps, window.losses)
    return None if out else (state["params"], [log.lines for log in window.logs])


def on_its_text(run: Run, task: Task, corpus: corpora.Corpus | None) -> Task:
    """The task on texts or on pairs. Raises InputError where the corpus has pairs and the task takes none."""
    if corpus is None or not corpus.marked:
        return task
    task = ON_PAIRS if task == LANGUAGE_MODEL else task
    if not task.pairs:
        names = ", ".join(run.data.corpus + run.data.heldout)
        raise InputError(
            f"run.task = {run.task!r} reads texts, and {names} has pairs: give texts, or a task with pairs=True"
        )
    return task


def _ends(pack: Pack, out: epath.Path | None) -> tuple[list[bool], list[bool]]:
    """Of each run, by its last line under `out`: whether it has diverged; whether it will not go on."""
    last = [(read_metrics(out / "runs" / run.id) if out else [])[-1:] or [{}] for run in pack.runs]
    diverged = ["diverged" in line for (line,) in last]
    return diverged, [d or line.get("step") == pack.runs[0].train.steps for d, (line,) in zip(diverged, last)]


@functools.partial(jax.jit, static_argnames="mesh")
def _everywhere(mesh: jax.sharding.Mesh, window: list[dict[str, jax.Array]], notes_DxN: jax.Array) -> Any:
    """(metrics of the window's steps, stacked; the largest of every device's notes), whole on every device."""
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *window)
    return jax.lax.with_sharding_constraint((stacked, notes_DxN.max(axis=0)), replicated(mesh))


class _Window:
    """Metrics of the steps since the last line, read one window late so that dispatch never waits."""

    def __init__(
        self,
        pack: Pack,
        corpus: corpora.Corpus | None,
        out: epath.Path | None,
        start: int,
        spent: float,
        mesh: jax.sharding.Mesh,
        stop: Stop,
        tensorboard: bool,
    ):
        self.pack, self.every = pack, WINDOW
        self.logs = [
            RunLog(out and out / "runs" / run.id, run, start, tensorboard, corpus and corpus.tokenizer)
            for run in pack.runs
        ]
        self.account = Clock(out and out / "runs" / pack.runs[0].id, start, spent, mesh.size)
        self.losses = [float("nan")] * len(pack.runs)
        self._mesh, self._stop, self._agreed_signal = mesh, stop, 0
        self._previous: tuple[list[int], Any] = [], None  # steps, their metrics
        self._current: tuple[list[int], list[dict[str, jax.Array]]] = [], []
        self._clock, self._waited, self._pace = time.monotonic(), 0.0, 0.0
        self._saved, self._agreed_since_save = self._clock, 0.0
        self._newest: jax.Array | None = None

    @property
    def all_diverged(self) -> bool:
        return all(log.diverged for log in self.logs)

    def stopped(self) -> int:
        """The signal by which to stop after this step, the same on all hosts; 0 for none."""
        return self._stop.signal if jax.process_count() == 1 else self._agreed_signal

    @property
    def since_save(self) -> float:
        """Seconds, the same on all hosts."""
        return time.monotonic() - self._saved if jax.process_count() == 1 else self._agreed_since_save

    def saved(self, step: int) -> None:
        self.account.write(step)
        self._saved, self._agreed_since_save = time.monotonic(), 0.0

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Around what keeps a step from being dispatched: its batch. As long as the step before runs nothing waits."""
        began = time.monotonic()
        yield
        if self._newest is None or self._newest.is_ready():
            self._waited += time.monotonic() - began

    def add(self, step: int, metrics: dict[str, jax.Array]) -> None:
        self._current[0].append(step)
        self._current[1].append(metrics)
        self._newest = metrics["loss"]

    def write_previous(self) -> None:
        self._write(self._shift())

    def write_all(self) -> None:
        self._write(self._shift(), self._shift())
        for log in self.logs:
            log.write()

    def close(self) -> None:
        for log in self.logs:
            log.close()

    def _shift(self) -> tuple[list[int], Any]:
        """Takes the previous window; the current one becomes it."""
        (steps, window), previous = self._current, self._previous
        if steps and jax.process_count() > 1:
            # Every device shows its host's.
            notes = np.array([[self._stop.signal, self._pace, time.monotonic() - self._saved]], np.float32)
            shape = (self._mesh.size, notes.shape[1])
            everywhere = NamedSharding(self._mesh, PartitionSpec(self._mesh.axis_names))
            notes_DxN = jax.make_array_from_callback(shape, everywhere, lambda _: notes)
            padded = window + window[-1:] * (WINDOW - len(window))  # one program for windows of any length
            window = _everywhere(self._mesh, padded, notes_DxN)
        self._previous, self._current = (steps, window), ([], [])
        return previous

    def _write(self, *windows: tuple[list[int], Any]) -> None:
        steps = [step for steps, _ in windows for step in steps]
        if not steps:
            return
        values: list[dict[str, np.ndarray]] = []
        for n, window in ((len(steps), jax.device_get(window)) for steps, window in windows if steps):
            if jax.process_count() > 1:
                window, (signal_number, pace, self._agreed_since_save) = window
                self._agreed_signal = self._agreed_signal or int(signal_number)
                window = [{name: v[i] for name, v in window.items()} for i in range(n)]
            values += window
        now = time.monotonic()
        seconds, self._clock = max(now - self._clock, 1e-9), now
        self._pace = seconds / len(steps)
        self.every = max(1, min(WINDOW, int(WINDOW_SECONDS / (self._pace if jax.process_count() == 1 else pace or 1))))
        speed = self._speed(len(steps), seconds)
        for k, (run, log) in enumerate(zip(self.pack.runs, self.logs)):
            if log.diverged:
                continue
            for step, value in zip(steps, values):
                if not math.isfinite(value["loss"][k]):
                    log.diverge(step)
                    break
                finite = {m: float(v[k]) for m, v in value.items() if math.isfinite(v[k])}
                log.add({"step": step, "tokens": step * run.tokens_per_step} | finite)
                self.losses[k] = float(value["loss"][k])
            else:
                log.add({"step": steps[-1]} | speed)

    def _speed(self, n_steps: int, seconds: float) -> dict[str, float]:
        """How fast the whole pack went, as `read_metrics` says."""
        rate = n_steps * sum(run.tokens_per_step for run in self.pack.runs) / seconds
        speed = {"tokens_per_second": round(rate), "input_stall": round(self._waited / seconds, 4)}
        self._waited = 0.0
        device = self._mesh.devices.flat[0]
        if known := chip(device.device_kind):
            speed["mfu"] = round(rate * model.flops_per_token(self.pack.model) / (self._mesh.size * known.flops), 4)
        if stats := [s for d in self._mesh.local_devices if (s := d.memory_stats())]:
            speed["memory_gib"] = round(max(s["peak_bytes_in_use"] for s in stats) / 2**30, 3)
        return speed


def _batches(pack: Pack, corpus: corpora.Corpus | None, start: int, sharding: NamedSharding) -> Iterator[jax.Array]:
    """Batches rows_KxBxT1 from step `start` on: every run in the order of its own seed, equal seeds read once. Of all
    this, what the devices of this host take."""
    K, B = len(pack.runs), pack.runs[0].train.batch_size
    if corpus is None:
        zeros_KxBx1 = put(np.zeros((K, B, 1), np.int32), sharding)
        while True:
            yield zeros_KxBx1
    shape = (K, B, corpus.train[0].shape[1])
    mine: dict[int, tuple[int, int, int]] = {}  # run -> seed, first and last row
    for runs, rows, _ in sharding.addressable_devices_indices_map(shape).values():
        first, last, _ = rows.indices(B)
        for k in range(K)[runs]:
            _, a, b = mine.get(k, (0, first, last))
            mine[k] = pack.runs[k].order_seed, min(a, first), max(b, last)
    readers = {key: corpora.batches(corpus, key[0], B, start, slice(*key[1:])) for key in set(mine.values())}
    try:
        while True:
            read = {key: next(reader) for key, reader in readers.items()}

            def part(index: tuple[slice, ...], read: dict[Any, np.ndarray] = read) -> np.ndarray:
                first, last, _ = index[1].indices(B)
                return np.stack([read[mine[k]][first - mine[k][1] : last - mine[k][1]] for k in range(K)[index[0]]])

            yield jax.make_array_from_callback(shape, sharding, part)
    finally:
        for reader in readers.values():
            reader.close()


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


@contextlib.contextmanager
def _full_memory_named(pack: Pack, mesh: jax.sharding.Mesh, remat: str) -> Iterator[None]:
    """What a device says that has no room, as InputError."""
    try:
        yield
    except jax.errors.JaxRuntimeError as e:
        if "RESOURCE_EXHAUSTED" not in str(e):
            raise
        m, shape = pack.model, " x ".join(str(n) for n in mesh.shape.values())
        raise InputError(
            f"{len(pack.runs)} runs of width {m.width} depth {m.depth} need more memory than a device has as {shape} "
            f"(pack x data x model) with remat {remat}: try --layout.remat full, a larger --layout.data or "
            "--layout.model, or smaller packs, --layout.runs, in a new --out"
        ) from e
