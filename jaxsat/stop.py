"""How every stage ends early: after the job under way, with all kept, and on all hosts at the same place."""

import signal
import threading
from typing import Any

from jaxsat import hosts
from jaxsat.config import Preempted
from jaxsat.watch import heard


class Stop:
    """Notes SIGTERM and Ctrl-C instead of dying of them: a preempted machine gives about 30 s to save, and an exception
    inside a save would leave a thread of orbax that keeps the process for 5 minutes. A second Ctrl-C does not wait. A
    signal too late for the loop to see is raised on leaving, on all hosts; `where` says what had been reached then."""

    def __init__(self, where: str):
        self.signal, self._where = 0, where

    def __enter__(self) -> "Stop":
        self._before: dict[int, Any] = {}
        if threading.current_thread() is threading.main_thread():
            self._before = {s: signal.signal(s, self._note) for s in (signal.SIGTERM, signal.SIGINT)}
        return self

    def _note(self, number: int, _: object) -> None:
        if self.signal == number == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal = number

    def check(self) -> None:
        """Raises Preempted after SIGTERM and KeyboardInterrupt after Ctrl-C of any host. All hosts must call it."""
        if number := max(hosts.together(lambda: self.signal)):
            self.signal = 0
            heard()
            raise stopped(number, self._where)

    def __exit__(self, error: object, *_: object) -> None:
        for number, before in self._before.items():
            signal.signal(number, before)
        if error is None:
            self.check()


def stopped(number: int, where: str) -> BaseException:
    message = f"{where}; the same command continues from there"
    return KeyboardInterrupt(message) if number == signal.SIGINT else Preempted(message)
