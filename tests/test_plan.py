import importlib.util
import json
import sys
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from jaxsat import cli, model, parallel, plan
from jaxsat.checkpoints import Store
from jaxsat.config import InputError, Layout, ModelConfig
from jaxsat.plan import Plan, Shape, summary, table
from jaxsat.train import LANGUAGE_MODEL

NO_COMPILER = importlib.util.find_spec("libtpu") is None
MINE = """
from jaxsat import ModelConfig, Run, Sweep, TrainConfig, product

model = ModelConfig(depth=1, width=128, heads=1, context=128, vocab_size=256, head_rank=64, scan_layers=True)
base = Run(model, TrainConfig(steps=500, batch_size=8))


def sweeps(scale):
    return [Sweep("main", base, product({"train.steps": [500, 1000], "model.head_rank": [32, 64], "seed": [0, 1]}))]
"""


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("JAXSAT_CACHE", str(tmp_path / "cache"))
    (tmp_path / "mine.py").write_text(MINE)
    return str(tmp_path / "mine.py")


def _shape(**keys) -> Shape:
    values = dict(depth=1, width=8, parameters=10, nonembedding=5, packs=2, runs=4, mesh=(2, 2, 1), remat="none")
    return Shape(**values | dict(gib=1.0, estimate=1.1, flops=10**15, steps=3600, gib_on_disk=0.25) | keys)


def _request(name: str, **keys) -> dict:
    layout = {"pack": None, "data": None, "model": 1, "remat": None}
    return dict(name=name, scale="laptop", topology="v5e:2x2", slices=1, layout=layout, aborted=[]) | keys


def test_topologies_are_known_in_any_order_of_their_sides():
    assert plan._known("v4:8x8x4") == "v4:4x8x8"
    assert plan._known("v5e:16x16") == "v5e:16x16"
    for wrong in ("v5e:3x5", "v5e:16x16x1", "v9:2x2", "v5e", ""):
        with pytest.raises(InputError, match=r"unknown topology .* v4: 2x2x1 .*; v5e: 1x1 2x2 .* v6e: "):
            plan._known(wrong)


@pytest.mark.parametrize(
    "flags, said",
    [
        (["--topology", "v5e:7x7"], "unknown topology 'v5e:7x7'"),
        (["--topology", "v5e:2x2", "--slices", "0"], "--slices 0"),
        (["--topology", "v5e:2x2", "--mfu", "40"], "--mfu 40"),
        (["--topology", "v5e:2x2"], "pip install 'jaxsat[tpu]'"),
    ],
)
def test_wrong_input_ends_in_one_line(flags, said, mine, monkeypatch, capsys):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert cli.main(["plan", mine, *flags]) == 2
    assert said in (error := capsys.readouterr().err) and error.count("\n") == 1


def test_chip_hours_are_flops_over_the_peak_of_all_chips_that_are_held(monkeypatch):
    # 3600 steps of 1e15 FLOPs on 4 devices of 197e12 at a half: 3600 x 2.538 s; 8 chips are paid for.
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(plan, "_shapes", lambda request, say: [_shape()])
    found = plan.plan("mine", "laptop", "v5e:2x2", slices=2, mfu=0.5)
    assert found.hours == pytest.approx(1e15 / (4 * 197e12 * 0.5))
    assert found.chips == 8 and found.chip_hours == pytest.approx(8 * found.hours)
    assert "8 runs, 3.6e+18 FLOPs: 20.3 chip-hours, 2.5 h on 8 chips of 2 x v5e:2x2" in summary(found)[-1]
    assert summary(found)[-1].endswith("; checkpoints of 0.2 GiB")


def test_the_bytes_of_checkpoints_are_those_of_their_arrays(trained, tiny_pack):
    mesh = parallel.make_mesh(tiny_pack, parallel.pack_layout(tiny_pack, Layout()))
    found = 0
    with Store(trained / "checkpoints" / tiny_pack.id) as store:
        for step in store.steps:
            stored = [tree for tree in store._stored(step).values() if tree is not None]
            found += sum(int(np.prod(x.shape)) * np.dtype(x.dtype).itemsize for x in jax.tree.leaves(stored))
    assert plan.checkpoint_bytes(tiny_pack, mesh, LANGUAGE_MODEL, ()) == found


def test_what_does_not_fit_is_named():
    found = Plan(
        "v5e:2x2", 1, 4, 0.4, [_shape(), _shape(width=9, gib=20.0, problem="too large; fits with X")], 1.0, 4.0
    )
    assert list(table(found)["GiB a device"]) == ["1.00 of 15.75", "20.00 of 15.75"]
    assert list(table(found)[""]) == ["fits", "does not fit"]
    assert summary(found)[0] == "depth 1 width 9 x 4 runs: too large; fits with X"


def test_every_program_of_a_sweep_is_compiled_once_and_kept(mine, monkeypatch):
    """The whole of the compiler's process, on this machine's fake devices in place of a TPU's."""
    monkeypatch.setattr(plan, "_devices", lambda topology, slices: jax.devices()[:4])
    version = metadata.version
    monkeypatch.setattr(metadata, "version", lambda name: "0" if name == "libtpu" else version(name))
    answers: list[dict] = []
    plan._serve(_request(mine), answers.append)
    shapes = [a for a in answers if "depth" in a]
    assert len(answers) == 2 and answers[0]["line"].startswith("1/1 depth 1 width 128 x 4 runs")
    # 8 runs: the two lengths are packs of their own, of one program.
    assert [(s["packs"], s["runs"], s["steps"]) for s in shapes] == [(2, 4, 1500)]
    config = ModelConfig(depth=1, width=128, heads=1, context=128, vocab_size=256, head_rank=64)
    assert shapes[0]["flops"] == 4 * 8 * 128 * model.flops_per_token(config)
    assert shapes[0]["parameters"] == model.count_parameters(config).total
    # Parameters, both moments and their gradients, 4 bytes each: the step cannot need less.
    assert shapes[0]["gib"] * 2**30 > 12 * shapes[0]["parameters"]
    again: list[dict] = []
    plan._serve(_request(mine), again.append)
    assert again == shapes
    split = _request(mine, layout={"pack": 2, "data": 1, "model": 1, "remat": "full"})
    monkeypatch.setattr(plan, "_compiled", lambda lowered: (1.0, ""))
    other: list[dict] = []
    plan._serve(split, other.append)
    assert other[-1]["mesh"] == (2, 1, 1) and other[-1]["remat"] == "full" and len(other) == 2
    with pytest.raises(InputError, match="layout.model = 2 does not divide"):
        plan._serve(_request(mine, layout={"pack": None, "data": None, "model": 2, "remat": None}), other.append)


def test_a_task_is_compiled_as_what_it_is(tmp_path, monkeypatch):
    """A regression of two numbers: of a language model of this config the parameters are 40 times as many."""
    (tmp_path / "task.py").write_text("""
import jax
from jaxsat import ModelConfig, Run, Sweep, TrainConfig
from jaxsat.train import Task

TASKS = {"line": Task(lambda config, key, rank: {"w": jax.random.normal(key, (2,))},
                      lambda config, params, rows, key, remat: (params["w"] ** 2).sum(), reads=False)}


def sweeps(scale):
    model, train = ModelConfig(width=8, heads=1, context=1), TrainConfig(steps=5, batch_size=8)
    return [Sweep("main", Run(model, train, task="line"))]
""")
    monkeypatch.setenv("JAXSAT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(plan, "_devices", lambda topology, slices: jax.devices()[:1])
    version = metadata.version
    monkeypatch.setattr(metadata, "version", lambda name: "0" if name == "libtpu" else version(name))
    answers: list[dict] = []
    plan._serve(_request(str(tmp_path / "task.py"), topology="v5e:1x1"), answers.append)
    shape = Shape(**answers[-1] | {"mesh": tuple(answers[-1]["mesh"])})
    assert (shape.parameters, shape.nonembedding, shape.flops, shape.problem) == (2, None, None, "")
    found = Plan("v5e:1x1", 1, 1, 0.4, [shape], 0.0, 0.0)
    assert plan.table(found)["FLOPs a step"].tolist() == ["?"]
    assert plan.summary(found)[0].startswith("1 runs of tasks, whose FLOPs are not known")


@pytest.mark.parametrize(
    "message, gib",
    [
        (
            "Ran out of memory on HBM, the total memory required for HLO temporaries (24.22G) exceeds available HBM "
            "(15.75G).",
            24.22,
        ),
        ("Ran out of memory in memory space hbm. Used 512.00M of 15.75G hbm.", 0.5),
        ("Ran out of memory in memory space vmem. Used 20.00M of 16.00M vmem.", None),
    ],
)
def test_the_compilers_refusals_are_read(message, gib):
    def compile():
        raise jax.errors.JaxRuntimeError(f"RESOURCE_EXHAUSTED: {message}\n\nmore")

    assert plan._compiled(SimpleNamespace(compile=compile)) == (gib, "too large" if gib else message)


def test_the_smallest_change_that_fits_is_found(tiny_pack):
    tried = []

    def fits_with(accepted):
        def fits(label, pack, layout, topology):
            tried.append((len(pack.runs), layout.remat, layout.model, topology))
            if layout.model == 4:
                raise InputError("does not divide")
            return (2.0, "") if accepted(pack, layout, topology) else (30.0, "too large")

        return plan._remedy("label", tiny_pack, Layout(), Layout(remat="dots"), "v5e:8x8", fits)

    assert fits_with(lambda pack, *_: len(pack.runs) == 1) == "fits with --layout.runs 1 (2.00 GiB)"
    assert fits_with(lambda _, layout, __: layout.model == 8) == "fits with --layout.model 8 (2.00 GiB)"
    tried.clear()
    assert "v5e:16x16" in fits_with(lambda *args: args[2] == "v5e:16x16")
    topologies = [(3, None, 1, "v5e:8x16"), (3, None, 1, "v5e:16x16")]
    models = [(3, None, n, "v5e:8x8") for n in (2, 4, 8)]
    assert tried == [(1, None, 1, "v5e:8x8"), (3, "full", 1, "v5e:8x8"), *models, *topologies]
    assert "choose a chip with more memory" in fits_with(lambda *_: False)


ABORTING = """
import json, os, sys
request = json.load(sys.stdin)
if not request["aborted"]:
    print(json.dumps({"doing": "abc", "line": "1/1"}), flush=True)
    print("F1124 00:00:00 compiler.cc:1] Check failed", file=sys.stderr, flush=True)
    os.abort()
print(json.dumps(%r | {"problem": request["aborted"][0][1]}))
"""


def test_a_compiler_that_aborts_takes_nothing_else_with_it(monkeypatch):
    script = ABORTING % {k: v for k, v in vars(_shape()).items() if k != "problem"}
    monkeypatch.setattr(plan, "COMMAND", [sys.executable, "-c", script])
    assert plan._shapes(_request("mine"), lambda line: None) == [
        _shape(problem="the TPU compiler aborted: F1124 00:00:00 compiler.cc:1] Check failed")
    ]
    monkeypatch.setattr(plan, "COMMAND", [sys.executable, "-c", "1 / 0"])
    with pytest.raises(RuntimeError, match="ZeroDivisionError"):
        plan._shapes(_request("mine"), lambda line: None)
    slow = 'import time; print(\'{"doing": "a", "line": ""}\', flush=True); time.sleep(60)'
    monkeypatch.setattr(plan, "COMMAND", [sys.executable, "-c", slow])
    monkeypatch.setattr(plan, "TIMEOUT", 1)
    with pytest.raises(plan._Aborted, match="did not end in 1 s"):
        list(plan._answers(_request("mine")))


@pytest.mark.skipif(NO_COMPILER, reason="needs the TPU compiler: pip install 'jaxsat[tpu]'")
def test_a_sweep_is_compiled_for_a_tpu_that_is_not_here(mine, capsys):
    command = ["plan", mine, "--topology", "v5e:2x2", "--json"]
    assert cli.main(command) == 0
    said, errors = capsys.readouterr()
    found = json.loads(said)
    assert found["chips"] == 4 and found["shapes"][0]["mesh"] == [4, 1, 1] and 0 < found["shapes"][0]["gib"] < 1
    assert errors == "1/1 depth 1 width 128 x 4 runs: compiling\n"
    assert cli.main(command[:-1]) == 0
    said, errors = capsys.readouterr()
    assert errors == "" and "1 x 128" in said and "of 15.75" in said and "chip-hours" in said
    assert cli.main([*command, "--layout.model", "3"]) == 2
