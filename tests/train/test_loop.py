import dataclasses
import json
import os
import random
import re
import shutil
import signal
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tensorboardX.proto.event_pb2 import Event

from jaxsat.checkpoints import Store, load_run
from jaxsat.config import InputError, Layout, checkpoint_steps, dumps, override
from jaxsat.parallel import make_mesh, pack_layout
from jaxsat.sweep import Pack
from jaxsat.train import (
    Preempted,
    initializer,
    logs,
    loop,
    read_account,
    read_metrics,
    start,
    train_pack,
    train_run,
    write_atomically,
)


def metrics(out, run):
    """{step: line} of what must be reproducible."""
    return {line["step"]: line for line in read_metrics(out / "runs" / run.id) if "loss" in line}


def losses(out, run):
    return np.array([line["loss"] for line in metrics(out, run).values()])


def assert_same_training(out, expected, pack):
    """Bit for bit: the metrics of every step, and the parameters at the end."""
    for run in pack.runs:
        assert metrics(out, run) == metrics(expected, run)
    last = []
    for directory in (out, expected):
        with Store(directory / "checkpoints" / pack.id) as store:
            last.append(store.params(60))
    jax.tree.map(np.testing.assert_array_equal, *last)


def test_what_a_run_leaves(trained, tiny_pack):
    for run in tiny_pack.runs:
        lines = read_metrics(trained / "runs" / run.id)
        steps = [line for line in lines if "loss" in line]
        assert [line["step"] for line in steps] == list(range(1, 61))
        assert [line["tokens"] for line in steps] == [128 * i for i in range(1, 61)]
        assert all(set(line) == {"step", "tokens", "loss", "grad_norm", "learning_rate"} for line in steps)
        assert steps[0]["loss"] == pytest.approx(np.log(64), abs=0.3) or run.train.init_scale > 1
        assert steps[-1]["loss"] < steps[0]["loss"] - 0.5
        speeds = [line for line in lines if "loss" not in line]
        assert speeds[-1]["step"] == 60 and all(line["tokens_per_second"] > 0 for line in speeds)
        assert all(set(line) == {"step", "tokens_per_second", "input_stall"} for line in speeds)
        assert all(0 <= line["input_stall"] < 1 for line in speeds)
        assert (trained / "runs" / run.id / "config.json").read_text() == dumps(run)
        (launch,) = json.loads((trained / "runs" / run.id / "env.json").read_text())
        assert launch["packages"]["jax"] == jax.__version__ and launch["xla_flags"] == os.environ.get("XLA_FLAGS", "")


def test_checkpoints_are_those_of_the_schedule(trained, tiny_pack):
    with Store(trained / "checkpoints" / tiny_pack.id) as store:
        assert tuple(store.steps) == checkpoint_steps(tiny_pack.runs[0].train) == (0, 1, 2, 4, 8, 16, 20, 40, 60)


@pytest.fixture(scope="module")
def again(tiny_pack, tiny_corpus, tmp_path_factory):
    """A second training of the same pack, with TensorBoard files, in a directory that is a string."""
    out = tmp_path_factory.mktemp("again")
    train_pack(tiny_pack, tiny_corpus, str(out), tensorboard=True)
    return out


def test_the_same_seed_gives_the_same_numbers(trained, again, tiny_pack):
    assert_same_training(again, trained, tiny_pack)


def test_packed_is_solo(trained, solo, tiny_pack):
    run = tiny_pack.runs[1]
    np.testing.assert_allclose(losses(solo, run), losses(trained, run), rtol=1e-5)


def test_without_a_directory_the_numbers_are_the_same(solo, tiny_pack, tiny_corpus, monkeypatch):
    run, said = tiny_pack.runs[1], []
    monkeypatch.setattr(loop, "Store", lambda *_, **__: pytest.fail("opened a store"))
    handler = signal.getsignal(signal.SIGTERM)
    params, lines = train_run(run, tiny_corpus, lambda step, losses: said.append(signal.getsignal(signal.SIGTERM)))
    assert [line for line in lines if "loss" in line] == list(metrics(solo, run).values())
    assert set(said) == {handler}  # stopping it is the caller's business
    expected = load_run(solo, run.id, 60)[1]
    jax.tree.map(np.testing.assert_array_equal, params, expected)
    assert {len(x.devices()) for x in jax.tree.leaves(params)} == {1}


def test_a_run_over_several_devices_comes_back_whole(solo, tiny_pack, tiny_corpus, monkeypatch):
    """Of its first parameters, as no step is taken."""
    numbers = {"loss": np.zeros(1), "grad_norm": np.zeros(1)}
    monkeypatch.setattr(
        loop, "train_step", lambda program, mesh, state, *_: (state, jax.tree.map(jnp.asarray, numbers))
    )
    params, _ = train_run(tiny_pack.runs[1], tiny_corpus, layout=Layout(data=4, model=2))
    assert {len(x.devices()) for x in jax.tree.leaves(params)} == {1}
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), params, load_run(solo, tiny_pack.runs[1].id, 0)[1]
    )


def test_a_run_that_cannot_be_is_refused(tiny_run, tiny_corpus):
    with pytest.raises(InputError, match="model.width = 8 is not divisible by model.heads = 3"):
        train_run(override(tiny_run, {"model.heads": 3}), tiny_corpus)


def test_each_run_has_its_own_data_and_rate(trained, tiny_pack):
    first = [metrics(trained, run)[1] for run in tiny_pack.runs]
    assert len({line["loss"] for line in first}) == 3
    assert [line["learning_rate"] for line in first] == pytest.approx([2e-3, 2e-3, 6e-4])


def test_a_finished_pack_is_left_alone(trained, tiny_pack, tiny_corpus):
    before = {p: p.stat().st_mtime_ns for p in Path(trained).rglob("*") if p.is_file()}
    train_pack(tiny_pack, tiny_corpus, trained, progress=lambda step, losses: pytest.fail("trained again"))
    assert {p: p.stat().st_mtime_ns for p in Path(trained).rglob("*") if p.is_file()} == before


def test_a_run_that_diverges_stops_and_the_others_go_on(trained, tiny_pack, tiny_corpus, tmp_path, monkeypatch):
    bad = override(tiny_pack.runs[1], {"train.learning_rate": 1e30})
    pack = Pack((tiny_pack.runs[0], bad, tiny_pack.runs[2]))
    train_pack(pack, tiny_corpus, tmp_path)
    for run in (pack.runs[0], pack.runs[2]):
        assert metrics(tmp_path, run) == metrics(trained, run)
    lines = [line for line in read_metrics(tmp_path / "runs" / bad.id) if "tokens_per_second" not in line]
    assert lines[-1] == {"step": len(lines), "diverged": True} and 2 <= len(lines) < 10
    assert all(np.isfinite(list(line.values())).all() for line in lines)
    # The pack is at its end: neither restored nor trained again, until its last step is missing.
    with monkeypatch.context() as patch:
        patch.setattr(Store, "latest", lambda *_: pytest.fail("restored"))
        train_pack(pack, tiny_corpus, tmp_path, progress=lambda step, losses: pytest.fail("trained again"))
    shutil.rmtree(tmp_path / "checkpoints" / pack.id / "60")
    train_pack(pack, tiny_corpus, tmp_path)
    with Store(tmp_path / "checkpoints" / pack.id) as store:
        assert store.steps[-1] == 60


def test_a_norm_that_overflows_is_no_divergence(tiny_pack, tiny_corpus, monkeypatch):
    """A head (A 1e22) (B 1e-22) has the loss of A B, and a gradient of B whose squares are beyond float32."""
    run = override(tiny_pack.runs[1], {"train.steps": 3, "train.warmup_steps": 0})

    def drawn(program, mesh):
        def init(hyper):
            state = initializer(program, mesh)(hyper)
            state["params"]["head"]["a"] *= 1e22
            state["params"]["head"]["b"] *= 1e-22
            return state

        return init

    monkeypatch.setattr(start, "initializer", drawn)
    params, lines = train_run(run, tiny_corpus)
    steps = [line for line in lines if "loss" in line]
    assert [line["step"] for line in steps] == [1, 2, 3] and not any("diverged" in line for line in lines)
    assert not any("grad_norm" in line for line in steps)  # JSON has no infinity
    assert np.isfinite([line["loss"] for line in steps]).all() and np.isfinite(params["head"]["b"]).all()


def test_when_all_diverge_training_ends_and_does_not_start_again(tiny_pack, tiny_corpus, tmp_path, monkeypatch):
    pack = Pack(tuple(override(run, {"train.learning_rate": 1e30}) for run in tiny_pack.runs))
    train_pack(pack, tiny_corpus, tmp_path)
    for run in pack.runs:
        assert "diverged" in read_metrics(tmp_path / "runs" / run.id)[-1]
    with Store(tmp_path / "checkpoints" / pack.id) as store:
        assert max(store.steps) < 40
    monkeypatch.setattr(loop, "Store", lambda *_, **__: pytest.fail("opened the store"))
    train_pack(pack, tiny_corpus, tmp_path, progress=lambda step, losses: pytest.fail("trained again"))


class SignalAtBatch:
    """Token rows of which reading batch n sends this process SIGTERM; read ahead by a thread, so at a random step."""

    def __init__(self, rows_RxT1: np.ndarray, n: int):
        self.rows_RxT1, self.n, self.count = rows_RxT1, n, 0
        self.shape, self.lock = rows_RxT1.shape, threading.Lock()

    def __len__(self) -> int:
        return len(self.rows_RxT1)

    def __getitem__(self, i_B: np.ndarray) -> np.ndarray:
        with self.lock:
            self.count += 1
            if self.count == self.n:
                os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(1e-3)
        return self.rows_RxT1[i_B]


def test_preempted_again_and_again_ends_in_the_same_numbers(trained, tiny_pack, tiny_corpus, tmp_path):
    n, stops = random.randint(40, 120), []
    while not stops or stops[-1] < 60:
        rows_RxT1 = SignalAtBatch(tiny_corpus.train[0], n)
        try:
            train_pack(tiny_pack, dataclasses.replace(tiny_corpus, train=(rows_RxT1,)), tmp_path)
            stops.append(60)
        except Preempted as e:
            with Store(tmp_path / "checkpoints" / tiny_pack.id) as store:
                stops.append(store.steps[-1])
            assert f"stopped at step {stops[-1]};" in str(e) or stops[-1] == 60
    assert len(stops) > 1 and stops == sorted(set(stops))
    for run in tiny_pack.runs:
        assert len(json.loads((tmp_path / "runs" / run.id / "env.json").read_text())) == len(stops)
    assert_same_training(tmp_path, trained, tiny_pack)


def test_saves_by_time_change_no_number(trained, tiny_pack, tiny_corpus, tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "SAVE_SECONDS", 0.0)
    saved = []
    save = Store.save
    monkeypatch.setattr(Store, "save", lambda self, step, *rest: (saved.append(step), save(self, step, *rest)))
    train_pack(tiny_pack, tiny_corpus, tmp_path)
    assert saved == list(range(61))
    with Store(tmp_path / "checkpoints" / tiny_pack.id) as store:
        assert store.steps == sorted({*tiny_pack.runs[0].checkpoint_steps, 59, 60})
    assert_same_training(tmp_path, trained, tiny_pack)


def test_the_account_adds_up_over_launches(tiny_pack, tiny_corpus, tmp_path):
    """Killed at step 50 with the account written then, it goes on from 40; so it does when it is killed again there."""
    of_first = tmp_path / "runs" / tiny_pack.runs[0].id

    def kill(step, losses):
        if step == 50:
            raise MemoryError

    for restarts in (0, 1):
        with pytest.raises(MemoryError), pytest.MonkeyPatch.context() as patch:
            patch.setattr(logs, "ACCOUNT_SECONDS", 0.0)
            train_pack(tiny_pack, tiny_corpus, tmp_path, kill)
        before = read_account(of_first)
        assert (before["step"], before["restarts"], before["steps_again"]) == (50, restarts, 10 * restarts)
    train_pack(tiny_pack, tiny_corpus, tmp_path)
    after, n_devices = read_account(of_first), make_mesh(tiny_pack, pack_layout(tiny_pack, Layout())).size
    assert (after["step"], after["restarts"], after["steps_again"]) == (60, 2, 20)
    assert 0 < after["seconds_again"] < before["seconds"] < after["seconds"]
    assert after["device_seconds"] == pytest.approx(n_devices * after["seconds"])
    train_pack(tiny_pack, tiny_corpus, tmp_path)  # at its end
    assert read_account(of_first) == after


def test_sigterm_after_the_last_step_is_not_swallowed(trained, tiny_pack, tiny_corpus, tmp_path):
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True)
    shutil.rmtree(tmp_path / "checkpoints" / tiny_pack.id / "60")

    calls = []

    def progress(step, losses):
        calls.append(step)
        if calls[-2:] == [60, 60]:  # the loop is over, its last save may still run
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Preempted, match="stopped after the last step of a pack"):
        train_pack(tiny_pack, tiny_corpus, tmp_path, progress)
    assert_same_training(tmp_path, trained, tiny_pack)


CHILD = """
import json, sys, time
import jax
jax.config.update("jax_num_cpu_devices", 8)
from etils import epath
from jaxsat.config import Run, from_dict
from jaxsat.corpus import prepare
from jaxsat.sweep import Pack
from jaxsat.train import Preempted, train_pack
runs = [from_dict(Run, run) for run in json.loads(sys.argv[2])]
corpus = prepare(runs[0].data, runs[0].model.vocab_size, runs[0].model.context)
try:
    train_pack(Pack(tuple(runs)), corpus, epath.Path(sys.argv[1]), lambda step, losses: time.sleep(0.1))
except Preempted:
    sys.exit(75)
"""


@pytest.mark.slow
def test_killed_while_it_saves_it_continues_to_the_same_numbers(trained, tiny_pack, tiny_corpus, tmp_path):
    out, env = (
        tmp_path / "out",
        {
            "JAX_PLATFORMS": "cpu",
            "JAX_COMPILATION_CACHE_DIR": jax.config.jax_compilation_cache_dir,
            "JAXSAT_CACHE": str(tiny_corpus.tokenizer.parents[2]),
        },
    )
    runs = json.dumps([dataclasses.asdict(run) for run in tiny_pack.runs])
    for sig, first in ((signal.SIGKILL, 0), (signal.SIGTERM, 4), (signal.SIGKILL, 16)):
        with subprocess.Popen([sys.executable, "-c", CHILD, str(out), runs], env=os.environ | env) as child:
            while child.poll() is None:
                saving = [int(p.name.split(".")[0]) for p in out.glob("checkpoints/*/*.orbax-checkpoint-tmp")]
                if any(step >= first for step in saving):
                    child.send_signal(sig)
                    break
                time.sleep(1e-3)
        assert child.returncode == (75 if sig == signal.SIGTERM else -sig)
    assert not any(out.glob("checkpoints/*/60"))
    train_pack(tiny_pack, tiny_corpus, out)
    assert not any(out.glob("checkpoints/*/*.orbax-checkpoint-tmp"))
    assert_same_training(out, trained, tiny_pack)


def test_a_full_disk_is_named_and_what_was_complete_stays(tiny_pack, tiny_corpus, tmp_path):
    """A real full disk where the test may mount one."""
    mount = ["mount", "-t", "tmpfs", "-o", "size=600k", "tmpfs", str(tmp_path)]
    if not shutil.which("mount") or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("may not mount a small file system here")
    try:
        with pytest.raises(InputError, match=f"no space left in {tmp_path}: a checkpoint of this pack takes 0.1 MiB"):
            train_pack(tiny_pack, tiny_corpus, tmp_path)
        with Store(tmp_path / "checkpoints" / tiny_pack.id) as store:
            assert 0 < store.steps[-1] < 60
            assert all(np.isfinite(store.params(step)["embedding"]).all() for step in store.steps)
        subprocess.run(["mount", "-o", "remount,size=50m", str(tmp_path)], check=True)
        train_pack(tiny_pack, tiny_corpus, tmp_path)
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


def test_devices_without_room_are_named(tiny_pack, tiny_corpus, tmp_path, monkeypatch):
    def full(*_):
        raise jax.errors.JaxRuntimeError(f"{status}: out of memory allocating 12 bytes")

    monkeypatch.setattr(loop, "train_step", full)
    said = "3 runs of width 8 depth 1 need more memory than a device has as 3 x 1 x 1 (pack x data x model)"
    status = "RESOURCE_EXHAUSTED"
    with pytest.raises(InputError, match=re.escape(said)):
        train_pack(tiny_pack, tiny_corpus, tmp_path)
    status = "INTERNAL"
    with pytest.raises(jax.errors.JaxRuntimeError, match="INTERNAL"):
        train_pack(tiny_pack, tiny_corpus, tmp_path)


def test_a_full_disk_under_the_metrics_is_named(tiny_pack, tiny_corpus, tmp_path, monkeypatch):
    def write(path, text):
        if path.name == "metrics.jsonl":
            Path("/dev/full").write_text(text)
        else:
            write_atomically(path, text)

    monkeypatch.setattr("jaxsat.train.logs.write_atomically", write)
    with pytest.raises(InputError, match=f"no space left in {tmp_path}"):
        train_pack(tiny_pack, tiny_corpus, tmp_path)


def events(directory):
    """(step, tag, value) of a TensorBoard file, a TFRecord file: length, its checksum, bytes, their checksum."""
    (path,) = directory.glob("events.out.tfevents.*")
    data = path.read_bytes()
    while data:
        (size,) = struct.unpack("<Q", data[:8])
        event = Event.FromString(data[12 : 12 + size])
        yield from ((event.step, value.tag, value.simple_value) for value in event.summary.value)
        data = data[16 + size :]


def test_tensorboard_has_the_numbers_of_the_log(again, tiny_pack):
    for run in tiny_pack.runs:
        written = sorted(e for e in events(again / "runs" / run.id / "tensorboard") if e[1] == "loss")
        assert [step for step, _, _ in written] == list(range(1, 61))
        np.testing.assert_allclose([value for _, _, value in written], losses(again, run), rtol=1e-6)


def test_tensorboard_is_an_extra(tiny_pack, tiny_corpus, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    with pytest.raises(InputError, match=r"TensorBoard files need tensorboardX: pip install 'jaxsat\[tensorboard\]'"):
        train_pack(tiny_pack, tiny_corpus, tmp_path, tensorboard=True)
