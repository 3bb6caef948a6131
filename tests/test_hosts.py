"""Real processes on this machine, one JAX job: what they agree on, and what they train."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from jaxsat.checkpoints import Store
from jaxsat.config import InputError, dumps
from jaxsat.hosts import agree, first, join, leave, one_after_the_other, together
from jaxsat.measure import table
from jaxsat.sweep import Pack
from jaxsat.train import read_metrics

ROOT = Path(__file__).parents[1]
MINE = (ROOT / "tests" / "mine.py").read_text()
CHILD = """
import json, os, sys, time
from pathlib import Path
from etils import epath
from jaxsat import corpus, hosts, parallel
from jaxsat.config import Layout, Run, from_dict
from jaxsat.corpus import prepare
from jaxsat.sweep import Pack
from jaxsat.train import Preempted, train_pack

out, layouts, *runs = sys.argv[1:]
parallel.start()
runs = [from_dict(Run, json.loads(run)) for run in runs]
i = os.environ["JAX_PROCESS_ID"]
attempt = len(list(Path(out).glob(f"pid{i}.*")))
(Path(out) / f"pid{i}.{attempt}").write_text(str(os.getpid()))
code, batches = 0, corpus.batches


def noted(data, seed, batch_size, start, rows):
    with (Path(out) / f"rows{i}.{attempt}").open("a") as f:
        print(seed, rows.start, rows.stop, file=f)
    return batches(data, seed, batch_size, start, rows)


corpus.batches = noted
try:
    data = hosts.one_after_the_other(lambda: prepare(runs[0].data, runs[0].model.vocab_size, runs[0].model.context))
    slowly = lambda step, losses: time.sleep(0.3)
    train_pack(Pack(tuple(runs)), data, epath.Path(out), slowly, Layout(**json.loads(layouts)[attempt]))
except Preempted as e:
    code = 75
    print(e, file=sys.stderr)
hosts.leave(code)
"""


@pytest.fixture
def environment(tiny_corpus) -> dict[str, str]:
    ours = {"XLA_FLAGS": "--xla_backend_optimization_level=0"}  # compiles in half the time
    return os.environ | ours | {"JAXSAT_CACHE": str(tiny_corpus.tokenizer.parents[2])}


def start(environment, command, processes=2, restarts=0) -> subprocess.Popen:
    options = ["--processes", str(processes), "--restarts", str(restarts), "--"]
    launch = [sys.executable, "-m", "launch.local", *options, sys.executable, "-c", *command]
    return subprocess.Popen(launch, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def train(environment, pack: Pack, out: Path, *layouts: dict, **job) -> subprocess.Popen:
    """In the first of the layouts, and in the next after each restart."""
    command = [CHILD, str(out), json.dumps(layouts), *map(dumps, pack.runs)]
    return start(environment, command, restarts=len(layouts) - 1, **job)


def strike(job: subprocess.Popen, out: Path, attempt: int, number: int, step: int) -> None:
    """Sends a signal to process 1 once the checkpoint of `step` is complete."""
    while job.poll() is None and not any(out.glob(f"checkpoints/*/{step}")):
        time.sleep(0.01)
    os.kill(int((out / f"pid1.{attempt}").read_text()), number)


def assert_same(out, expected, pack: Pack, of: Pack) -> None:
    """The losses of every step and the parameters at the end, against the runs with the same ids of another pack."""
    for run in pack.runs:
        ours, theirs = (
            [line["loss"] for line in read_metrics(directory / "runs" / run.id) if "loss" in line]
            for directory in (out, expected)
        )
        np.testing.assert_allclose(ours, theirs, rtol=1e-5)
    with Store(out / "checkpoints" / pack.id) as store, Store(expected / "checkpoints" / of.id) as other:
        ks = [of.runs.index(run) for run in pack.runs]
        jax.tree.map(
            lambda x, y: np.testing.assert_allclose(x, y[ks, ...], atol=1e-5), store.params(60), other.params(60)
        )


def test_hosts_train_what_one_does_whatever_befalls_them(environment, trained, tiny_pack, tmp_path):
    """Runs over hosts until one is preempted, rows and parameters over them until one is killed, then runs again."""
    pack = Pack(tiny_pack.runs[:2])
    with train(environment, pack, tmp_path, {"pack": 2}, {"data": 2}, {"pack": 2}) as job:
        strike(job, tmp_path, 0, signal.SIGTERM, 4)
        strike(job, tmp_path, 1, signal.SIGKILL, 40)
        _, said = job.communicate()
    assert job.returncode == 0, said
    stopped = sorted(line for line in said.splitlines() if "stopped at step" in line)
    assert len(stopped) == 2 and stopped[0] == "[1] " + stopped[1], said
    again = "starting again from the last complete step"
    assert f"ended with exit code 75; {again} (restart 1 of 2)" in said
    assert f"process 1 of 2 was killed by SIGKILL; {again} (restart 2 of 2)" in said
    assert_same(tmp_path, trained, pack, tiny_pack)
    read = lambda i, attempt: sorted((tmp_path / f"rows{i}.{attempt}").read_text().splitlines())
    assert [read(0, 0), read(1, 0)] == [["0 0 8"], ["1 0 8"]], "of each batch its own runs"
    assert [read(0, 1), read(1, 1)] == [["0 0 4", "1 0 4"], ["0 4 8", "1 4 8"]], "of each batch its own rows"


AGREE = """
import json, os, sys
from pathlib import Path
from jaxsat import hosts, parallel
from jaxsat.config import InputError

parallel.start()
i, said = int(os.environ["JAX_PROCESS_ID"]), {}


def attempt(f):
    try:
        return f()
    except InputError as e:
        return str(e)


def fail():
    if i == 1:
        raise InputError("no file mine.py")


seen = Path(sys.argv[1]) / "seen"
said["together"] = hosts.together(lambda: "x" * 10**i)
said["first"] = hosts.first(lambda: os.environ["JAX_PROCESS_ID"])
said["failed"] = attempt(lambda: hosts.together(fail))
said["in turn"] = hosts.one_after_the_other(lambda: (seen.exists(), seen.touch())[0])
said["same"] = attempt(lambda: hosts.agree({"train.steps": 60, "seed": 0}))
said["differ"] = attempt(lambda: hosts.agree({"seed": 0, "train.steps": 60 + i}))
said["missing"] = attempt(lambda: hosts.agree({"seed": 0} if i else {}))
(Path(sys.argv[1]) / f"said{i}").write_text(json.dumps(said))
hosts.leave(3 if i else 0)
"""


def test_what_one_finds_all_know(environment, tmp_path):
    with start(environment, [AGREE, str(tmp_path)]) as job:
        _, stderr = job.communicate()
    assert "process 1 of 2 ended with exit code 3; giving up after 0 restarts" in stderr and job.returncode == 1
    said = [json.loads((tmp_path / f"said{i}").read_text()) for i in range(2)]
    assert [s.pop("failed") for s in said] == ["host 1: no file mine.py", "no file mine.py"]
    assert [s.pop("in turn") for s in said] == [False, True]
    assert (
        said[0]
        == said[1]
        == {
            "together": ["x", "x" * 10],
            "first": "0",
            "same": None,
            "differ": "hosts disagree on train.steps: 60 on host 0, 61 on host 1",
            "missing": "hosts disagree on seed: None on host 0, 0 on host 1",
        }
    )


WAITING = """
import os, sys, time
from jaxsat import hosts
from jaxsat.config import InputError, Preempted

hosts.join()
hosts.PATIENCE = 1.5
i, code = os.environ["JAX_PROCESS_ID"], 0


def work():
    if i == "0":
        time.sleep(4)
    return i


def last():
    return hosts.together(lambda: i)


def ends(code):
    if i == "1":
        sys.exit(hosts.leave(code))


try:
    exec(sys.argv[1])
except (InputError, Preempted, RuntimeError, KeyboardInterrupt) as e:
    print(type(e).__name__, e, file=sys.stderr)
    code = {InputError: 2, Preempted: 75, KeyboardInterrupt: 130}.get(type(e), 4)
hosts.leave(code)
"""


@pytest.mark.parametrize(
    "program, code, said",
    [
        ("assert hosts.first(work) == '0' and hosts.one_after_the_other(work) == i and last() == ['0', '1']", 0, ""),
        ("ends(3); last()", 1, "RuntimeError process 1 of 2 has ended (exit code 3); the others waited for it at"),
        ("ends(2); last()", 2, "InputError process 1 of 2 has ended (exit code 2); "),
        ("ends(75); last()", 75, "Preempted process 1 of 2 has ended (exit code 75); "),
        ("hosts.first(lambda: sys.exit(hosts.leave(75)))", 75, "Preempted process 0 of 2 has ended (exit code 75)"),
        (
            "work(); last()",
            1,
            "[1] RuntimeError process 0 of 2 has not come to __main__.last within 1.5 s: it does some",
        ),
        (
            "last() if i == '0' else hosts.first(work)",
            1,
            "process 1 of 2 is at __main__.work, process 0 at __main__.la",
        ),
    ],
)
def test_who_works_is_waited_for_and_who_does_not_come_is_named(environment, program, code, said):
    """On no device: JAX_PLATFORMS names one that is not there."""
    with start(environment, ["import os; os.environ['JAX_PLATFORMS'] = 'none'\n" + WAITING, program]) as job:
        _, stderr = job.communicate(timeout=60)
    assert (job.returncode, said in stderr, bool(stderr)) == (code, True, bool(said)), stderr


def test_alone_nobody_is_asked(capfd):
    def wrong():
        raise InputError("wrong")

    assert together(lambda: 1) == [1] and first(lambda: 2) == one_after_the_other(lambda: 2) == 2
    agree({"seed": 0})
    for ask in (together, first, one_after_the_other):
        with pytest.raises(InputError, match="^wrong$"):
            ask(wrong)
    assert leave(7, "said") == 7 and capfd.readouterr().err == ""


@pytest.mark.parametrize(
    "environ, problem",
    [
        ({"JAX_COORDINATOR_ADDRESS": "localhost"}, "JAX_COORDINATOR_ADDRESS = 'localhost': must be host:port"),
        ({"JAX_COORDINATOR_ADDRESS": "h:1", "JAX_NUM_PROCESSES": "two"}, "JAX_NUM_PROCESSES = 'two': must be a whole"),
        (
            {"JAX_COORDINATOR_ADDRESS": "h:1", "JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "2"},
            "JAX_PROCESS_ID = 2: must be below JAX_NUM_PROCESSES = 2",
        ),
    ],
)
def test_what_is_wrong_with_the_environment_is_said(monkeypatch, environ, problem):
    for key, value in environ.items():
        monkeypatch.setenv(key, value)
    with pytest.raises(InputError, match=problem):
        join()


def test_one_who_is_alone_gives_up(environment, tmp_path):
    """Each of two processes, the coordinator and the other, with nobody there at the other's address."""
    mine = Path(__file__).parent / "mine.py"
    jobs = []
    for i, port in ((0, 47317), (1, 47318)):
        ours = {"JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}", "JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": str(i)}
        command = [sys.executable, "-m", "jaxsat.cli", "train", str(mine), "--out", str(tmp_path / "out")]
        env = environment | ours | {"JAXSAT_JOIN_TIMEOUT": "2", "JAX_PLATFORMS": "cpu"}
        jobs.append(subprocess.Popen(command, env=env, text=True, stderr=subprocess.PIPE))
    for i, (job, port) in enumerate(zip(jobs, (47317, 47318))):
        said = job.communicate()[1]
        where = (
            f"the coordinator (process 0) at 127.0.0.1:{port} within 2 s; start all processes, with the same address"
        )
        problem = "no connection to" if i else "the other processes have not come to"
        assert (job.returncode, said) == (2, f"jaxsat: process {i} of 2: {problem} {where}\n")
    assert not (tmp_path / "out").exists()


def jaxsat(environment, home: Path, experiment: str, *argv: str) -> tuple[int, str, str]:
    """(exit code, stdout, stderr) of the command on two hosts, where `home` has the corpus of an experiment."""
    words = np.array(["sun", "moon", "stars", "sea", "stone", "tree", "river", "and", "the", "of"])
    lines = [" ".join(np.random.default_rng(i).choice(words, 30)) for i in range(200)]
    (home / "words.txt").write_text("\n".join(lines))
    (home / "mine.py").write_text(experiment)
    env = environment | {"PYTHONPATH": str(ROOT), "JAXSAT_CACHE": str(home / "cache")}
    launch = [sys.executable, "-m", "launch.local", "--processes", "2", "--restarts", "0", "--", "jaxsat"]
    job = subprocess.run([*launch, *argv], cwd=home, env=env, text=True, capture_output=True)
    return job.returncode, job.stdout, job.stderr


def test_hosts_that_disagree_do_not_begin(environment, tmp_path):
    differing = "import os\n" + MINE.replace("steps=20", "steps=20 + int(os.environ['JAX_PROCESS_ID'])")
    code, _, said = jaxsat(environment, tmp_path, differing, "train", "mine.py")
    message = "jaxsat: hosts disagree on train.steps of run 0: 20 on host 0, 21 on host 1"
    assert code == 2 and sorted(said.splitlines()) == ["[1] " + message, message], said
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
def test_a_whole_study_on_two_hosts(environment, tmp_path):
    """All stages, runs of several packs, one of which diverges, which is said once; then the same command finds
    everything done."""
    for _ in range(2):
        code, out, said = jaxsat(environment, tmp_path, MINE, "reproduce", "mine.py")
        assert code == 0 and out.splitlines()[-1] == "runs/mine/report/index.html", said
        assert re.fullmatch(r"jaxsat: run \w+ diverged at step \d+: its numbers end there\n", said), said
    command = [sys.executable, "-m", "jaxsat.cli", "reproduce", "mine.py", "--out", "alone"]
    env = environment | {"PYTHONPATH": str(ROOT), "JAXSAT_CACHE": str(tmp_path / "cache"), "JAX_PLATFORMS": "cpu"}
    subprocess.run(command, cwd=tmp_path, env=env, check=True, capture_output=True)
    ours, alone = (table.read(tmp_path / d / "measurements") for d in ("runs/mine", "alone"))
    both = ours.merge(alone, on=table.KEY, suffixes=("", "_alone"))
    assert len(both) == len(ours) == len(alone)
    np.testing.assert_allclose(both["value"], both["value_alone"], rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_four_hosts_two_by_two(environment, trained, tiny_pack, tmp_path):
    pack = Pack(tiny_pack.runs[:2])
    with train(environment, pack, tmp_path, {"pack": 2, "data": 2}, processes=4) as job:
        _, said = job.communicate()
    assert job.returncode == 0, said
    assert_same(tmp_path, trained, pack, tiny_pack)


PEERS = """
import os, signal, sys, time
import jax
from jaxsat import cli, hosts


def run(command):
    hosts.join()
    hosts.together(lambda: 0)
    if os.environ["JAX_PROCESS_ID"] == "1":
        exec(sys.argv[1])
    time.sleep(1)
    raise jax.errors.JaxRuntimeError(sys.argv[2] + "\\nmore")


cli.run = run
sys.exit(cli.main(["check", "nowhere"]))
"""
CLOSED = "UNKNOWN: Gloo AllReduce failed: read: Connection closed by peer"


@pytest.mark.parametrize(
    "ending, error, code",
    [
        ("os.kill(os.getpid(), signal.SIGKILL)", CLOSED, 75),
        ("sys.exit(hosts.leave(2))", CLOSED, 2),
        ("os.kill(os.getpid(), signal.SIGKILL)", "INVALID_ARGUMENT: shapes differ", 1),
    ],
)
def test_the_death_of_a_peer_that_is_an_error_of_the_runtime_is_none_of_ours(environment, ending, error, code):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    common = environment | {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": "2", "JAX_PLATFORMS": "cpu"}
    both = [
        subprocess.Popen([sys.executable, "-c", PEERS, ending, error], env=common | {"JAX_PROCESS_ID": str(i)},
                         stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for i in range(2)
    ]  # fmt: skip
    (_, said), _ = (process.communicate(timeout=120) for process in both)
    assert both[0].returncode == code, said
    assert (f"jaxsat: another process has ended ({error}); the same command continues\n" in said) == (code != 1)
