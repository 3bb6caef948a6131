"""One writer: a lease that a job holds on what it writes, on local disks, NFS and object storage alike.

    DIR/.leases/<kind>-<i>-of-<n>.json      who writes: host, process, since when, and beats: it lives

A lease is written only where it still is what was read (conditional writes of tensorstore, by generation), so two
cannot both take it, and nothing is renamed. Its holder writes it anew every BEAT seconds. One that has not for LEASE
seconds, by the clock of who looks, or whose process is no more on this machine, is dead, and is taken over; were its
holder only asleep, it finds that and ends.
"""

import contextlib
import json
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator

import tensorstore
from etils import epath

from jaxsat import hosts
from jaxsat.config import InputError
from jaxsat.disk import absolute

BEAT, LEASE = 2.0, 30.0  # s
FOLDER = ".leases"


@contextlib.contextmanager
def held(
    out: epath.Path, kind: str, share: tuple[int, int] = (1, 1), waiting: Callable[[str], None] | None = None
) -> Iterator[None]:
    """Holds the lease of a `kind` of job on an output directory; of many hosts the first one does. Other shares of as
    many jobs are no other writers.

    Raises InputError that names who holds it, within seconds; where `waiting` is given it is told that instead, and
    the lease waited for.
    """
    taken: list[_Lease] = []
    hosts.first(lambda: taken.append(_taken(out, kind, share, waiting)))
    try:
        yield
    finally:
        for lease in taken:
            lease.release()


def _taken(out: epath.Path, kind: str, share: tuple[int, int], waiting: Callable[[str], None] | None) -> "_Lease":
    there = out.exists()
    store = tensorstore.KvStore.open(f"{(absolute(out) / FOLDER).as_uri()}/").result()
    own, n = "{}-{}-of-{}.json".format(kind, *share), f"-{share[1]}.json"
    while True:
        lease, other = _Lease.take(store, own, out, there), own
        if lease:
            # First its own, then a look at the others: of two that begin at once none overlooks the other.
            keys = [key.decode() for key in store.list().result()]
            against = [key for key in keys if key.startswith(f"{kind}-") and not key.endswith(n)]
            other = next((key for key in against if _unheld(store, key) is None), None)
            if other is None:
                return lease
            lease.release()
        who = _who(store, other)
        if waiting is None:
            raise InputError(
                f"{out} is written by {who}: wait for it or stop it; jobs that are to share the work need each its own "
                "--share"
            )
        waiting(f"waiting for {who}")
        time.sleep(BEAT)


class _Lease:
    """One that this process holds."""

    def __init__(self, store: tensorstore.KvStore, key: str, generation: bytes, out: epath.Path, there: bool):
        self._since, self._beats = time.strftime("%Y-%m-%d %H:%M:%S %Z"), 0
        self._store, self._key, self._generation = store, key, generation
        self._out, self._there = out, there
        self._end, self._thread = threading.Event(), threading.Thread(target=self._live, daemon=True)

    @classmethod
    def take(cls, store: tensorstore.KvStore, key: str, out: epath.Path, there: bool) -> "_Lease | None":
        """None where another holds it. `there`: whether the directory was before anybody asked."""
        if (generation := _unheld(store, key)) is None:
            return None
        lease = cls(store, key, generation, out, there)
        try:
            if not lease._written():
                return None
        except ValueError as e:
            if "Not a directory" in str(e):
                raise InputError(f"{out} cannot be a folder: a file is in its place, move it away") from None
            raise InputError(f"{out} cannot be written ({str(e).splitlines()[0]:.200}): choose another --out") from None
        lease._thread.start()
        return lease

    def _written(self) -> bool:
        """False where another has written it."""
        me = {"host": socket.gethostname(), "process": os.getpid(), "since": self._since}
        text = json.dumps(me | {"beats": self._beats}).encode()
        wrote = self._store.write(self._key, text, if_equal=self._generation).result().generation
        if not wrote:  # also where a bucket has taken it, and the answer was lost
            now = self._store.read(self._key).result()
            wrote = now.stamp.generation if now.value == text else b""
        self._generation = wrote or self._generation
        return bool(wrote)

    def _live(self) -> None:
        while not self._end.wait(BEAT):
            self._beats += 1
            with contextlib.suppress(ValueError):  # storage that is away for a while
                if not self._written():
                    where = self._out / FOLDER / self._key
                    print(f"jaxsat: this process slept, and another holds {where} now", file=sys.stderr, flush=True)
                    os._exit(2)

    def release(self) -> None:
        self._end.set()
        self._thread.join()
        with contextlib.suppress(ValueError):
            self._store.write(self._key, None, if_equal=self._generation).result()
        if not self._there:  # nothing came of it
            for folder in (self._out / FOLDER, self._out):
                with contextlib.suppress(OSError, ValueError):  # not empty
                    folder.rmdir()


def _unheld(store: tensorstore.KvStore, key: str) -> bytes | None:
    """The generation of a lease that nobody holds; None where one does. After some seconds at most where it is held,
    or its holder was on this machine; else after LEASE."""
    first = store.read(key).result()
    if not first.value or _is_dead(first.value):
        return first.stamp.generation
    began = time.monotonic()
    while time.monotonic() < began + LEASE:
        time.sleep(BEAT / 4)
        now = store.read(key).result()
        if now.stamp.generation != first.stamp.generation:
            return None if now.value else now.stamp.generation
    return first.stamp.generation


def _is_dead(holder: bytes) -> bool:
    """Whether the process was on this machine, and is no more."""
    try:
        found = json.loads(holder)
        if found["host"] == socket.gethostname():
            os.kill(found["process"], 0)
    except ProcessLookupError:
        return True
    except (PermissionError, ValueError, KeyError, TypeError, OverflowError):  # alive; or damaged, which time will tell
        pass
    return False


def _who(store: tensorstore.KvStore, key: str) -> str:
    try:
        found = json.loads(store.read(key).result().value)
        return f"process {found['process']} on {found['host']}, since {found['since']}"
    except (ValueError, KeyError, TypeError):
        return f"the holder of {key}"
