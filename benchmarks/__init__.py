"""Ours against rivals. What is measured in a process of its own, as its users run it, is a `Worker`."""

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any


class Worker:
    """`python -m benchmarks.MODULE args`, which answers every line on its standard input by one line of JSON."""

    def __init__(self, module: str, *args: object, **env: str):
        command = [sys.executable, "-W", "ignore", "-m", f"benchmarks.{module}", *map(str, args)]
        pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self._process = subprocess.Popen(command, env=os.environ | env, **pipes)

    def ask(self, question: object = "") -> Any:
        print(question, file=self._process.stdin, flush=True)
        return json.loads(self._process.stdout.readline())

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate()


def questions() -> Iterator[str]:
    """The worker's side."""
    yield from map(str.strip, sys.stdin)


def answer(value: Any) -> None:
    print(json.dumps(value), flush=True)


def median_seconds(solvers: dict[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """Of each, over interleaved rounds."""
    seconds: dict[str, list[float]] = {name: [] for name in solvers}
    for _ in range(rounds):
        for name, solve in solvers.items():
            start = time.perf_counter()
            solve()
            seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(s) for name, s in seconds.items()}
