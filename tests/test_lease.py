"""A directory has one writer: who comes second is told who is there, and what is left by the dead is taken over."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from etils import epath

from jaxsat import lease
from jaxsat.config import InputError

HOLD = """
import sys, time
from etils import epath
from jaxsat import lease
lease.BEAT, lease.LEASE = 0.1, 1.0
with lease.held(epath.Path(sys.argv[1]), "train", (int(sys.argv[2]), int(sys.argv[3]))):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture(autouse=True)
def soon(monkeypatch):
    monkeypatch.setattr(lease, "BEAT", 0.1)
    monkeypatch.setattr(lease, "LEASE", 1.0)


@pytest.fixture
def out(tmp_path):
    return epath.Path(tmp_path / "out")


@pytest.fixture
def holder(out):
    """Another process that holds the lease of a share."""
    begun = []

    def hold(i: int = 1, n: int = 1) -> subprocess.Popen:
        p = subprocess.Popen([sys.executable, "-c", HOLD, str(out), str(i), str(n)], stdout=subprocess.PIPE, text=True)
        begun.append(p)
        assert p.stdout.readline() == "held\n"
        return p

    yield hold
    for p in begun:
        p.send_signal(signal.SIGCONT)
        p.kill()
        p.communicate()


def refused(out, *share) -> str:
    with pytest.raises(InputError) as e, lease.held(out, "train", share or (1, 1)):
        pass
    return str(e.value)


def test_a_second_writer_is_told_who_is_there(out, holder):
    p = holder()
    assert f"is written by process {p.pid} on " in refused(out)
    with lease.held(out, "measure"):  # beside it
        pass
    p.terminate()
    p.wait()
    with lease.held(out, "train"):
        assert json.loads((out / ".leases" / "train-1-of-1.json").read_text())["process"] == os.getpid()
        assert str(os.getpid()) in refused(out)
    assert list((out / ".leases").iterdir()) == []


def test_shares_of_as_many_go_together(out, holder):
    holder(2, 3)
    with lease.held(out, "train", (1, 3)):
        assert "--share" in refused(out, 2, 3)
        assert "is written by" in refused(out)
        assert "is written by" in refused(out, 1, 2)
    assert [p.name for p in (out / ".leases").iterdir()] == ["train-2-of-3.json"]


def test_what_a_killed_process_held_is_taken_at_once(out, holder, monkeypatch):
    p = holder()
    p.kill()
    p.wait()
    monkeypatch.setattr(lease, "LEASE", 100.0)
    began = time.monotonic()
    with lease.held(out, "train"):
        assert time.monotonic() - began < 5


def test_who_sleeps_loses_it_and_ends(out, holder):
    """A process of another machine, as far as can be told: only its beats say that it lives."""
    p = holder()
    p.send_signal(signal.SIGSTOP)
    with lease.held(out, "train"):
        p.send_signal(signal.SIGCONT)
        assert p.wait(timeout=20) == 2
        time.sleep(0.5)
        assert json.loads((out / ".leases" / "train-1-of-1.json").read_text())["process"] == os.getpid()


def test_a_holder_that_cannot_be_read_is_dead_when_it_does_not_beat(out):
    path = out / ".leases" / "train-1-of-1.json"
    path.parent.mkdir(parents=True)
    path.write_text("{")
    with lease.held(out, "train"):
        assert "process" in path.read_text()


def test_who_waits_gets_it_next(out, holder):
    p, told = holder(), []

    def waiting(who: str) -> None:
        told.append(who)
        p.terminate()

    with lease.held(out, "train", waiting=waiting):
        assert str(p.pid) in told[0]


def test_of_many_that_begin_at_once_one_holds_it(out):
    begun = [
        subprocess.Popen([sys.executable, "-c", HOLD, str(out), "1", str(n)], stdout=subprocess.PIPE,
                         stderr=subprocess.PIPE, text=True)
        for n in (1, 1, 2, 1)
    ]  # fmt: skip
    try:
        deadline = time.monotonic() + 60
        while sum(p.poll() is None for p in begun) > 1 and time.monotonic() < deadline:
            time.sleep(0.1)
        ended = [p for p in begun if p.poll() is not None]
    finally:
        for p in begun:
            p.kill()
        said = {p: p.communicate()[1] for p in begun}
    assert len(ended) >= 3 and all("is written by" in said[p] for p in ended)


def test_nothing_is_left_where_nothing_was(out):
    with pytest.raises(InputError, match="wrong"), lease.held(out, "train"):
        raise InputError("wrong")
    assert not out.exists()
    out.mkdir()
    with lease.held(out, "train"):
        (out / "sweep.json").write_text("{}")
    assert sorted(p.name for p in out.iterdir() if not p.name.startswith(".")) == ["sweep.json"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_directory_that_cannot_be_written_is_named(out):
    out.mkdir()
    os.chmod(out, 0o500)
    assert f"{out} cannot be written" in refused(out)


def test_where_a_file_is_in_the_way(tmp_path: Path):
    (tmp_path / "file").write_text("")
    assert "cannot be a folder: a file is in its place" in refused(epath.Path(tmp_path / "file"))
