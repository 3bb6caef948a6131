import dataclasses
import json
import operator
import pwd
import resource
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tensorstore
from etils import epath
from orbax.checkpoint import v1 as ocp

from jaxsat import model
from jaxsat.checkpoints import Retention, Store, load_run, quiet
from jaxsat.config import InputError, override
from jaxsat.disk import HASHES, faults
from jaxsat.parallel import abstract_like, make_mesh, per_run
from jaxsat.sweep import Pack
from jaxsat.train import Program, hypers, train_pack
from jaxsat.train.step import abstract_state


def state(step: int, width: int = 400):
    """Random, so that no array is so small when compressed that orbax keeps it beside its name."""
    normal = np.random.default_rng(step).normal
    return {
        "params": {"w": jnp.asarray(normal(size=(2, 3, width))), "head": {"a": jnp.asarray(normal(size=(2, width)))}},
        "optimizer": (jnp.asarray(normal(size=(2, 3, width))), {"count": jnp.full(2, step, jnp.int32)}),
        "keys_K": jax.vmap(jax.random.key)(jnp.arange(2, dtype=jnp.uint32)),
        "step": jnp.int32(step),
    }


def abstract(width: int = 400):
    return abstract_like(state(0, width), jax.sharding.SingleDeviceSharding(jax.devices()[0]))


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("saved")
    with Store(directory, ["r0", "r1"], writable=True) as store:
        for step in (0, 3, 10):
            store.save(step, state(step), step / 2)
    return directory


@pytest.fixture
def filled(saved, tmp_path) -> Path:
    """Steps 0, 3 and 10 of runs r0 and r1."""
    return Path(shutil.copytree(saved, tmp_path / "pack"))


def test_of_older_steps_stays_what_retention_says(tmp_path):
    retention = Retention(frozenset({0, 5, 10, 20}), whole=frozenset({5}))
    with Store(tmp_path, ["r0", "r1"], writable=True, retention=retention) as store:
        for step in (0, 5, 7, 10, 12, 15):
            store.save(step, state(step), step / 2)
        assert store.steps == [0, 5, 10, 12, 15]
    assert {p.parent.name for p in tmp_path.glob("*/rest")} == {"5", "12", "15"}
    assert list(faults(epath.Path(tmp_path))) == []
    with Store(tmp_path) as store:
        assert store.steps == [0, 5, 10, 12, 15]
        for step in store.steps:
            store.verify(step)
            jax.tree.map(np.testing.assert_array_equal, store.params(step), state(step)["params"])
        assert int(store.state(5, abstract())["step"]) == 5
        with pytest.raises(InputError, match="/10 has parameters alone: the optimizer is kept of the newest two"):
            store.state(10, abstract())
        (tmp_path / "15" / "params" / "manifest.ocdbt").write_bytes(b"")
        found, seconds = store.latest(abstract())
        assert (int(found["step"]), seconds) == (12, 6.0)
        (tmp_path / "12" / "params" / "manifest.ocdbt").write_bytes(b"")
    with Store(tmp_path) as store:  # those with parameters alone are no damage, and 5 has all
        assert int(store.latest(abstract())[0]["step"]) == 5


def test_killed_while_it_thins_out_the_next_save_does(tmp_path):
    retention = Retention(frozenset(range(9)))
    with Store(tmp_path, ["r0", "r1"], writable=True, retention=retention) as store:
        for step in (0, 1, 2, 3):
            store.save(step, state(step), 0.0)
    for step in (0, 1):
        shutil.copytree(tmp_path / "3" / "rest", tmp_path / str(step) / "rest")
    (tmp_path / "0" / "rest" / "_METADATA").unlink()
    (tmp_path / "0" / "rest" / "manifest.ocdbt").unlink()
    with Store(tmp_path) as store:
        store.verify(0)
    with Store(tmp_path, ["r0", "r1"], writable=True, retention=retention) as store:
        store.save(4, state(4), 0.0)
    assert {p.parent.name for p in tmp_path.glob("*/rest")} == {"3", "4"}


def test_damaged_hashes_of_an_older_step_stop_no_save(tmp_path):
    with Store(tmp_path, ["r0", "r1"], writable=True, retention=Retention(frozenset(range(9)))) as store:
        store.save(0, state(0), 0.0)
        store.close()
        (tmp_path / "0" / HASHES).write_text("[")
        for step in (1, 2):
            store.save(step, state(step), 0.0)
    assert {p.parent.name for p in tmp_path.glob("*/rest")} == {"1", "2"}
    (fault,) = [said for _, said in faults(epath.Path(tmp_path))]
    assert fault.startswith(f"{tmp_path / '0' / HASHES} cannot be read")


def snapshot(directory: Path):
    return {p: p.read_bytes() for p in directory.rglob("*") if p.is_file()}


def test_everything_comes_back(filled):
    with Store(filled, ["r0", "r1"]) as store:
        assert store.steps == [0, 3, 10] and store.run_ids == ["r0", "r1"]
        found, seconds = store.latest(abstract())
        assert seconds == 5.0 and store.unreadable == {}
        assert jax.tree.structure(found) == jax.tree.structure(state(10))
        for ours, theirs in zip(jax.tree.leaves(found), jax.tree.leaves(state(10))):
            assert ours.dtype == theirs.dtype
            if jnp.issubdtype(ours.dtype, jax.dtypes.prng_key):
                ours, theirs = jax.random.key_data(ours), jax.random.key_data(theirs)
            np.testing.assert_array_equal(ours, theirs)
        for params in (store.params(3), store.params(3, abstract()["params"])):
            np.testing.assert_array_equal(params["w"], state(3)["params"]["w"])


def test_parameters_are_read_alone(filled):
    shutil.rmtree(filled / "10" / "rest")
    with Store(filled) as store:
        np.testing.assert_array_equal(store.params(10)["w"], state(10)["params"]["w"])


def test_what_is_saved_may_be_donated_at_once(tmp_path):
    """The next step's arrays may take the place of those that a thread still writes."""
    double = jax.jit(lambda s: jax.tree.map(lambda x: x * 2, s), donate_argnums=0)
    s = {"params": {"w": jnp.ones((500, 1000))}, "optimizer": jnp.ones((500, 1000)), "step": jnp.int32(1)}
    with Store(tmp_path, ["r"], writable=True) as store:
        for step in range(4):
            store.save(step, s, 0.0)
            for _ in range(3):
                s = double(s)
            jax.block_until_ready(s)
    with Store(tmp_path) as store:
        assert [np.unique(store.params(step)["w"]).tolist() for step in range(4)] == [[1], [8], [64], [512]]


def test_a_store_without_steps_is_empty_not_an_error(tmp_path):
    with Store(tmp_path, ["r0"], writable=True) as store:
        assert store.latest(abstract()) is None and store.steps == []
    with pytest.raises(InputError, match=f"no checkpoints in {tmp_path / 'none'}: train first"):
        Store(tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_what_an_interrupted_save_leaves_is_swept_by_a_writer_alone(filled):
    left = filled / "11.orbax-checkpoint-tmp"
    shutil.copytree(filled / "10", left)
    with Store(filled, ["r0", "r1"]) as store:
        assert store.steps == [0, 3, 10] and left.exists()
    with Store(filled, ["r0", "r1"], writable=True) as store:
        store.save(11, state(11), 6.0)
    with Store(filled) as store:
        assert store.steps == [0, 3, 10, 11] and not left.exists()


def test_killed_before_the_first_step_was_complete(filled):
    for step in ("0", "3", "10"):
        (filled / step).rename(filled / f"{step}.orbax-checkpoint-tmp")
    with Store(filled, ["r2"], writable=True) as store:
        assert store.latest(abstract()) is None


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path: Path) -> None:
    path.write_bytes(bytes(byte ^ 255 for byte in path.read_bytes()))


@pytest.mark.parametrize(
    "what, damage",
    [
        ("_CHECKPOINT_METADATA", Path.unlink),
        ("_CHECKPOINT_METADATA", truncate),
        ("params/_METADATA", truncate),
        ("params/manifest.ocdbt", Path.unlink),
        ("params/array_metadatas/process_0", truncate),
        ("params/ocdbt.process_0/d/*", Path.unlink),
        ("params/ocdbt.process_0/d/*", truncate),
        ("params/ocdbt.process_0/d/*", flip),
        ("rest/_METADATA", Path.unlink),
        ("rest/manifest.ocdbt", flip),
        ("rest/d/*", truncate),
        ("rest/ocdbt.process_0/d/*", truncate),
        ("params", shutil.rmtree),
        ("rest", shutil.rmtree),
    ],
)
def test_of_a_damaged_step_the_one_before_is_read(filled, what, damage, capfd, caplog):
    (path,) = (filled / "10").glob(what)
    damage(path)
    with Store(filled, ["r0", "r1"]) as store:
        found, seconds = store.latest(abstract())
    assert seconds == 1.5 and found["step"] == 3
    assert list(store.unreadable) == [10] and 0 < len(store.unreadable[10]) <= 200 and "\n" not in store.unreadable[10]
    assert caplog.messages == [f"{filled / '10'} cannot be read ({store.unreadable[10]}): going on from step 3"]
    assert capfd.readouterr().err == ""


def test_only_what_its_reads_in_flight_say_late_is_left_out(monkeypatch):
    said = []
    monkeypatch.setattr(sys, "unraisablehook", said.append)
    for _ in range(2):
        quiet()
    late, other = (
        SimpleNamespace(exc_value=e, object=None) for e in (RuntimeError("Event loop is closed"), KeyError())
    )
    sys.unraisablehook(late)
    sys.unraisablehook(other)
    assert said == [other] and sys.unraisablehook.args == (said.append,)


ALONE = """
import logging, sys

loggers = [logging.getLogger(name) for name in (None, "absl", "asyncio", "jax", "orbax", "mine")]
state = lambda: [sys.unraisablehook, *((x.level, x.disabled, x.filters, x.handlers) for x in loggers)]
import absl.logging, asyncio  # set levels of their own

before, hook = state(), sys.unraisablehook
import jaxsat.study, jaxsat.checkpoints
from jaxsat.config import InputError

assert state() == before and sys.unraisablehook is hook
with jaxsat.checkpoints.Store(sys.argv[1]) as store:
    store.params(3)
    try:
        store.params(10)
    except InputError as e:
        print(e)
assert state() == before and sys.unraisablehook is hook
"""


def test_loggers_and_the_hook_of_others_are_left_alone(filled):
    """In a process that imports jaxsat, reads a checkpoint, and another that is damaged."""
    for path in (filled / "10").glob("params/ocdbt.process_0/d/*"):
        truncate(path)
    done = subprocess.run([sys.executable, "-c", ALONE, str(filled)], capture_output=True, text=True)
    assert done.returncode == 0 and "/10 cannot be read" in done.stdout, done.stderr


def test_a_user_without_a_name_can_save_and_read(filled, monkeypatch):
    """As in containers that run as whatever number; damage makes orbax look for more."""

    def unnamed(uid):
        raise KeyError(f"getpwuid(): uid not found: {uid}")

    monkeypatch.setattr(pwd, "getpwuid", unnamed)
    (filled / "10" / "_CHECKPOINT_METADATA").unlink()
    with Store(filled, ["r0", "r1"], writable=True) as store:
        store.save(20, state(20), 7.0)
    (filled / "20" / "_CHECKPOINT_METADATA").unlink()
    with Store(filled, ["r0", "r1"]) as store:
        found, seconds = store.latest(abstract())
        assert (found["step"], seconds, list(store.unreadable)) == (3, 1.5, [20, 10])


def test_steps_of_an_earlier_version_are_named_and_not_called_damaged(tmp_path):
    ocp.save_checkpointables(
        tmp_path / "3", {"params": {"w": jnp.ones(3)}}, custom_metadata={"runs": [], "seconds": 0.0}
    )
    with pytest.raises(InputError, match=f"{tmp_path} is of an earlier jaxsat, without checksums"):
        Store(tmp_path)
    assert (tmp_path / "3").exists()


def test_a_damaged_step_is_saved_over(filled):
    shutil.rmtree(filled / "10" / "params")
    with Store(filled, ["r0", "r1"], writable=True) as store:
        _, seconds = store.latest(abstract())
        store.save(10, state(10), 7.0)
    assert seconds == 1.5
    with Store(filled, ["r0", "r1"]) as store:
        assert store.latest(abstract())[1] == 7.0 and store.unreadable == {}


def test_when_all_are_damaged_it_says_so_and_touches_nothing(filled):
    for step, what in (("0", "params/manifest.ocdbt"), ("3", "rest/_METADATA"), ("10", "_CHECKPOINT_METADATA")):
        (filled / step / what).unlink()
    before = snapshot(filled)
    with Store(filled, ["r0", "r1"], writable=True) as store, pytest.raises(InputError) as e:
        store.latest(abstract())
    assert str(e.value).startswith(f"training cannot go on from any checkpoint in {filled} (step 10: ")
    assert "; step 3: " in str(e.value) and "; step 0: " in str(e.value)
    assert str(e.value).endswith("): move it away to start fresh") and "\n" not in str(e.value)
    assert snapshot(filled) == before


def test_foreign_files_are_not_written_among(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    (tmp_path / "2023 drafts").mkdir()
    message = f"{tmp_path} holds no checkpoint but 2023 drafts, thesis.tex: move it away, or choose another directory"
    for writable in (False, True):
        with pytest.raises(InputError) as e:
            Store(tmp_path, ["r0"], writable=writable)
        assert str(e.value) == message
    assert sorted(p.name for p in tmp_path.iterdir()) == ["2023 drafts", "thesis.tex"]


@pytest.mark.parametrize("runs", [["r1", "r0"], ["r0"], ["r0", "r1", "r2"], []])
def test_checkpoints_of_other_runs_are_not_taken(filled, runs):
    before = snapshot(filled)
    with pytest.raises(InputError) as e:
        Store(filled, runs, writable=True)
    assert str(e.value) == f"{filled} holds checkpoints of other runs (r0, r1): choose another directory"
    assert snapshot(filled) == before


def test_checkpoints_of_a_model_of_other_shapes_are_not_taken(filled):
    with Store(filled, ["r0", "r1"], writable=True) as store:
        message = f"{filled} holds checkpoints of another model: head.a is (2, 400) there, not (2, 500); "
        for read in (lambda: store.latest(abstract(500)), lambda: store.params(3, abstract(500)["params"])):
            with pytest.raises(InputError) as e:
                read()
            assert str(e.value) == message + "choose another directory"
        del (wanted := abstract())["params"]["head"]
        with pytest.raises(InputError, match=r"head.a is \(2, 400\) there, not None"):
            store.latest(wanted)


def test_a_step_that_is_not_there_or_damaged_has_no_parameters(filled):
    (filled / "3" / "params" / "manifest.ocdbt").unlink()
    with Store(filled) as store:
        with pytest.raises(InputError, match=rf"no checkpoint of step 4 in {filled}, only of \[0, 3, 10\]"):
            store.params(4)
        with pytest.raises(InputError, match=rf"{filled}/3 cannot be read \(.*\): remove it to do without it"):
            store.params(3)


def test_an_error_while_saving_is_raised_later_and_what_was_complete_still_reads(filled):
    """The error of a disk that takes no more than 1000 bytes a file."""
    store = Store(filled, ["r0", "r1"], writable=True)
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        store.save(20, state(20), 1.0)
        with pytest.raises(ValueError, match="File too large"):
            store.close()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    with Store(filled, ["r0", "r1"], writable=True) as store:
        assert store.latest(abstract())[1] == 5.0


@pytest.fixture
def with_sweep(trained, tiny_pack, tmp_path) -> Path:
    """The output directory of `tiny_pack` with its sweep.json, and checkpoints of another pack that are none."""
    shutil.copytree(trained, tmp_path / "out")
    runs = {run.id: dataclasses.asdict(run) for run in tiny_pack.runs}
    (tmp_path / "out" / "sweep.json").write_text(json.dumps({"packs": [["0"], list(runs)], "runs": runs}))
    (tmp_path / "out" / "checkpoints" / "0").mkdir()
    (tmp_path / "out" / "checkpoints" / "0" / "notes.txt").write_text("no checkpoint")
    return tmp_path / "out"


def test_any_run_is_read_alone(trained, with_sweep, tiny_pack, monkeypatch):
    """By sweep.json, without a look at other packs or all of its own; and without one."""
    with Store(trained / "checkpoints" / tiny_pack.id) as store:
        stacked = store.params(40)
    monkeypatch.delattr(Store, "_read")
    for k, run in enumerate(tiny_pack.runs):
        packed = jax.tree.map(operator.itemgetter(k), stacked)
        shapes = jax.eval_shape(lambda run=run: model.init(run.model, jax.random.key(0)))
        config, params = load_run(with_sweep, run.id, 40)
        assert config == run.model and jax.tree.map(np.shape, params) == jax.tree.map(np.shape, shapes)
        whole, cut = (np.float64(x["a"]) @ np.float64(x["b"]) for x in (packed.pop("head"), params["head"]))
        np.testing.assert_array_equal(cut, whole)
        config, same = load_run(trained, run.id, 40)
        jax.tree.map(np.testing.assert_array_equal, params, same)
        assert config == run.model and all(x.devices() == {jax.devices()[0]} for x in jax.tree.leaves(same))
        jax.tree.map(np.testing.assert_array_equal, {k: v for k, v in params.items() if k != "head"}, packed)
    for out in (trained, with_sweep):
        with pytest.raises(InputError, match=f"{out} holds no checkpoint of run nobody"):
            load_run(out, "nobody", 40)
        with pytest.raises(InputError, match="no checkpoint of step 41 in .*, only of "):
            load_run(out, tiny_pack.runs[0].id, 41)


def test_of_several_devices_arrays_only_one_runs_part_is_read(tmp_path):
    w_KxN = np.random.default_rng(0).normal(size=(4, 100_000)).astype(np.float32)
    mesh = jax.sharding.Mesh(jax.devices()[:4], "pack")
    w = jax.device_put(w_KxN, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("pack")))
    with Store(tmp_path, ["r0", "r1", "r2", "r3"], writable=True) as store:
        store.save(1, {"params": {"blocks": [{"w": w}, {"w": w.astype(jnp.bfloat16)}]}, "step": jnp.int32(1)}, 0.0)

    def bytes_read() -> int:
        (metric,) = tensorstore.experimental_collect_matching_metrics("/tensorstore/kvstore/file/bytes_read")
        return metric["values"][0]["value"]

    with Store(tmp_path) as store:
        before = bytes_read()
        found = store.params_of("r2", 1)
        assert bytes_read() - before < 0.3 * w.nbytes * 1.5
    jax.tree.map(np.testing.assert_array_equal, found, {"blocks": [{"w": w[2]}, {"w": w[2].astype(jnp.bfloat16)}]})


@pytest.mark.parametrize("sweep", ["{", "[]", '{"runs": {}}', '{"packs": [["a"]], "runs": {}}', '{"packs": 3}'])
def test_a_damaged_sweep_is_named(tmp_path, sweep):
    (tmp_path / "sweep.json").write_text(sweep)
    with pytest.raises(InputError, match=f"{tmp_path}/sweep.json(: run a must| is not a jaxsat sweep)"):
        load_run(tmp_path, "a", 1)


def test_a_configuration_that_is_not_that_of_its_run_is_named(with_sweep, tiny_pack):
    id = tiny_pack.runs[0].id
    for path in (with_sweep / "sweep.json", with_sweep / "runs" / id / "config.json"):
        path.write_text(path.read_text().replace('"seed":0', '"seed":9').replace('"seed": 0', '"seed": 9'))
        (path.parent / ".config.json.xxh3").unlink(missing_ok=True)
        with pytest.raises(InputError, match=f"the configuration of run {id} is not that of its id: put it back"):
            load_run(with_sweep, id, 40)
        (with_sweep / "sweep.json").unlink(missing_ok=True)
        shutil.rmtree(with_sweep / "checkpoints" / "0", ignore_errors=True)
    path.write_text("{")
    with pytest.raises(InputError, match=f"{id}/config.json is not the configuration of a run .Expecting"):
        load_run(with_sweep, id, 40)


@pytest.mark.parametrize("place", ["out", "out/checkpoints", "out/checkpoints/pack"])
def test_a_file_in_the_place_of_the_folder_is_said_before_anything_is_saved(tmp_path, place):
    (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / place).write_text("mine")
    with pytest.raises(InputError, match="out/checkpoints/pack cannot be a folder: a file is in its place, move it"):
        Store(tmp_path / "out" / "checkpoints" / "pack", ["r0"], writable=True)
    assert (tmp_path / place).read_text() == "mine"


def test_a_run_whose_arrays_are_damaged_is_named(filled):
    for path in (filled / "10").glob("params/ocdbt.process_0/d/*"):
        truncate(path)
    with Store(filled, alone=True) as store:
        for step, what in (
            (10, rf"{filled}/10 cannot be read \(.*\): remove it to do without it"),
            (4, "no checkpoint"),
        ):
            with pytest.raises(InputError, match=what):
                store.params_of("r1", step)
        with pytest.raises(InputError, match=f"{filled} holds no run r2, only r0, r1"):
            store.params_of("r2", 3)
        np.testing.assert_array_equal(store.params_of("r1", 3)["w"], state(3)["params"]["w"][1])


def test_training_goes_on_from_the_step_before_a_damaged_one(trained, tiny_pack, tiny_corpus, tmp_path):
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True)
    directory = tmp_path / "checkpoints" / tiny_pack.id
    truncate(next((directory / "60" / "params" / "ocdbt.process_0" / "d").iterdir()))
    train_pack(tiny_pack, tiny_corpus, tmp_path)
    with Store(directory) as repaired, Store(trained / "checkpoints" / tiny_pack.id) as original:
        assert repaired.steps == original.steps
        for step in repaired.steps:
            jax.tree.map(np.testing.assert_array_equal, repaired.params(step), original.params(step))
        mesh, program = make_mesh(tiny_pack), Program.of(tiny_pack)
        hyper = jax.device_put(hypers(tiny_pack.runs), per_run(mesh))
        assert repaired.latest(abstract_state(program, mesh, hyper))[0]["step"] == 60


def test_training_does_not_start_over_another_model(trained, tiny_pack, tiny_corpus, tmp_path):
    other = Pack(tuple(override(run, {"model.ffn_width": 24}) for run in tiny_pack.runs))
    shutil.copytree(trained / "checkpoints" / tiny_pack.id, tmp_path / "checkpoints" / other.id)
    before = snapshot(tmp_path)
    with pytest.raises(InputError, match="holds checkpoints of other runs"):
        train_pack(other, tiny_corpus, tmp_path)
    assert snapshot(tmp_path) == before
