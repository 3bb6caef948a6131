"""The supervisor of processes on one machine, with commands that need no JAX; tests/test_hosts.py has them train."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

LOCAL = [sys.executable, str(Path(__file__).parents[2] / "launch" / "local.py")]
SETUP = """
import os, signal, sys, time
i, attempt = os.environ["JAX_PROCESS_ID"], len(os.listdir("."))
pid = open(f"{i}.{attempt}.{os.getpid()}", "w")
while len(os.listdir(".")) // 2 == attempt // 2: time.sleep(0.01)  # until both are here
"""


def start(tmp_path: Path, script: str, *options: str) -> subprocess.Popen:
    """Two processes that note their pids, then run `script`."""
    command = [*LOCAL, "--processes", "2", *options, "--", sys.executable, "-c", SETUP + script]
    return subprocess.Popen(command, cwd=tmp_path, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def pids(tmp_path: Path) -> list[int]:
    return [int(p.name.split(".")[2]) for p in sorted(tmp_path.iterdir())]


def wait_for(tmp_path: Path, n: int) -> None:
    while len(pids(tmp_path)) < n:
        time.sleep(0.01)


def nobody_is_left(tmp_path: Path) -> bool:
    def gone(pid: int) -> bool:
        try:
            return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
        except FileNotFoundError:
            return True

    until = time.monotonic() + 5
    while time.monotonic() < until and not all(map(gone, pids(tmp_path))):
        time.sleep(0.01)
    return all(map(gone, pids(tmp_path)))


def test_all_have_the_same_coordinator_and_process_0_speaks(tmp_path):
    script = """
keys = ["JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_NUM_CPU_DEVICES", "JAX_PLATFORMS"]
print("[Gloo] Rank 0 is connected to 1 peer ranks.")
print("out of", i, flush=True)
print(*[os.environ[k] for k in keys], file=sys.stderr)
"""
    out, err = (job := start(tmp_path, script, "--devices", "3")).communicate()
    assert job.returncode == 0 and out == "out of 0\n"
    first, second = sorted(err.splitlines())
    assert second == "[1] " + first or first == "[1] " + second
    assert min(first, second, key=len).split()[1:] == ["2", "3", "cpu"]


def test_lines_of_two_processes_never_mix(tmp_path):
    script = """
for part in (b"half a line ", b"and the other\\n", b"an end"):
    os.write(2, part)
    time.sleep(0.1 if i == "0" else 0.15)
"""
    _, err = start(tmp_path, script).communicate()
    lines = ["an end", "half a line and the other"]
    assert sorted(err.splitlines()) == [*("[1] " + line for line in lines), *lines]


@pytest.mark.parametrize(
    "script, code, restarts, said",
    [
        ("sys.exit(2)", 2, 0, ""),
        ("if i == '1': sys.exit(2)\ntime.sleep(0.1)\nsys.exit(2)", 2, 0, ""),
        ("sys.exit(75)", 75, 2, "process 0 of 2 ended with exit code 75; giving up after 2 restarts"),
        ("if i == '1': sys.exit(3)\ntime.sleep(60)", 1, 2, "process 1 of 2 ended with exit code 3; giving up after 2"),
        (
            "if i == '1': os.kill(os.getpid(), signal.SIGKILL)\ntime.sleep(0.1)\nsys.exit(1)",
            1, 2, "process 1 of 2 was killed by SIGKILL; giving up after 2 restarts",
        ),
    ],
)  # fmt: skip
def test_what_ends_a_job_is_said_and_what_may_pass_is_tried_again(tmp_path, script, code, restarts, said):
    _, err = (job := start(tmp_path, script, "--restarts", "2")).communicate()
    assert job.returncode == code and said in err and len(err.splitlines()) == (restarts + 1 if said else 0)
    assert err.count("starting again from the last complete step (restart ") == restarts
    assert len(pids(tmp_path)) == 2 * (restarts + 1) and nobody_is_left(tmp_path)


def test_a_restart_that_goes_well_ends_the_job(tmp_path):
    _, err = (job := start(tmp_path, "sys.exit(75 * (attempt < 2))")).communicate()
    assert job.returncode == 0 and err.splitlines() == [
        "launch.local: process 0 of 2 ended with exit code 75; starting again from the last complete step (restart 1 "
        "of 3)"
    ]


@pytest.mark.parametrize("number, code", [(signal.SIGINT, 130), (signal.SIGTERM, 75)])
def test_signals_are_passed_on_and_end_the_job(tmp_path, number, code):
    script = f"""
signal.signal({int(number)}, lambda *_: (print("saved by", i, file=sys.stderr, flush=True), os._exit({code})))
open("ready" + i + ".." + str(os.getpid()), "w")
time.sleep(60)
"""
    job = start(tmp_path, script)
    wait_for(tmp_path, 4)
    job.send_signal(number)
    _, err = job.communicate()
    assert job.returncode == code and sorted(err.splitlines()) == ["[1] saved by 1", "saved by 0"]
    assert nobody_is_left(tmp_path)


def test_a_second_ctrl_c_does_not_wait(tmp_path):
    script = "signal.signal(2, lambda *_: open(f'asked{i}.. '.strip() + str(os.getpid()), 'w'))\nopen(f'ready{i}..' + "
    script += "str(os.getpid()), 'w')\nwhile True: time.sleep(1)"
    job = start(tmp_path, script)
    wait_for(tmp_path, 4)
    job.send_signal(signal.SIGINT)
    wait_for(tmp_path, 6)
    job.send_signal(signal.SIGINT)
    job.communicate()
    assert job.returncode != 0 and nobody_is_left(tmp_path)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process that its parent died")
def test_killed_itself_it_leaves_nobody(tmp_path):
    job = start(tmp_path, "time.sleep(60)")
    wait_for(tmp_path, 2)
    os.kill(job.pid, signal.SIGKILL)
    job.communicate()
    assert nobody_is_left(tmp_path)


def test_what_is_wrong_is_said():
    for wrong in (["--processes", "0", "--", "true"], ["--processes", "two", "--", "true"], []):
        job = subprocess.run([*LOCAL, *wrong], text=True, capture_output=True)
        assert job.returncode == 2 and "error: " in job.stderr
    job = subprocess.run([*LOCAL, "--", "no-such-program"], text=True, capture_output=True)
    assert (job.returncode, job.stderr) == (2, "launch.local: no program no-such-program\n")
