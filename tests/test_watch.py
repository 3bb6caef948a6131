"""Signals while the main thread is in C++, where no handler of Python is called."""

import os
import signal
import subprocess
import sys
import textwrap

import pytest

PROGRAM = """
import hashlib, os, signal, sys, time
from jaxsat import watch

watch.GRACE = 1.5
signal.signal(signal.SIGTERM, lambda *_: None)
signal.signal(signal.SIGINT, lambda *_: None)
in_c = lambda seconds: hashlib.pbkdf2_hmac("sha256", b"", b"", int(seconds * 2e6))


def end(number):
    os.write(1, f"ended by {number}".encode())
    os._exit(75)


with watch.watched(end):
    print("here", flush=True)
"""


def run(body: str, *numbers: int) -> tuple[int, str]:
    command = [sys.executable, "-c", PROGRAM + textwrap.indent(textwrap.dedent(body), "    ")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "here\n"
        for number in numbers:
            process.send_signal(number)
        said, _ = process.communicate(timeout=60)
    return process.returncode, said


@pytest.mark.parametrize(
    "body, numbers, expected",
    [
        ("in_c(60)", [signal.SIGTERM], (75, "ended by 15")),
        ("in_c(60)", [signal.SIGINT], (75, "ended by 2")),
        ("time.sleep(0.5)", [signal.SIGTERM], (0, "")),  # it ended itself in time
        ("time.sleep(1); watch.heard(); time.sleep(3)", [signal.SIGTERM], (0, "")),  # it saves, however long
        ("time.sleep(0.5)", [signal.SIGWINCH], (0, "")),
    ],
)
def test_what_no_loop_hears_ends_the_process(body, numbers, expected):
    assert run(body, *numbers) == expected


def test_a_second_interrupt_does_not_wait():
    body = "watch.GRACE = 50; os.kill(os.getpid(), signal.SIGINT); time.sleep(0.3); os.kill(os.getpid(), signal.SIGINT)"
    assert run(body + "; in_c(60)") == (75, "ended by 2")


def test_the_wakeup_of_others_is_theirs_again():
    from jaxsat.watch import watched

    ours, theirs = os.pipe()
    os.set_blocking(theirs, False)
    before = signal.set_wakeup_fd(theirs)
    with watched(lambda number: None):
        pass
    assert signal.set_wakeup_fd(before) == theirs
    os.close(ours)
    os.close(theirs)
