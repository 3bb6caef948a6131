"""A study that is killed again and again ends in the numbers of one that never was.

JAXSAT_CHAOS_KILLS: how many times, 20 by default.
"""

import os
import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pandas as pd
import pytest
from etils import epath

from jaxsat.check import check
from jaxsat.checkpoints import load_run
from jaxsat.directory import Directory
from jaxsat.train import read_metrics
from tests.chaos import small
from tests.chaos.small import numbers

KILLS = int(os.environ.get("JAXSAT_CHAOS_KILLS", "20"))
ROOT = Path(__file__).parents[2]
# Where a kill would hurt, and how often a quiet study passes there.
POINTS = {
    "jaxsat.checkpoints:Store.save": 26,
    "jaxsat.checkpoints:Store._finish": 26,
    "jaxsat.checkpoints:Store._retain": 200,
    "jaxsat.checkpoints:note_folder": 26,
    "jaxsat.checkpoints:forget": 20,
    "jaxsat.disk:_put": 500,
    "jaxsat.train.logs:RunLog.write": 52,
    "jaxsat.train.logs:Clock.write": 30,
    "jaxsat.lease:_Lease._written": 6,
    "jaxsat.measure.table:Writer.flush": 3,
    "jaxsat.report:write": 1,
}
KILLER = """
import functools, importlib, itertools, os, signal, sys

where, call, after = sys.argv[1], int(sys.argv[2]), sys.argv[3] == "after"
module, _, path = where.partition(":")
*owners, name = path.split(".")
owner = functools.reduce(getattr, owners, importlib.import_module(module))
function, calls = getattr(owner, name), itertools.count(1)


def killing(*args, **keys):
    ours = next(calls) == call
    if ours and not after:
        os.killpg(0, signal.SIGKILL)
    found = function(*args, **keys)
    if ours:
        os.killpg(0, signal.SIGKILL)
    return found


setattr(owner, name, killing)
from jaxsat import cli

sys.exit(cli.main(sys.argv[4:]))
"""
JUMPING = """
import sys, time

now, began = time.time, time.monotonic()
time.time = lambda: now() + [0.0, 1e7, -1e7][int(time.monotonic() - began) % 3]
from jaxsat import cli

sys.exit(cli.main(sys.argv[1:]))
"""
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    path = tmp_path_factory.mktemp("chaos")
    small.write(path, steps=60, every=5, width=[8, 16])
    return path


def start(home: Path, out: Path | str, compiled: str, *python: str) -> subprocess.Popen:
    """`reproduce` in a session of its own."""
    env = os.environ | {
        "JAXSAT_CACHE": str(home / f"cache-{compiled}"),
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": str(ROOT),
    }
    command = [sys.executable, *(python or ("-m", "jaxsat.cli")), "reproduce", "small.py", "--out", str(out)]
    return subprocess.Popen(command, cwd=home, env=env, start_new_session=True, text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE)  # fmt: skip


def finish(home: Path, out: Path | str, compiled: str, *python: str) -> tuple[int, str]:
    p = start(home, out, compiled, *python)
    _, said = p.communicate(timeout=900)
    return p.returncode, said


@pytest.fixture(scope="module")
def quiet(home) -> Path:
    code, said = finish(home, "quiet", "quiet")
    assert code == 0, said
    return home / "quiet"


def assert_same(out: Path, quiet: Path, rtol: float = 0.0) -> None:
    within = dict(rtol=1e-3, atol=1e-4) if rtol else dict(check_exact=True)
    pd.testing.assert_frame_equal(numbers(out), numbers(quiet), **within)
    runs = Directory.open(quiet).runs
    assert set(Directory.open(out).runs) == set(runs)
    for id, run in runs.items():
        losses = [
            [line["loss"] for line in read_metrics(epath.Path(each) / "runs" / id) if "loss" in line]
            for each in (out, quiet)
        ]
        assert len(losses[0]) == run.train.steps
        np.testing.assert_allclose(*losses, rtol=rtol)
        ours, theirs = (load_run(each, id, run.train.steps)[1] for each in (out, quiet))
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=rtol, atol=rtol), ours, theirs)
    assert list(check(out)) == []


def again(out: Path) -> None:
    """Removes of a finished study what is made last."""
    for path in out.glob("checkpoints/*/60"):
        shutil.rmtree(path)
    for name in ("measurements", "report", "reports"):
        shutil.rmtree(out / name, ignore_errors=True)


def test_killed_at_any_moment_it_ends_in_the_same_numbers(home, quiet):
    """SIGKILL to the whole group of processes, after times that cover start-up, compiling, steps, saves, measures, the
    table and the report, and by turns at a point that hurts."""
    rng, killed, begun = random.Random(0), 0, 0
    while True:
        begun += 1
        assert begun < 3 * KILLS + 20, "it does not come to its end"
        at_point: tuple[str, ...] = ()
        if killed % 2 and killed < KILLS:
            point = rng.choice(list(POINTS))
            call = str(rng.randint(1, POINTS[point]))
            at_point = ("-c", KILLER, point, call, rng.choice(["before", "after"]))
        p = start(home, "killed", "killed", *at_point)
        try:
            _, said = p.communicate(timeout=rng.uniform(0.5, 15.0) if killed < KILLS and not at_point else 900)
        except subprocess.TimeoutExpired:
            os.killpg(p.pid, signal.SIGKILL)
            p.communicate()
            killed += 1
            continue
        if at_point and p.returncode == -signal.SIGKILL:
            killed += 1
            continue
        assert p.returncode == 0, said
        if killed >= KILLS:
            break
        again(home / "killed")
    print(f"{killed} kills in {begun} launches")
    assert_same(home / "killed", quiet)


def test_four_processes_killed_at_any_moment(home, quiet):
    """To 1e-5: other devices sum in another order."""
    rng, killed, four = random.Random(2), 0, ("-m", "launch.local", "--processes", "4", "--", "jaxsat")
    while True:
        p = start(home, "four", "four", *four)
        try:
            _, said = p.communicate(timeout=rng.uniform(10.0, 60.0) if killed < max(1, KILLS // 20) else 1800)
        except subprocess.TimeoutExpired:
            os.killpg(p.pid, signal.SIGKILL)
            p.communicate()
            killed += 1
            continue
        assert p.returncode == 0, said
        break
    assert_same(home / "four", quiet, rtol=1e-5)


def test_clocks_that_jump(home, quiet):
    """By a third of a year each second. Orbax gives up a save in which one does: 75, and the same command goes on."""
    for _ in range(20):
        code, said = finish(home, "jumping", "quiet", "-c", JUMPING)
        assert code == 0 or code == 75 and "a save was given up" in said, said
        if code == 0:
            break
    assert_same(home / "jumping", quiet)


@pytest.fixture
def small_disk(tmp_path):
    def sized(options: str) -> None:
        remount = "remount," if os.path.ismount(disk) else ""
        subprocess.run(
            ["mount", "-t", "tmpfs", "-o", remount + options, "tmpfs", disk], check=True, capture_output=True
        )

    disk = tmp_path / "disk"
    disk.mkdir()
    try:
        sized("size=100k")
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("may not mount a small file system here")
    yield disk, sized
    subprocess.run(["umount", str(disk)], check=True)


def test_a_disk_that_is_full_at_every_stage(home, quiet, small_disk):
    """A little larger each time, until all is done: nothing is lost in between."""
    (disk, sized), size, stages = small_disk, 100, set()
    while True:
        code, said = finish(home, disk / "out", "quiet")
        if code == 0:
            break
        assert code == 2 and "no space left" in said.lower() and "Traceback" not in said, said
        stages.add(len(list((disk / "out").glob("*"))))
        size = round(size * 1.3)
        sized(f"size={size}k")
    assert len(stages) > 1
    assert_same(disk / "out", quiet)


def test_a_directory_made_read_only(home, quiet, small_disk):
    """In the middle of a study: it is said, what reads still reads, and it goes on when it may."""
    disk, sized = small_disk
    sized("size=50m")
    shutil.copytree(quiet, disk / "out")
    again(disk / "out")
    sized("ro")
    code, said = finish(home, disk / "out", "quiet")
    assert code == 2 and said.count("\n") == 1 and "Read-only file system" in said, said
    assert list(check(disk / "out")) == []
    sized("rw")
    assert finish(home, disk / "out", "quiet")[0] == 0
    assert_same(disk / "out", quiet)
    sized("ro")  # finished: nothing is to be written
    code, said = finish(home, disk / "out", "quiet")
    assert code == 0, said
