"""A study that is killed again and again ends in the numbers of one that never was.

JAXSAT_CHAOS_KILLS: how many times, 20 by default; 200 is what docs/reliability.md reports.
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

KILLS = int(os.environ.get("JAXSAT_CHAOS_KILLS", "20"))
EXPERIMENT = """
from jaxsat import DataConfig, ModelConfig, Run, Sweep, TrainConfig, product


def sweeps(scale):
    train = TrainConfig(steps=60, batch_size=4, warmup_steps=2, checkpoint_every=5)
    base = Run(ModelConfig(depth=1, width=8, heads=1, context=16, vocab_size=256), train,
               DataConfig(("words.txt",), heldout_tokens=256))
    return [Sweep("main", base, product({"model.width": [8, 16], "model.head_rank": [2, 4]}))]
"""
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    path = tmp_path_factory.mktemp("chaos")
    words = ["sun", "moon", "stars", "sea", "stone", "tree", "river", "and", "the", "of"]
    (path / "words.txt").write_text("\n".join(" ".join(np.random.default_rng(i).choice(words, 30)) for i in range(200)))
    (path / "small.py").write_text(EXPERIMENT)
    return path


def reproduce(home: Path, out: str, compiled: str) -> subprocess.Popen:
    env = os.environ | {"JAXSAT_CACHE": str(home / f"cache-{compiled}"), "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-m", "jaxsat.cli", "reproduce", "small.py", "--out", out]
    return subprocess.Popen(command, cwd=home, env=env, start_new_session=True, text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE)  # fmt: skip


@pytest.fixture(scope="module")
def quiet(home) -> Path:
    p = reproduce(home, "quiet", "quiet")
    _, said = p.communicate(timeout=600)
    assert p.returncode == 0, said
    return home / "quiet"


def numbers(out: Path) -> pd.DataFrame:
    rows = Directory.open(out).measurements()
    return rows[~rows["metric"].str.endswith("_latency")].reset_index(drop=True)


def assert_same(out: Path, quiet: Path) -> None:
    pd.testing.assert_frame_equal(numbers(out), numbers(quiet), check_exact=True)
    runs = Directory.open(quiet).runs
    assert set(Directory.open(out).runs) == set(runs)
    for id, run in runs.items():
        losses = [
            [line["loss"] for line in read_metrics(epath.Path(each) / "runs" / id) if "loss" in line]
            for each in (out, quiet)
        ]
        assert losses[0] == losses[1] and len(losses[0]) == run.train.steps
        ours, theirs = (load_run(each, id, run.train.steps)[1] for each in (out, quiet))
        jax.tree.map(np.testing.assert_array_equal, ours, theirs)
    assert list(check(out)) == []


def test_killed_at_any_moment_it_ends_in_the_same_numbers(home, quiet):
    """SIGKILL to the whole group of processes, after times that cover start-up, compiling, steps, saves, measures, the
    table and the report."""
    rng, killed, begun = random.Random(0), 0, 0
    while True:
        begun += 1
        assert begun < 3 * KILLS + 20, "it does not come to its end"
        p = reproduce(home, "killed", "killed")
        try:
            _, said = p.communicate(timeout=rng.uniform(0.5, 15.0) if killed < KILLS else 600)
        except subprocess.TimeoutExpired:
            os.killpg(p.pid, signal.SIGKILL)
            p.communicate()
            killed += 1
            continue
        assert p.returncode == 0, said
        if killed >= KILLS:
            break
        # It came to its end: what is made last goes, and is made again under fire.
        for path in (home / "killed").glob("checkpoints/*/60"):
            shutil.rmtree(path)
        for name in ("measurements", "report", "reports", "runs"):
            shutil.rmtree(home / "killed" / name)
    assert_same(home / "killed", quiet)


@pytest.mark.parametrize("what", ["truncated", "emptied", "deleted", "flipped"])
def test_every_file_of_a_checkpoint_in_turn(home, quiet, tmp_path, what):
    """The newest of a pack: training makes it again from the one before, and the numbers are those."""
    rng = random.Random(1)
    step = next((quiet / "checkpoints").glob("*/60"))
    for file in sorted(p.relative_to(quiet) for p in step.rglob("*") if p.is_file() and p.name != ".xxh3"):
        out = home / "damaged"
        shutil.rmtree(out, ignore_errors=True)
        shutil.copytree(quiet, out)
        for name in ("measurements", "report", "reports"):
            shutil.rmtree(out / name)
        content = (out / file).read_bytes()
        match what:
            case "truncated":
                (out / file).write_bytes(content[: len(content) // 2])
            case "emptied":
                (out / file).write_bytes(b"")
            case "deleted":
                (out / file).unlink()
            case "flipped" if content:
                place = rng.randrange(len(content))
                changed = bytes([content[place] ^ 1 << rng.randrange(8)])
                (out / file).write_bytes(content[:place] + changed + content[place + 1 :])
        if content or what == "deleted":
            assert list(check(out)), file
        for _ in range(2):  # what is found while it is measured is made again by the next command
            p = reproduce(home, "damaged", "quiet")
            _, said = p.communicate(timeout=600)
            assert p.returncode == 0, (file, said)
        pd.testing.assert_frame_equal(numbers(out), numbers(quiet), check_exact=True)
