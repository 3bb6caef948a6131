"""A signal ends the process in time also where no handler of Python gets its turn."""

import contextlib
import os
import select
import signal
import threading
import time
from collections.abc import Callable, Iterator

GRACE = 20.0  # s from a signal to the end of a process whose loop does not hear it; a preempted machine gives 30
_heard = threading.Event()


@contextlib.contextmanager
def watched(end: Callable[[int], None]) -> Iterator[None]:
    """Calls `end` with the number of a signal that no loop has heard for GRACE seconds, or at the second Ctrl-C.

    Handlers of Python wait for what runs in C++, a compilation of minutes, and a loop for its job; a thread does not.
    What it ends is only what a kill would end: all that is on disk is whole. In the main thread alone.
    """
    ours, theirs = os.pipe()
    os.set_blocking(theirs, False)
    _heard.clear()
    before = signal.set_wakeup_fd(theirs, warn_on_full_buffer=False)
    thread = threading.Thread(target=_watch, args=(ours, end), daemon=True)
    thread.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        os.close(theirs)  # the end of what the thread reads
        thread.join()
        os.close(ours)


def _watch(numbers: int, end: Callable[[int], None]) -> None:
    first, until = 0, None
    while True:
        left = None if until is None else max(0.0, until - time.monotonic())
        if select.select([numbers], [], [], left)[0]:
            if not (read := os.read(numbers, 1)):
                return
            if (number := read[0]) in (signal.SIGTERM, signal.SIGINT):
                until = time.monotonic() + (1.0 if first == number == signal.SIGINT else GRACE)
                first = first or number
        elif _heard.is_set():
            until = None
        else:
            end(first)
            return


def heard() -> None:
    """A loop has heard the signal: it ends at once, or saves, however long that takes."""
    _heard.set()
