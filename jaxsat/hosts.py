"""Many processes as one job: how they find each other, agree, fail and end together.

Every process runs the same program. What one alone could decide (what it found on disk, what its user typed) goes
through `first`, `together` or `agree`, all of which every process must call in the same order; so they take the same
steps, and where one meets wrong input all end with its message. Alone, a process asks nobody.
"""

import json
import os
import signal
import sys
import threading
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from jaxsat.config import InputError

T = TypeVar("T")
_DAY = 86_400  # s


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
        thread = threading.Thread(target=jax.distributed.shutdown, daemon=True)
        thread.start()
        thread.join(None if code == 0 else 10)
    os._exit(code)


def together(f: Callable[[], T]) -> list[T]:
    """What `f` returns on each process, in their order: something that JSON can write. Raises InputError on all when it
    does on any."""
    try:
        found: Any = {"value": f()}
    except InputError as e:
        found = {"error": str(e)}
    everywhere = _exchange(found) if jax.process_count() > 1 else [found]
    for i, each in enumerate(everywhere):
        if "error" in each:
            raise InputError(each["error"] if i in (0, jax.process_index()) else f"host {i}: {each['error']}")
    return [each["value"] for each in everywhere]


def first(f: Callable[[], T]) -> T:
    """What `f` returns on process 0, which alone calls it. Raises InputError on all when it does there."""
    return together(lambda: f() if jax.process_index() == 0 else None)[0]


def one_after_the_other(f: Callable[[], T]) -> T:
    """`f` on process 0, then on all others, which may find what it has left on a disk that they share."""
    found: list[T] = []
    for mine in (jax.process_index() == 0, jax.process_index() > 0):
        together(lambda mine=mine: found.append(f()) if mine else None)
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


def _exchange(value: Any) -> list[Any]:
    """The values of all processes."""
    data = np.frombuffer(json.dumps(value).encode(), np.uint8)
    sizes = multihost_utils.process_allgather(np.int32(len(data)))
    padded = np.zeros(1 << int(sizes.max() - 1).bit_length(), np.uint8)  # few shapes, so few programs
    padded[: len(data)] = data
    return [json.loads(row[:n].tobytes()) for row, n in zip(multihost_utils.process_allgather(padded), sizes)]


def _whole(key: str) -> int | None:
    text = os.environ.get(key)
    if text and not text.isdigit():
        raise InputError(f"{key} = {text!r}: must be a whole number")
    return int(text) if text else None
