"""Checkpoints behind one door: orbax, one directory a pack, steps beneath it.

    DIR/checkpoints/<pack id>/<step>/{params, rest}

`params` is read alone by measurements; `rest` holds what training needs to go on, and is kept of few steps: see
`Retention`. The step's own metadata names its runs, the wall time spent, and the `checksums` of every array as the
devices held it, by which all that is read is verified. A step counts once it is complete; an interrupted save leaves a
temporary directory that is swept away, and the step before it restores. What is damaged is kept aside as
<step>.damaged, with the reason in why.txt.
"""

import contextlib
import functools
import gc
import json
import logging
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypedDict

import jax
import numpy as np
import tensorstore
import xxhash
from etils import epath
from orbax.checkpoint import path as orbax_path
from orbax.checkpoint import v1 as ocp

from jaxsat import hosts
from jaxsat.checksums import Checksums, checksums
from jaxsat.config import Imported, InputError, ModelConfig, Preempted, Run, from_dict
from jaxsat.disk import absolute, forget, in_bucket, is_noted, note_folder, read_json
from jaxsat.parallel import abstract_like
from jaxsat.sweep import Pack

logger = logging.getLogger(__name__)
_TEMPORARY = ".orbax-checkpoint-tmp"  # in the names of what is being saved
_LOUD = ("absl", "asyncio")  # orbax logs every error that it raises once more


class _Packed(TypedDict):
    """Of sweep.json what tells where a run is; `directory` has all of it."""

    packs: list[list[str]]
    runs: dict[str, dict[str, Any]]


def quiet() -> None:
    """For a process of ours alone, such as the command line: leaves out for good what orbax says of errors beside
    raising them.

    When one array cannot be read, orbax closes its event loops on the reads of all others: each of them would print a
    traceback of its own, thousands of lines in all. The reads in flight end in threads of tensorstore, which call back
    into a closed loop, and nothing of ours can wait for them: loops of an own policy that cancel what is left stay
    silent, but the inner ones are uvloop's (orbax 0.12.8, tried). So some come late, after our calls.
    """
    for name in _LOUD:
        logging.getLogger(name).setLevel(logging.CRITICAL)
    if getattr(sys.unraisablehook, "func", None) is not _not_of_late_reads:
        sys.unraisablehook = functools.partial(_not_of_late_reads, sys.unraisablehook)


@contextlib.contextmanager
def _one_error_only() -> Iterator[None]:
    """As `quiet`, around a call of ours: other people's loggers and hook are as they were when it ends."""
    levels, hook = {name: logging.getLogger(name).level for name in _LOUD}, sys.unraisablehook
    quiet()
    try:
        with warnings.catch_warnings(action="ignore", category=RuntimeWarning):  # coroutine was never awaited
            yield
    except KeyError:
        gc.collect()
        raise
    finally:
        sys.unraisablehook = hook
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)


def _not_of_late_reads(hook: Callable[[Any], None], unraisable: Any) -> None:
    code = getattr(unraisable.object, "cr_code", None)
    if not (code and "orbax" in code.co_filename or str(unraisable.exc_value) == "Event loop is closed"):
        hook(unraisable)


class Damaged(InputError):
    """A step that cannot be read, or is not what was saved."""

    def __init__(self, path: epath.Path, why: str):
        super().__init__(f"{path} cannot be read ({why}): remove it to do without it")
        self.why = why


@dataclass(frozen=True)
class Retention:
    """What stays when newer steps are saved; of the newest two all does, whichever they are.

    Orbax's own policies keep or delete whole steps: moments would stay with parameters, two thirds of all bytes.
    """

    steps: frozenset[int]  # their parameters
    whole: frozenset[int] = frozenset()  # all of these

    @staticmethod
    def of(pack: Pack, starts: Iterable[int] = ()) -> "Retention":
        """`starts`: steps from which other runs will start with its optimizer."""
        steps = frozenset(pack.runs[0].checkpoint_steps)
        return Retention(steps, steps if any(run.keep_optimizer for run in pack.runs) else frozenset(starts))


class Store:
    """The checkpoints of one pack: the runs `run_ids`, stacked on a leading axis K in this order.

    Without `run_ids`, those of whatever runs it holds. Only a `writable` one creates the directory and sweeps what
    interrupted saves left there; it keeps all steps, or what `retention` says. `steps` are the complete ones,
    ascending. Of many hosts all open it, save and read together; `alone`, this one reads without the others. Raises
    InputError when the directory holds the checkpoints of other runs, or things that are none.
    """

    def __init__(
        self,
        directory: epath.PathLike,
        run_ids: Sequence[str] | None = None,
        writable: bool = False,
        alone: bool = False,
        retention: Retention | None = None,
    ):
        self.directory = absolute(directory)
        self._retention = retention
        self.unreadable: dict[int, str] = {}
        self._together = (lambda f: [f()]) if alone else hosts.together
        first = (lambda f: f()) if alone else hosts.first
        first(lambda: self._check(writable))
        self._context = ocp.Context()
        if alone:
            this, among = jax.process_index(), self._context.multiprocessing
            among.primary_host, among.active_processes = this, {this}
            among.barrier_sync_key_prefix = f"{this} alone"
        self._thread = ThreadPoolExecutor(1)
        self._saving: Future[None] | None = None
        self.steps: list[int] = first(lambda: self._complete_steps(sweep=writable))
        abouts = (self._metadata(step)[1] for step in reversed(self.steps))
        owner = first(lambda: next((about["runs"] for about in abouts if about), None))
        self.run_ids = list(run_ids if run_ids is not None else owner or [])
        if owner not in (None, self.run_ids):
            raise InputError(
                f"{self.directory} holds checkpoints of other runs ({', '.join(owner)}): choose another directory"
            )

    def _check(self, writable: bool) -> None:
        try:
            if writable:  # a save would meet what is in the way only after minutes, in another thread
                self.directory.mkdir(parents=True, exist_ok=True)
            found = sorted(p.name for p in self.directory.iterdir()) if self.directory.exists() else []
        except (FileExistsError, NotADirectoryError):
            raise InputError(f"{self.directory} cannot be a folder: a file is in its place, move it away") from None
        if not found and not writable:
            raise InputError(f"no checkpoints in {self.directory}: train first")
        foreign = [name for name in found if _TEMPORARY not in name and ".damaged" not in name]
        if foreign and not any(name.isdigit() for name in foreign):
            raise InputError(
                f"{self.directory} holds no checkpoint but {', '.join(foreign[:5])}: "
                "move it away, or choose another directory"
            )

    def _complete_steps(self, sweep: bool) -> list[int]:
        """Ascending; `sweep` removes what interrupted saves left: on object storage a step without its last file."""
        steps = sorted(orbax_path.step.checkpoint_steps(self.directory)) if self.directory.exists() else []
        for path in self.directory.iterdir() if sweep and self.directory.exists() else ():
            if _TEMPORARY in path.name or path.name.isdigit() and int(path.name) not in steps:
                path.rmtree()
        for step in steps if sweep else ():  # of one that was killed before it had noted them
            if not is_noted(self.directory / str(step)):
                self._note(step)
        return steps

    @_one_error_only()
    def save(self, step: int, state: dict[str, Any], seconds: float) -> None:
        """Saves in the background; `state` may be donated at once. `seconds`: wall time spent so far.

        What goes wrong there is raised by the next save, or on closing.
        """
        self.close()
        parts = _parts(state)
        about = {"runs": self.run_ids, "seconds": seconds, "checksums": checksums(parts)}
        about |= {"checksum": _digest(about)}
        with self._context:
            saving = ocp.save_checkpointables_async(self.directory / str(step), parts, custom_metadata=about)
        older, self.steps = self.steps, sorted({*self.steps, step})
        if self._retention:
            self.steps = [s for s in self.steps if s in self._retention.steps | {*self.steps[-2:]}]
        self._saving = self._thread.submit(self._finish, saving, step, older)

    def _finish(self, saving: ocp.AsyncResponse[None], step: int, older: list[int]) -> None:
        saving.result()
        self._note(step)
        if self._retention and jax.process_index() == 0:
            for old in older:
                self._retain(old)

    def _retain(self, step: int) -> None:
        """Keeps of a step that is not among the newest two what `Retention` says. If this is killed the step is still
        whole to those who read it, and the next save does it again."""
        path = self.directory / str(step)
        if step not in self.steps:
            aside = self.directory / f"{step}{_TEMPORARY}"
            path.rename(aside)
            aside.rmtree()
        elif step not in self._retention.whole | {*self.steps[-2:]} and (rest := path / "rest").exists():
            forget(path, "rest")
            (rest / "_METADATA").unlink(missing_ok=True)  # without it orbax knows of no `rest`
            rest.rmtree()

    def _note(self, step: int) -> None:
        """The hashes of a step's files, for `disk.faults`; a bucket has its own, and what it holds is not fetched."""
        if jax.process_index() == 0 and not in_bucket(self.directory):
            note_folder(self.directory / str(step))

    def latest(self, abstract: dict[str, Any]) -> tuple[dict[str, Any], float] | None:
        """(state, seconds spent) of the newest step that can be read as `abstract`; None where there is none yet.

        Newer ones, which are damaged, are set aside, and logged; `unreadable` has their reasons. Raises InputError when
        all are from which training can go on, and when a checkpoint is of a model of other shapes.
        """
        for step in reversed(self.steps):
            if not self._goes_on(step):
                continue
            try:
                found = self._verified(step, _parts(abstract))
            except Damaged as e:
                self.unreadable[step] = e.why
                continue
            for damaged, why in self.unreadable.items():
                self.set_aside(damaged, why, f"going on from step {step}")
            return {"params": found["params"], **found["rest"]}, self._about(step)["seconds"]
        if self.unreadable:
            damage = "; ".join(f"step {s}: {why}" for s, why in self.unreadable.items())
            raise InputError(
                f"training cannot go on from any checkpoint in {self.directory} ({damage}): move it away to start fresh"
            )
        return None

    def _goes_on(self, step: int) -> bool:
        """Whether `rest` was kept of a step, as it is of the newest two, or has been damaged."""
        return step in self.steps[-2:] or hosts.first(lambda: self._stored(step).get("rest") is not None)

    def params(self, step: int, abstract: Any = None) -> Any:
        """The parameters of every run at `step`, as the ShapeDtypeStructs `abstract` (with shardings) say; by default
        as they are stored, on one device.

        Raises InputError when there is no such step, or it cannot be read.
        """
        self._complete(step)
        if abstract is None:
            abstract = abstract_like(self.shapes(step), jax.sharding.SingleDeviceSharding(jax.local_devices()[0]))
        return self._verified(step, {"params": abstract})["params"]

    def verify(self, step: int) -> None:
        """Reads all arrays of a step. Raises InputError for one that is not what was saved."""
        device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        with self._damage_named(step):
            self._about(step)
        for name, stored in self._stored(step).items():
            if name in ("params", "rest") and stored is not None:
                self._verified(step, {name: abstract_like(stored, device)})

    def set_aside(self, step: int, why: str, then: str) -> None:
        """Keeps a damaged step under another name, where nothing takes it for one; the first of many hosts does. `then`
        says what comes of it."""
        if jax.process_index() == 0:
            logger.warning("%s cannot be read (%s): %s", self.directory / str(step), why, then)
            n = sum(path.name.startswith(f"{step}.damaged") for path in self.directory.iterdir())
            aside = self.directory / (f"{step}.damaged" + (f"-{n + 1}" if n else ""))
            (self.directory / str(step)).rename(aside)
            (aside / "why.txt").write_text(why)
        self.steps.remove(step)

    def drop(self, step: int) -> None:
        """Removes a step; the first of many hosts does."""
        if jax.process_index() == 0:
            self._complete(step).rmtree()
        self.steps.remove(step)

    def shapes(self, step: int) -> Any:
        """Of the parameters of every run at `step`, as ShapeDtypeStructs. Raises InputError as `params` does."""
        self._complete(step)
        with self._damage_named(step):
            if (stored := self._stored(step).get("params")) is None:
                raise KeyError("params: no readable metadata")
            return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), stored)

    def state(self, step: int, abstract: dict[str, Any]) -> dict[str, Any]:
        """All that training needs to go on from `step`, as `abstract` says. Raises InputError as `params` does, and
        where the parameters alone were kept."""
        path = self._complete(step)
        if not self._goes_on(step):
            raise InputError(
                f"{path} has parameters alone: the optimizer is kept of the newest two checkpoints, of those from "
                "which runs of the study start with it, and of all of a run with keep_optimizer"
            )
        found = self._verified(step, _parts(abstract))
        return {"params": found["params"], **found["rest"]}

    @_one_error_only()
    def params_of(self, run_id: str, step: int) -> Any:
        """The parameters of one run at `step`, as they are stored, on one device. Of arrays that were written by
        several devices along axis K only this run's part is read.

        Raises InputError as `params` does, and for a run that is not here.
        """
        if run_id not in self.run_ids:
            raise InputError(f"{self.directory} holds no run {run_id}, only {', '.join(self.run_ids)}")
        k, path = self.run_ids.index(run_id), self._complete(step)
        device = jax.local_devices()[0]

        def opened(keys: tuple[Any, ...]) -> Any:
            name = jax.tree_util.keystr(keys, simple=True, separator=".")
            kvstore = {"driver": "ocdbt", "base": (path / "params").as_uri() + "/", "path": f"{name}/"}
            return tensorstore.open(
                {"driver": "zarr3", "kvstore": kvstore, "fill_missing_data_reads": False}, read=True
            )

        with self._damage_named(step):
            arrays = jax.tree.map_with_path(lambda keys, _: opened(keys), self.shapes(step))
            reads = jax.tree.map(lambda array: array.result()[k].read(), arrays)
            params = jax.tree.map(lambda read: jax.device_put(read.result(), device), reads)
            expected = {name: of_K[k : k + 1] for name, of_K in self._about(step)["checksums"].items()}
            _check_sums({"params": jax.tree.map(lambda x: x[None], params)}, expected)
            return params

    def _complete(self, step: int) -> epath.Path:
        if step not in self.steps:
            raise InputError(f"no checkpoint of step {step} in {self.directory}, only of {self.steps}")
        return self.directory / str(step)

    @contextlib.contextmanager
    def _damage_named(self, step: int) -> Iterator[None]:
        """KeyError of orbax and ValueError of tensorstore, as InputError."""
        try:
            yield
        except (KeyError, ValueError) as e:
            raise Damaged(self.directory / str(step), _reason(e)) from None

    def _stored(self, step: int) -> dict[str, Any]:
        """Trees of the shapes stored at a step; None for what is damaged."""
        return self._metadata(step)[0]

    def _about(self, step: int) -> dict[str, Any]:
        """What `save` noted beside the arrays; KeyError when that file is damaged."""
        if about := self._metadata(step)[1]:
            return about
        raise KeyError("no readable metadata")

    @_one_error_only()
    def _metadata(self, step: int) -> tuple[dict[str, Any], dict[str, Any]]:
        with self._context, contextlib.suppress(ocp.errors.InvalidLayoutError):  # no file that orbax begins with
            found = ocp.checkpointables_metadata(self.directory / str(step))
            about = dict(found.custom_metadata or {})
            if about.keys() == {"runs", "seconds"}:
                raise InputError(f"{self.directory} is of an earlier jaxsat, without checksums: choose another --out")
            return found.metadata, about if about.pop("checksum", None) == _digest(about) else {}
        return {}, {}

    def _verified(self, step: int, parts: dict[str, Any]) -> dict[str, Any]:
        """Arrays as they were saved. Raises Damaged, on all hosts when one of them cannot read its part."""
        found: dict[str, Any] = {}

        expected: Checksums = {}

        def read() -> str | None:
            try:
                found.update(self._read(step, parts))
                expected.update(self._about(step)["checksums"])
            except KeyError as e:
                return _reason(e)

        if why := next(filter(None, self._together(read)), None):
            raise Damaged(self.directory / str(step), why)
        with self._damage_named(step):
            _check_sums(found, expected)
        return found

    @_one_error_only()
    def _read(self, step: int, parts: dict[str, Any]) -> dict[str, Any]:
        """Raises KeyError when the step is damaged: orbax wraps in one whatever goes wrong."""
        stored = self._stored(step)
        for name in parts:
            if stored.get(name) is None:
                raise KeyError(f"{name}: no readable metadata")
        has, wants = (_shapes(tree["params"]) if "params" in parts else {} for tree in (stored, parts))
        if differing := sorted(key for key in has | wants if has.get(key) != wants.get(key)):
            key = differing[0]
            raise InputError(
                f"{self.directory} holds checkpoints of another model: {key} is {has.get(key)} there, not "
                f"{wants.get(key)}; choose another directory"
            )
        path = self.directory / str(step)
        with self._context:
            return {n: ocp.load_checkpointables(path, {n: part})[n] for n, part in parts.items()}

    @_one_error_only()
    def close(self) -> None:
        """Waits for the last save. Raises Preempted where orbax has given it up: storage hangs, or the clock of the
        day, by which it counts, has jumped."""
        if saving := self._saving:
            self._saving = None  # what it raises it raises once
            try:
                saving.result()
            except TimeoutError as e:
                raise Preempted(f"{self.directory}: a save was given up ({e}); the same command continues") from None

    def __enter__(self) -> "Store":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
        self._thread.shutdown()


def load_run(out: epath.PathLike, run_id: str, step: int) -> tuple[ModelConfig, Any]:
    """(configuration, parameters) of one run of an output directory at `step`, whatever pack it was trained in; of an
    imported series by its name too.

    On one device of this host, a factored head cut to the run's own rank. Raises InputError.
    """
    run, pack = find_run(out, run_id)
    with Store(epath.Path(out) / "checkpoints" / pack.id, alone=True) as store:
        return run.model, cut_head(run.model, store.params_of(run.id, step))


def finite(params: Any) -> bool:
    """Whether all parameters are numbers; after a run has diverged they are none."""
    return all(bool(np.isfinite(x).all()) for x in jax.tree.leaves(params))


def cut_head(config: ModelConfig, params: Any) -> Any:
    """The parameters of a run of a pack with a factored head cut from the pack's largest rank to the run's own."""
    if not config.head_rank:
        return params
    a_DxR, b_RxV = params["head"]["a"], params["head"]["b"]
    return params | {"head": params["head"] | {"a": a_DxR[:, : config.rank], "b": b_RxV[: config.rank]}}


def find_run(out: epath.PathLike, run_id: str) -> tuple[Run, Pack]:
    """A run of an output directory, or an imported series by its name, and its pack; from sweep.json, and where there
    is none, from the checkpoints. Raises InputError."""
    out = epath.Path(out)
    where, configs = out / "sweep.json", {}
    ids = {run_id, Run(imported=Imported(run_id)).id}
    if where.exists():
        found = read_json(where, _Packed, "a jaxsat sweep", "put it back as it was")
        configs = {id: found["runs"].get(id) for pack in found["packs"] if ids & {*pack} for id in pack}
    else:
        where = out / "runs"
        begun = (folder for folder in (out / "checkpoints").glob("*") if any(folder.iterdir()))
        for directory in sorted(begun):
            with Store(directory, alone=True) as store:
                if ids & {*store.run_ids}:
                    paths = {id: where / id / "config.json" for id in store.run_ids}
                    shape = dict[str, Any], "the configuration of a run", "put it back as it was"
                    configs = {id: read_json(path, *shape) for id, path in paths.items()}
    if configs:
        pack = Pack(tuple(from_dict(Run, config, f"{where}: run {id}") for id, config in configs.items()))
        if strange := next((id for id, run in zip(configs, pack.runs) if run.id != id), None):
            raise InputError(
                f"{where}: the configuration of run {strange} is not that of its id: put it back as it was"
            )
        return next(run for run in pack.runs if run.id in ids), pack
    raise InputError(f"{out} holds no checkpoint of run {run_id}")


def _parts(state: dict[str, Any]) -> dict[str, Any]:
    rest = {k: v for k, v in state.items() if k != "params"}
    return {"params": state["params"]} | ({"rest": rest} if rest else {})  # orbax saves nothing empty


def _check_sums(found: dict[str, Any], expected: Checksums) -> None:
    """Raises ValueError for an array that is not what was saved."""
    for name, sum_K in checksums(found).items():
        if sum_K != expected.get(name):
            raise ValueError(f"{name} is not what was saved")


def _digest(about: dict[str, Any]) -> str:
    return xxhash.xxh3_64_hexdigest(json.dumps(about, sort_keys=True).encode())


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="."): tuple(x.shape) for path, x in leaves}


def _reason(e: BaseException) -> str:
    while e.__cause__:
        e = e.__cause__
    return str(e.args[0] if e.args else e).splitlines()[0][:200]
