import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from jaxsat import machine, parallel
from jaxsat.config import InputError, Layout, Run, override
from jaxsat.model import pythia
from jaxsat.parallel import (
    abstract_like,
    make_mesh,
    number_settings,
    over_runs,
    pack_layout,
    pack_size,
    per_run,
    per_run_and_row,
    put,
    replicated,
    state_shardings,
)
from jaxsat.sweep import MAX_RUNS, Pack


class Chip:
    """An accelerator that is not here, as far as a mesh looks at it."""

    platform, device_kind, process_index = "gpu", "chip", 0

    def __init__(self, id: int, slice_index: int = 0, gib: float = 16):
        self.id, self.slice_index, self.gib = id, slice_index, gib

    def memory_stats(self) -> dict[str, int]:
        return {"bytes_limit": int(self.gib * 2**30)}


def chips(n: int, gib: float = 16) -> list[Chip]:
    return [Chip(i, gib=gib) for i in range(n)]


def pack_of(runs: int, rows: int) -> Pack:
    return Pack(tuple(override(Run(), {"seed": seed, "train.batch_size": rows}) for seed in range(runs)))


@pytest.mark.parametrize(
    "runs, rows, on_cpu, on_chips",
    [
        (1, 16, (1, 1, 1), (1, 8, 1)),  # the rows stay together on a CPU
        (8, 16, (8, 1, 1), (8, 1, 1)),
        (2, 16, (2, 1, 1), (2, 4, 1)),
        (6, 2, (6, 1, 1), (2, 2, 1)),
        (3, 5, (3, 1, 1), (1, 1, 1)),
        (10, 5, (5, 1, 1), (2, 1, 1)),
        (13, 5, (1, 1, 1), (1, 1, 1)),
        (16, 1, (8, 1, 1), (8, 1, 1)),
    ],
)
def test_mesh_divides_runs_first_then_rows(runs, rows, on_cpu, on_chips):
    assert tuple(make_mesh(pack_of(runs, rows)).shape.values()) == on_cpu
    assert tuple(make_mesh(pack_of(runs, rows), devices=chips(8)).shape.values()) == on_chips


@pytest.mark.parametrize(
    "layout, sizes",
    [
        (Layout(model=2), (4, 1, 2)),
        (Layout(data=2), (4, 2, 1)),
        (Layout(pack=2, data=2, model=2), (2, 2, 2)),
        (Layout(pack=1, model=4), (1, 1, 4)),
    ],
)
def test_mesh_takes_the_layout_it_is_given(layout, sizes):
    assert tuple(make_mesh(pack_of(4, 16), layout).shape.values()) == sizes


@pytest.mark.parametrize(
    "layout, message",
    [
        (Layout(pack=3), "layout.pack = 3 does not divide the 4 runs of the pack: try 1"),
        (Layout(data=6), "layout.data = 6 does not divide the 16 rows of train.batch_size: try 2"),
        (Layout(model=8), "layout.model = 8 does not divide the 4 attention heads: try 4"),
        (Layout(pack=4, data=4), "layout 4 x 4 x 1 (pack x data x model) does not divide the 8 devices"),
    ],
)
def test_a_layout_that_does_not_divide_is_named(layout, message):
    with pytest.raises(InputError) as error:
        make_mesh(pack_of(4, 16), layout)
    assert str(error.value) == message


@pytest.mark.parametrize("runs, layout, axis", [(4, Layout(), 0), (1, Layout(), 1), (2, Layout(pack=2), 0)])
def test_slices_lie_on_the_outermost_axis_that_they_divide(runs, layout, axis):
    mesh = make_mesh(pack_of(runs, 16), layout, [Chip(i, i % 2) for i in range(8)])
    slices = np.vectorize(lambda chip: chip.slice_index)(mesh.devices)
    halves = np.split(slices, 2, axis)
    assert [set(half.flat) for half in halves] == [{0}, {1}]


def test_slices_that_divide_nothing_are_named():
    with pytest.raises(InputError, match="2 slices divide neither layout.pack = 1 nor layout.data = 1"):
        make_mesh(pack_of(1, 1), Layout(model=4), [Chip(i, i // 2) for i in range(4)])


@pytest.mark.parametrize(
    "shape, names, spec",
    [
        ((2, 64, 8), "embedding", ("pack", "model", "data")),
        ((2, 6, 8), "positions", ("pack", None, "data")),  # 6 positions do not divide by 4
        ((2, 1, 8, 32), "blocks attention query kernel", ("pack", None, "data", "model")),
        ((2, 1, 32, 8), "blocks feed_forward down kernel", ("pack", None, "model", "data")),
        ((2, 1, 32), "blocks feed_forward up bias", ("pack", None, "model")),
        ((2, 1, 8), "blocks feed_forward down bias", ("pack", None, None)),
        ((2, 1, 8), "blocks norm1 scale", ("pack", None, None)),
        ((2, 8, 64), "head kernel", ("pack", "data", "model")),
        ((2, 8, 2), "head a", ("pack", "data", None)),
        ((2, 2, 64), "head b", ("pack", None, "model")),  # nor does rank 2
        ((2,), "count", ("pack",)),
        ((), "step", ()),
    ],
)
def test_where_parameters_live(shape, names, spec):
    mesh = jax.sharding.AbstractMesh((2, 4, 2), ("pack", "data", "model"))
    tree = jax.ShapeDtypeStruct(shape, jnp.float32)
    for name in reversed(names.split()):
        tree = {name: tree}
    assert jax.tree.leaves(state_shardings(mesh, tree))[0].spec == PartitionSpec(*spec)


LARGE = override(Run(pythia("410m", compute_dtype="bfloat16")), {"train.batch_size": 8})


@pytest.mark.parametrize("gib, remat", [(400, "none"), (40, "dots"), (16, "full"), (0.1, "full")])
def test_memory_decides_what_is_computed_again(gib, remat):
    runs = Pack(tuple(override(LARGE, {"seed": seed}) for seed in range(4)))
    assert pack_layout(runs, devices=chips(4, gib)) == Layout(pack=4, data=1, model=1, remat=remat)
    assert pack_layout(runs, Layout(remat="dots"), chips(4, gib)).remat == "dots"


def test_a_run_too_large_for_a_device_is_spread_over_several():
    run = override(Run(pythia("6.9b", compute_dtype="bfloat16")), {"train.batch_size": 64})
    assert pack_size(run, 8, Layout(), chips(64, 32))[0] < 8
    assert pack_size(run, 8, Layout(), chips(64, 1000))[0] == 8


def test_packs_are_as_large_as_memory_allows():
    sizes = [pack_size(LARGE, 64, Layout(remat="full"), chips(4, gib)) for gib in (0.1, 16, 32, 64, 1000)]
    assert sizes[0] == (1, 1) and sizes[-1] == (4, 4 * MAX_RUNS)
    assert [most for _, most in sizes] == sorted(most for _, most in sizes)
    assert all(most % multiple == 0 for multiple, most in sizes)
    assert pack_size(LARGE, 3, Layout(), chips(4, 1000)) == (2, 2 * MAX_RUNS)  # 4 devices: a pair of runs
    assert pack_size(LARGE, 64, Layout(remat="full", runs=6), chips(4, 1000)) == (4, 4)
    assert pack_size(LARGE, 64, Layout(remat="full", runs=3), chips(4, 1000)) == (2, 2)
    assert pack_size(Run(), 50, Layout(), jax.devices()[:2]) == (2, MAX_RUNS)
    assert pack_size(Run(), 50, Layout(runs=5), jax.devices()[:2]) == (2, 4)
    assert pack_size(Run(), 5, Layout(), jax.devices()) == (5, 5)  # a CPU may leave three of eight alone


def test_put_gives_every_device_its_part():
    mesh = make_mesh(pack_of(4, 2), Layout(data=2))
    rows_KxBxT1 = np.arange(4 * 2 * 3).reshape(4, 2, 3)
    placed = put(rows_KxBxT1, per_run_and_row(mesh))
    np.testing.assert_array_equal(placed, rows_KxBxT1)
    assert {shard.data.shape for shard in placed.addressable_shards} == {(1, 1, 3)}


def test_shardings_put_each_run_where_it_trains():
    mesh = make_mesh(pack_of(4, 2), Layout(data=2))
    x_KxBxT = np.arange(4 * 2 * 3).reshape(4, 2, 3)
    shapes = lambda sharding: {s.data.shape for s in jax.device_put(x_KxBxT, sharding).addressable_shards}
    assert shapes(per_run(mesh)) == {(1, 2, 3)}
    assert shapes(per_run_and_row(mesh)) == {(1, 1, 3)}
    assert shapes(replicated(mesh)) == {(4, 2, 3)}


def test_over_runs_computes_each_run_alone():
    """A batched SVD, which XLA left to itself gathers on every device; two runs a device."""
    mesh = make_mesh(pack_of(16, 1))
    x_KxMxN = np.random.default_rng(0).normal(size=(16, 7, 5)).astype(np.float32)

    def sigma(x_MxN, scale):
        assert x_MxN.ndim == 2 and scale.ndim == 0
        return {"sigma": jnp.linalg.svd(x_MxN, compute_uv=False) * scale}

    f = jax.jit(over_runs(mesh, sigma, shared=1))
    args = jax.device_put(x_KxMxN, per_run(mesh)), jax.device_put(np.float32(3), replicated(mesh))
    found = f(*args)["sigma"]
    np.testing.assert_allclose(found, 3 * np.linalg.svd(np.float64(x_KxMxN), compute_uv=False), rtol=1e-5)
    assert found.sharding.spec == PartitionSpec("pack")
    text = f.lower(*args).compile().as_text()
    assert "all-" not in text and "collective" not in text


def test_abstract_like_keeps_shapes_and_types():
    mesh = make_mesh(pack_of(2, 1))
    tree = {"w": jnp.ones((2, 3), jnp.bfloat16), "keys": jax.random.split(jax.random.key(0), 2)}
    abstract = abstract_like(tree, per_run(mesh))
    for name, x in tree.items():
        assert (abstract[name].shape, abstract[name].dtype) == (x.shape, x.dtype)
        assert abstract[name].sharding == per_run(mesh)


def test_settings_that_change_numbers_are_told():
    """In a process that is told by the environment."""
    told = {
        "jax_enable_x64": True,
        "jax_numpy_dtype_promotion": "standard",
        "jax_default_matmul_precision": "highest",
        "jax_default_prng_impl": "rbg",
        "jax_threefry_partitionable": False,
        "jax_random_seed_offset": 3,
        "jax_explicit_x64_dtypes": "allow",
        "jax_high_dynamic_range_gumbel": True,
    }
    program = "import json; from jaxsat.parallel import number_settings; print(json.dumps(number_settings()))"
    env = os.environ | {name.upper(): str(value) for name, value in told.items()}
    done = subprocess.run([sys.executable, "-c", program], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    ours = number_settings()
    assert json.loads(done.stdout) == ours | told and not [name for name, value in told.items() if ours[name] == value]
    assert json.loads(json.dumps(ours)) == ours and ours["jax_default_matmul_precision"] == "default"


START = """
import jax
from jaxsat import parallel
from jaxsat.config import InputError

try:
    parallel.start()
    print(len(jax.devices()), jax.config.jax_platforms, jax.config.jax_compilation_cache_dir)
except InputError as e:
    print(e)
"""


@pytest.fixture
def started(tmp_path):
    """What START prints in a process with these environment variables and this beginning, and nothing on stderr."""

    def run(begin: str = "", **environ: str) -> str:
        names = ("JAX_PLATFORMS", "JAX_COMPILATION_CACHE_DIR", "JAX_NUM_CPU_DEVICES", "TPU_WORKER_ID")
        env = {key: value for key, value in os.environ.items() if key not in names}
        env |= {"JAXSAT_CACHE": str(tmp_path / "cache")} | environ
        done = subprocess.run([sys.executable, "-c", begin + START], env=env, capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (0, "")
        return done.stdout.removesuffix("\n")

    return run


def test_what_jax_is_told_is_kept_and_the_rest_is_chosen(started, tmp_path):
    compiled = tmp_path / "cache" / "compiled"
    assert started() == f"{machine.cores()} None {compiled}"
    told = {"JAX_COMPILATION_CACHE_DIR": str(tmp_path / "mine"), "JAX_NUM_CPU_DEVICES": "3", "JAX_PLATFORMS": "cpu"}
    assert started(**told) == f"3 cpu {tmp_path / 'mine'}"
    bound = "from jaxsat import machine; machine.cores = lambda: 5\n"
    assert started(bound) == f"5 None {compiled}"


def test_a_library_for_tpus_alone_is_not_asked_where_there_is_none(started, tmp_path):
    if parallel._only_a_cpu() or any(Path("/dev").glob("accel*")) or any(Path("/dev").glob("vfio/[0-9]*")):
        pytest.skip("there is a TPU, or its library")
    (tmp_path / "libtpu").mkdir()
    (tmp_path / "libtpu" / "__init__.py").write_text("get_library_path = lambda: '/nowhere/libtpu.so'")
    assert started(PYTHONPATH=str(tmp_path)).split()[1] == "cpu"
    assert started(PYTHONPATH=str(tmp_path), TPU_WORKER_ID="0").split()[1] == "None"
    (tmp_path / "jax_plugins").mkdir()
    assert started(PYTHONPATH=str(tmp_path)).split()[1] == "None"


@pytest.mark.parametrize(
    "platforms, why",
    [
        ("none", "Unable to initialize backend 'none': Backend 'none' is not in the list of known backends: "),
        ("cuda", "JAX found cpu only"),
        ("cuda,cpu", "JAX found cpu only"),
        ("cpu,", "Unable to initialize backend '': "),
    ],
)
def test_a_platform_that_is_not_there_is_named(started, platforms, why):
    if platforms.startswith("cuda") and Path("/dev/nvidiactl").exists():
        pytest.skip("there is a GPU")
    said = started(JAX_PLATFORMS=platforms)
    right = "JAX_PLATFORMS= (empty) takes the best there is, JAX_PLATFORMS=cpu the CPU"
    assert said.startswith(f"JAX_PLATFORMS = {platforms!r}: {why}") and said.endswith(f"; {right}")
    assert "\n" not in said


def test_laws_have_a_cpu_beside_any_platform(started):
    nowhere = "from jaxsat import parallel; parallel._find = lambda asked: print(asked, jax.config.jax_platforms)\n"
    said = started("import jax\n" + nowhere + "jax.devices = lambda: []\n", JAX_PLATFORMS="tpu")
    assert said.splitlines()[0] == "tpu tpu,cpu"


def test_devices_of_several_hosts_need_them_all(monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 4)
    with pytest.raises(InputError, match="these devices belong to 4 hosts: set JAXSAT_DISTRIBUTED=1"):
        parallel._find(None)


def test_a_cpu_has_the_memory_that_the_process_may_use(monkeypatch):
    monkeypatch.setattr(machine, "memory", lambda: 8 * 2**30)
    assert parallel.memory(jax.devices()[0]) == 2**30
    chip = Chip(0)
    chip.device_kind = "TPU v5 lite"
    assert parallel.memory(chip) == int(15.75 * 2**30)
