"""Many processes as one job: how they find each other, agree, fail and end together.

Every process runs the same program. What one alone could decide (what it found on disk, what its user typed) goes
through `first`, `together` or `agree`, all of which every process must call in the same order; so they take the same
steps, and where one meets wrong input all end with its message. Alone, a process asks nobody.

They ask through the key-value store of JAX's coordination service, which process 0 serves: no device and no program
takes part, so the devices are free while process 0 works for hours. A process that works is waited for however long,
as its heartbeats tell that it lives; one that has ended, or that does not come to where the others wait, is named.
"""

import atexit
import contextlib
import itertools
import json
import math
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import jax
from jax._src.distributed import global_state  # jax 0.10 to 0.12 have no public door; orbax goes through this one

from jaxsat.config import InputError, Preempted

T = TypeVar("T")
_DAY = 86_400  # s
PATIENCE = 3600  # s for all to come to one call; between two they take the same steps, minutes apart at most
_OF_PEERS = ("UNAVAILABLE", "ABORTED", "DEADLINE_EXCEEDED", "CANCELLED", "Gloo", "onnection", "eartbeat", "peer")
_calls = itertools.count()


def join() -> None:
    """Joins the other processes where the environment tells of them: JAX_COORDINATOR_ADDRESS (host:port of process 0),
    JAX_NUM_PROCESSES and JAX_PROCESS_ID; or JAXSAT_DISTRIBUTED=1, where JAX asks Cloud TPU, GKE or Slurm for the three.

    Raises InputError when not all have come after JAXSAT_JOIN_TIMEOUT seconds, 300 by default.
    """
    address, asked = os.environ.get("JAX_COORDINATOR_ADDRESS"), os.environ.get("JAXSAT_DISTRIBUTED", "0")
    if (address is None and asked in ("", "0")) or jax.distributed.is_initialized():
        return
    n, i = (_whole(key) for key in ("JAX_NUM_PROCESSES", "JAX_PROCESS_ID"))
    if address is not None and not address.rpartition(":")[2].isdigit():
        raise InputError(f"JAX_COORDINATOR_ADDRESS = {address!r}: must be host:port")
    if n is not None and i is not None and i >= n:
        raise InputError(f"JAX_PROCESS_ID = {i}: must be below JAX_NUM_PROCESSES = {n}")
    jax.config.update("jax_enable_preemption_service", False)  # it would take SIGTERM from Python, for good
    error: list[Exception] = []

    def connect() -> None:
        try:
            # After its own time-out JAX aborts the process (0.10.2), so ours comes first. At the end the others wait
            # for process 0, which still measures and reports; a process that dies is noticed by its heartbeat.
            jax.distributed.initialize(address, n, i, initialization_timeout=_DAY, shutdown_timeout_seconds=_DAY)
        except Exception as e:
            error.append(e)

    thread = threading.Thread(target=connect, daemon=True)  # in this one, Ctrl-C would wait for C++
    thread.start()
    seconds = _whole("JAXSAT_JOIN_TIMEOUT") or 300
    thread.join(seconds)
    who = f"process {i} of {n}" if i is not None and n is not None else "this process"
    if thread.is_alive():
        global _lost
        _lost = True
        where = f"the coordinator (process 0) at {address}" if address else "its coordinator (process 0)"
        problem = "the other processes have not come to" if i == 0 else "no connection to"
        raise InputError(f"{who}: {problem} {where} within {seconds} s; start all processes, with the same address")
    if error:
        raise InputError(
            f"{who} cannot join the others ({str(error[0]).splitlines()[0]}): set JAX_COORDINATOR_ADDRESS, "
            "JAX_NUM_PROCESSES and JAX_PROCESS_ID"
        )
    atexit.register(_say_left, "unknown")  # before JAX, then, waits for the others


_lost = False  # a connection is still tried: the process can only be left by os._exit


def leave(code: int, said: str = "") -> int:
    """Ends a process of many with the exit `code`, after the others and having `said` why on stderr; alone, returns it.

    After success it waits for the others, however long. After a failure, 10 s: those that fail with it have come by
    then, and the rest are beyond agreement (jax.distributed would wait for them, then abort, and the code be lost).
    """
    if not jax.distributed.is_initialized():
        return code
    print(said, end="", file=sys.stderr, flush=True)
    sys.stdout.flush()
    if not _lost:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, signal.SIG_DFL)
        thread = threading.Thread(target=_disconnect, args=(code,), daemon=True)
        thread.start()
        thread.join(None if code == 0 else 10)
    os._exit(code)


def _disconnect(code: int) -> None:
    _say_left(str(code))
    jax.distributed.shutdown()


def _say_left(code: str) -> None:
    with contextlib.suppress(jax.errors.JaxRuntimeError, AttributeError):  # the coordinator, or the client, is gone
        global_state.client.key_value_set(f"jaxsat/left/{global_state.process_id}", code)


def of_a_peer(e: RuntimeError) -> int:
    """The exit code where an error of the runtime is the end of another process: what that ended with, 75 where it
    could not say; 0 where it is an error of our own."""
    told = isinstance(e, jax.errors.JaxRuntimeError) and any(word in str(e) for word in _OF_PEERS)
    if not told or not jax.distributed.is_initialized():
        return 0
    until, others = time.monotonic() + 5, set(range(global_state.num_processes)) - {global_state.process_id}
    while time.monotonic() < until:  # one that fails says so within its last second
        for j in others:
            with contextlib.suppress(jax.errors.JaxRuntimeError, AttributeError):  # it has not left
                code = global_state.client.key_value_try_get(f"jaxsat/left/{j}")
                return int(code) if code.isdigit() and code != "0" else 1
        time.sleep(0.5)
    return 75


def together(f: Callable[[], T]) -> list[T]:
    """What `f` returns on each process, in their order: something that JSON can write. Raises InputError on all when it
    does on any.

    Where one of them ends instead, raises what it ended with (InputError, Preempted, KeyboardInterrupt, RuntimeError);
    RuntimeError too where one has not come within PATIENCE seconds, or is at another call.
    """
    return _together(f, _name(f))


def first(f: Callable[[], T]) -> T:
    """What `f` returns on process 0, which alone calls it. Raises InputError on all when it does there; see
    `together`."""
    return _together(f if global_state.process_id == 0 else lambda: None, _name(f))[0]


def one_after_the_other(f: Callable[[], T]) -> T:
    """`f` on process 0, then on all others, which may find what it has left on a disk that they share."""
    found: list[T] = []
    for mine in (global_state.process_id == 0, global_state.process_id > 0):
        _together(lambda mine=mine: found.append(f()) if mine else None, _name(f))
    return found[0]


def agree(config: Mapping[str, Any]) -> None:
    """Raises InputError on every process, with the key and both values, when two do not have the same `config`."""
    ours, *others = together(lambda: dict(config))
    for i, theirs in enumerate(others, start=1):
        for key in (*ours, *theirs):
            if ours.get(key) != theirs.get(key):
                raise InputError(
                    f"hosts disagree on {key}: {ours.get(key)!r} on host 0, {theirs.get(key)!r} on host {i}"
                )


def _name(f: Callable[..., Any]) -> str:
    """For messages: the function, or the one that a lambda is written in."""
    return f"{f.__module__}.{getattr(f, '__qualname__', repr(f))}".partition(".<locals>")[0]


def _together(f: Callable[[], T], what: str) -> list[T]:
    client, i, n = global_state.client, global_state.process_id, global_state.num_processes
    if client is None:
        return [f()]
    call = f"jaxsat/{(number := next(_calls))}"
    client.key_value_set(f"{call}/came/{i}", what)
    try:
        found: Any = {"value": f()}
    except InputError as e:
        found = {"error": str(e)}
    client.key_value_set(f"{call}/found/{i}", json.dumps(found))
    for j in range(n) if i == 0 else [0]:
        if (theirs := _wait(f"{call}/came/{j}", j, what, PATIENCE)) != what:
            raise RuntimeError(f"process {j} of {n} is at {theirs}, process {i} at {what}: all must be at the same")
    if i == 0:
        texts = [_wait(f"{call}/found/{j}", j, what) for j in range(n)]
        client.key_value_set(f"{call}/all", f"[{','.join(texts)}]")
        client.key_value_delete(f"jaxsat/{number - 1}/")  # all have come here, so none still reads it
    everywhere = json.loads(_wait(f"{call}/all", 0, what))
    for j, each in enumerate(everywhere):
        if "error" in each:
            raise InputError(each["error"] if j in (0, i) else f"host {j}: {each['error']}")
    return [each["value"] for each in everywhere]


def _wait(key: str, j: int, what: str, patience: float = math.inf) -> str:
    """The value that process j gives to a key within `patience` seconds. Every second signals are heard, and whether it
    still can."""
    client, who = global_state.client, f"process {j} of {global_state.num_processes}"
    code, until = None, time.monotonic() + patience
    while True:
        try:
            return client.blocking_key_value_get(key, 1000)
        except jax.errors.JaxRuntimeError as e:
            if "DEADLINE_EXCEEDED" not in str(e):
                raise
        if code is not None:  # since before this last look
            kind = {"2": InputError, "75": Preempted, "130": KeyboardInterrupt}.get(code, RuntimeError)
            raise kind(f"{who} has ended (exit code {code}); the others waited for it at {what}")
        if time.monotonic() > until:
            raise RuntimeError(f"{who} has not come to {what} within {patience} s: it does something else, or hangs")
        with contextlib.suppress(jax.errors.JaxRuntimeError):  # it has not left
            code = client.key_value_try_get(f"jaxsat/left/{j}")


def _whole(key: str) -> int | None:
    text = os.environ.get(key)
    if text and not text.isdigit():
        raise InputError(f"{key} = {text!r}: must be a whole number")
    return int(text) if text else None
