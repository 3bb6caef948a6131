"""Real processes on this machine as the hosts of one job, to try on a laptop what will run on a pod:

    python -m launch.local --processes 4 --devices 2 -- jaxsat reproduce saturation

Process 0 writes to this terminal; of the others only what they say on stderr is shown, after their number. When one
dies the others are stopped, for they would wait for it, and all start again from the last complete step. Exit codes are
those of jaxsat: 2 (wrong input) and 130 (Ctrl-C) end the job; 75 (preempted) and all others start it again.
"""

import argparse
import contextlib
import ctypes
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from typing import IO

GRACE = 60.0  # s to save and end after a signal
_writing = threading.Lock()


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        "launch.local", description="Run a command as many processes of one JAX job on this machine's CPU."
    )
    parser.add_argument("--processes", type=_positive, default=2, help="processes (default: 2)")
    parser.add_argument("--devices", type=_positive, default=1, help="CPU devices of each process (default: 1)")
    parser.add_argument("--restarts", type=int, default=3, help="times to start again after a failure (default: 3)")
    parser.add_argument("command", nargs="+", help="after --: jaxsat and its arguments, or any other command")
    args = parser.parse_args(argv)
    if args.command[0] != "jaxsat" and not shutil.which(args.command[0]):
        _say(f"no program {args.command[0]}")
        return 2
    return run(args.command, args.processes, args.devices, args.restarts)


def run(command: Sequence[str], processes: int, devices: int = 1, restarts: int = 3) -> int:
    """Runs `command` as `processes` processes until all end well, some input is wrong or no restart is left; returns
    the exit code. Must be called in the main thread: it takes SIGINT and SIGTERM and passes them on."""
    command = [sys.executable, "-m", "jaxsat.cli", *command[1:]] if command[0] == "jaxsat" else list(command)
    with _signals() as signals:
        for restart in range(restarts + 1):
            code, what = _attempt(command, processes, devices, signals)
            if code in (0, 2, 130) or signals:
                break
            left = f"starting again from the last complete step (restart {restart + 1} of {restarts})"
            _say(f"{what}; {left if restart < restarts else f'giving up after {restarts} restarts'}")
    return code


def _attempt(command: list[str], processes: int, devices: int, signals: list[int]) -> tuple[int, str]:
    """(exit code of the job, what ended it)."""
    shared = {"JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{_free_port()}", "JAX_NUM_PROCESSES": str(processes)}
    shared |= {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(devices)}
    children: list[subprocess.Popen] = []
    passed_on, deadline = 0, None
    try:
        for i in range(processes):
            env = os.environ | shared | {"JAX_PROCESS_ID": str(i)}
            pipes = {"stdout": subprocess.DEVNULL if i else subprocess.PIPE, "stderr": subprocess.PIPE}
            # A group of its own: Ctrl-C at the terminal comes once, through us.
            child = subprocess.Popen(command, env=env, process_group=0, preexec_fn=_die_with_parent, **pipes)
            children.append(child)
        streams = [(children[0].stdout, sys.stdout, "")]
        streams += [(child.stderr, sys.stderr, f"[{i}] " if i else "") for i, child in enumerate(children)]
        readers = [threading.Thread(target=_forward, args=stream) for stream in streams]
        for reader in readers:
            reader.start()
        while None in [child.poll() for child in children]:
            for number in signals[passed_on:]:
                for child in children:
                    _send(child, signal.SIGKILL if passed_on else number)  # a second one does not wait
                passed_on, deadline = passed_on + 1, time.monotonic() + GRACE
            failed = [child.returncode for child in children if child.returncode]
            if failed and deadline is None:
                # Those that end by agreement come within seconds; those that wait for a dead process never.
                deadline = time.monotonic() + (GRACE if failed[0] in (2, 75, 130) else 1)
            if deadline is not None and time.monotonic() > deadline:
                break
            time.sleep(0.05)
        codes = [child.returncode for child in children]
    finally:
        for child in children:
            _send(child, signal.SIGKILL)
        for child in children:
            child.wait()
    for reader in readers:
        reader.join()
    return _verdict(codes)


def _verdict(codes: list[int | None]) -> tuple[int, str]:
    """(exit code of the job, what ended it), from the exit codes before the rest was killed. The death of one process
    makes others fail: a signal comes before an error, and what the user or the machine asked for before both."""
    for wanted in (2, 130, 75):
        if wanted in codes:
            return wanted, f"process {codes.index(wanted)} of {len(codes)} ended with exit code {wanted}"
    killed = [i for i, code in enumerate(codes) if code is not None and code < 0 and code != -signal.SIGABRT]
    for i in killed or [i for i, code in enumerate(codes) if code]:
        how = f"was killed by {signal.Signals(-codes[i]).name}" if codes[i] < 0 else f"ended with exit code {codes[i]}"
        return 1, f"process {i} of {len(codes)} {how}"
    return 0, ""


def _forward(lines: IO[bytes], to: IO[str], prefix: str) -> None:
    """Whole lines: those of two processes never mix."""
    for line in lines:
        if not line.startswith(b"[Gloo] Rank"):  # a line a process and group of devices that it joins
            with _writing:
                to.write(prefix + line.decode(errors="replace").removesuffix("\n") + "\n")
                to.flush()


def _send(child: subprocess.Popen, number: int) -> None:
    """To the process and all that it has started."""
    if child.poll() is None or number == signal.SIGKILL:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(child.pid, number)


@contextlib.contextmanager
def _signals() -> Iterator[list[int]]:
    """The signals that have come so far, instead of what they would do."""
    come: list[int] = []
    before = {s: signal.signal(s, lambda number, _: come.append(number)) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield come
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


_libc = ctypes.CDLL(None) if sys.platform == "linux" else None


def _die_with_parent() -> None:
    """Killed without a chance to stop its children, the supervisor leaves none behind (on Linux)."""
    if _libc:
        _libc.prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def _free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def _positive(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return int(text)


def _say(message: str) -> None:
    print(f"launch.local: {message}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
