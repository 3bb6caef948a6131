"""Devices, mesh and shardings: the one place that knows how many devices there are.

Axis `pack` holds runs that never talk to each other; axis `data` splits the rows of a batch and, with them, parameters
and optimizer (FSDP); axis `model` splits attention heads, feed-forward layers and the vocabulary (tensor parallelism).
"""

import ctypes
import dataclasses
import enum
import importlib.util
import math
import os
from collections.abc import Callable, Iterator, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import fsspec.config
import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jaxsat import hosts, machine, model
from jaxsat.config import InputError, Layout, Run
from jaxsat.corpus import cache_dir
from jaxsat.sweep import MAX_RUNS, Pack

# Numbers of a run depend on these of JAX's settings: types, precision and random numbers. What only changes how they
# are rounded (the compiler's options, the kind of device) is recorded in env.json. The last is new in jax 0.12.
_NUMBERS = (
    "jax_enable_x64",
    "jax_explicit_x64_dtypes",
    "jax_numpy_dtype_promotion",
    "jax_default_matmul_precision",
    "jax_default_prng_impl",
    "jax_threefry_partitionable",
    "jax_random_seed_offset",
    "jax_high_dynamic_range_gumbel",
    "jax_accurate_erf_inv",
)


def number_settings() -> dict[str, bool | int | str]:
    """JAX's settings under which a run's id stands for its numbers, as JSON can write them: under others the same
    configuration trains another model. Those that this version of JAX does not have are left out; "default" is its own
    choice."""
    found = {name: getattr(jax.config, name) for name in _NUMBERS if hasattr(jax.config, name)}
    words = {name: v.name.lower() if isinstance(v, enum.Enum) else v for name, v in found.items()}
    return {name: "default" if v is None else v for name, v in words.items()}


def start(layout: Layout = Layout()) -> None:
    """Call once, before any array exists: compiled programs are kept on disk, on a CPU every core is a device, and the
    processes of many hosts find each other: see `hosts.join`. What the environment says of these to JAX itself is kept
    (JAX_COMPILATION_CACHE_DIR, JAX_NUM_CPU_DEVICES, JAX_PLATFORMS). Raises InputError where it names a platform that
    is not there.

    Measured on 2 cores, 6 runs a pack on two devices against 3 on one: 1.97 x the tokens a second at width 8 and 32,
    1.45 x at width 64, where one device already uses more than one core.
    """
    if (layout.data or 1) * layout.model > 1:
        # Threads for collectives of a CPU's devices with two steps in flight: XLA's pool of one a core stops for good.
        os.environ.setdefault("NPROC", "32")
    if jax.config.jax_compilation_cache_dir is None:
        jax.config.update("jax_compilation_cache_dir", str(cache_dir() / "compiled"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
    asked = jax.config.jax_platforms
    if asked and "cpu" not in asked.split(","):
        jax.config.update("jax_platforms", f"{asked},cpu")  # laws are fitted there
    elif not asked and _only_a_cpu():
        jax.config.update("jax_platforms", "cpu")
    if jax.config.jax_platforms in (None, "", "cpu") and jax.config.jax_num_cpu_devices < 1:
        jax.config.update("jax_num_cpu_devices", machine.cores())
    if jax.config.jax_num_cpu_devices == 1:
        _keep_memory()
    # What other hosts, and tensorstore, write into a bucket is seen.
    fsspec.config.conf.setdefault("gcs", {}).setdefault("use_listings_cache", False)
    hosts.join()
    _find(asked)


def _only_a_cpu() -> bool:
    """Whether a TPU's library is all that could find an accelerator, and there is no TPU: looking for one it prints
    several lines of warnings (libtpu 0.0.42.1). Where JAX itself sees one on the bus, it has chosen it on import."""
    plugins = metadata.entry_points(group="jax_plugins") or importlib.util.find_spec("jax_plugins")
    devices = [path for pattern in ("accel*", "vfio/[0-9]*") for path in Path("/dev").glob(pattern)]
    told = os.environ.keys() & {"TPU_NAME", "TPU_WORKER_ID", "TPU_WORKER_HOSTNAMES", "TPU_ACCELERATOR_TYPE"}
    return importlib.util.find_spec("libtpu") is not None and not (plugins or devices or told)


def _find(asked: str | None) -> None:
    """Starts the platforms, of which the first that was `asked` for must be there: for JAX a GPU need not be."""
    try:
        platform = jax.devices()[0].platform
    except RuntimeError as e:
        if "Unable to initialize backend" not in str(e):
            raise
        why = str(e).splitlines()[0].partition(" (set JAX_PLATFORMS")[0].rstrip(".")
    else:
        if not asked or (platform == "cpu") == (asked.split(",")[0] == "cpu"):
            if jax.process_count() > 1 and not jax.distributed.is_initialized():
                raise InputError(
                    f"these devices belong to {jax.process_count()} hosts: set JAXSAT_DISTRIBUTED=1, and run the same "
                    "command on all of them"
                )
            return
        why = f"JAX found {platform} only"
    where = f"JAX_PLATFORMS = {asked!r}" if asked else "no device"
    raise InputError(f"{where}: {why}; JAX_PLATFORMS= (empty) takes the best there is, JAX_PLATFORMS=cpu the CPU")


def _keep_memory() -> None:
    """XLA takes its scratch memory anew every step, and above 32 MiB glibc gets it from the system and gives it back:
    27 000 page faults, a quarter of the CPU time of a step of Pythia-14m's blocks on 1024 tokens. One heap that keeps
    its memory has none. Not for several devices: their threads wait for it (packs of width 16: 1.2 x slower)."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", lambda key, value: 0)  # glibc's alone
    for key, value in ((-8, 1), (-3, 1 << 30), (-1, (1 << 31) - 1), (-2, 1 << 28)):
        mallopt(key, value)  # one arena; no mmap; no trimming; grow by 256 MiB


def memory(device: jax.Device) -> int:
    """Bytes that a program may use on a device, which need not be here; of a CPU its share of what the process may."""
    if isinstance(known := machine.chip(device.device_kind), machine.Tpu):
        return int(known.gib * 2**30)
    if device.platform == "cpu":
        return machine.memory() // jax.local_device_count()
    ours = device.process_index == jax.process_index()  # all are alike, and only ours can be asked
    return (device if ours else jax.local_devices()[0]).memory_stats()["bytes_limit"]


def pack_size(run: Run, n_runs: int, layout: Layout, devices: Sequence[jax.Device]) -> tuple[int, int]:
    """(m, n): packs of runs like this one, of which there are `n_runs`, have a multiple of m runs, n at most.

    On a CPU throughput no longer grows beyond MAX_RUNS runs; elsewhere each device takes as many.
    """
    n, n_runs = len(devices) // layout.model // (layout.data or 1), min(n_runs, layout.runs or n_runs)
    packs = [p for p in range(min(n, n_runs), 0, -1) if n % p == 0 or _one_cpu(devices)]
    for tried in _layouts(run, [layout.pack] if layout.pack else packs, layout, devices):
        if room := _room(run, tried, devices[0]):
            most = MAX_RUNS // tried.pack if devices[0].platform == "cpu" else MAX_RUNS
            most = min(most, (layout.runs or MAX_RUNS * tried.pack) // tried.pack)
            return tried.pack, min(max(1, most), room) * tried.pack
    return 1, 1


def pack_layout(pack: Pack, layout: Layout = Layout(), devices: Sequence[jax.Device] | None = None) -> Layout:
    """`layout` with what it leaves open chosen: runs over devices before rows, since they do not talk to each other,
    and of what fits the memory that which computes least again; where nothing does, what needs the least."""
    devices = jax.devices() if devices is None else devices
    n, n_runs = len(devices) // layout.model // (layout.data or 1), len(pack.runs)
    most = max((p for p in range(1, n + 1) if n_runs % p == 0 and (n % p == 0 or _one_cpu(devices))), default=1)
    for chosen in _layouts(pack.runs[0], [layout.pack or most], layout, devices):
        if _room(pack.runs[0], chosen, devices[0]) * chosen.pack >= n_runs:
            break
    return chosen


def _layouts(run: Run, packs: Sequence[int], layout: Layout, devices: Sequence[jax.Device]) -> Iterator[Layout]:
    """`layout` with what it leaves open filled in, the fastest first."""
    for remat in [layout.remat] if layout.remat else ("none", "dots", "full"):
        for pack in packs:
            rest = max(1, len(devices) // layout.model // pack)
            data = layout.data or (1 if _one_cpu(devices) else math.gcd(rest, run.train.batch_size))
            yield dataclasses.replace(layout, pack=pack, data=data, remat=remat)


def _one_cpu(devices: Sequence[jax.Device]) -> bool:
    """Its devices are threads: some may be left alone, and splitting rows over them gains nothing."""
    return devices[0].platform == "cpu" and jax.process_count() == 1


def _room(run: Run, layout: Layout, device: jax.Device) -> int:
    """How many such runs a device holds, by estimate: nine tenths of its memory."""
    rows = -(-run.train.batch_size // layout.data)
    return int(0.9 * memory(device) // model.step_bytes(run.model, rows, layout, device.platform))


def make_mesh(pack: Pack, layout: Layout = Layout(), devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A (pack, data, model) mesh for what `layout` says and `pack_layout` adds; of several slices, whose network is
    slow, the outermost axis takes most.

    Raises InputError for a layout that does not divide devices, runs, rows or heads.
    """
    devices = jax.devices() if devices is None else devices
    n, n_runs, n_rows, m = len(devices), len(pack.runs), pack.runs[0].train.batch_size, pack.model
    chosen = pack_layout(pack, layout, devices)
    shape = (chosen.pack, chosen.data, chosen.model)
    for key, size, of, what in (
        ("pack", shape[0], n_runs, "runs of the pack"),
        ("data", shape[1], n_rows, "rows of train.batch_size"),
        ("model", layout.model, m.kv_heads or m.heads, "key-value heads" if m.kv_heads else "attention heads"),
    ):
        if of % size:
            raise InputError(f"layout.{key} = {size} does not divide the {of} {what}: try {math.gcd(of, size)}")
    used = math.prod(shape)
    if n % used and not (_one_cpu(devices) and used < n):
        raise InputError(f"layout {' x '.join(map(str, shape))} (pack x data x model) does not divide the {n} devices")
    if used < n and jax.process_count() > 1:
        raise InputError(
            f"{n_runs} runs of {n_rows} rows keep {used} of {n} devices busy: start fewer processes, or choose "
            "layout.pack, layout.data and layout.model whose product is their number"
        )
    return Mesh(_arranged(shape, devices[:used]), ("pack", "data", "model"), axis_types=(AxisType.Auto,) * 3)


def _arranged(shape: tuple[int, int, int], devices: Sequence[jax.Device]) -> np.ndarray:
    n_slices = len({getattr(d, "slice_index", 0) for d in devices})
    if n_slices == 1:
        return mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
    over_slices = math.gcd(n_slices, shape[0]), n_slices // math.gcd(n_slices, shape[0]), 1
    if shape[1] % over_slices[1]:
        raise InputError(f"{n_slices} slices divide neither layout.pack = {shape[0]} nor layout.data = {shape[1]}")
    within = [size // slices for size, slices in zip(shape, over_slices)]
    return mesh_utils.create_hybrid_device_mesh(within, over_slices, devices, allow_split_physical_axes=True)


def per_run(mesh: Mesh) -> NamedSharding:
    """Arrays with a leading axis K of runs: each run's part lives where it trains."""
    return NamedSharding(mesh, PartitionSpec("pack"))


def per_run_and_row(mesh: Mesh) -> NamedSharding:
    """Batches K x B x T: runs over `pack`, rows over `data`."""
    return NamedSharding(mesh, PartitionSpec("pack", "data"))


def state_shardings(mesh: Mesh, state_K: Any) -> Any:
    """Where each array of a pack's parameters and optimizer lives: runs over `pack`; of each matrix the dimension that
    tensor parallelism splits over `model`, and the largest of the others that divides over `data` (FSDP)."""

    def sharding(path: tuple[Any, ...], x: jax.Array) -> NamedSharding:
        names = tuple(str(getattr(key, "key", key)) for key in path)
        spec = ["pack", *[None] * (x.ndim - 1)][: x.ndim]
        split = model.split_dimension(names)
        if split is not None and x.shape[split] % mesh.shape["model"] == 0:
            spec[split] = "model"
        matrix = x.ndim > 2 and names[-1] not in ("scale", "bias")
        whole = [d for d in (-2, -1) if matrix and spec[d] is None and x.shape[d] % mesh.shape["data"] == 0]
        if whole:
            spec[max(whole, key=lambda d: x.shape[d])] = "data"
        return NamedSharding(mesh, PartitionSpec(*spec))

    return jax.tree_util.tree_map_with_path(sharding, state_K)


def put(array: np.ndarray, sharding: NamedSharding) -> jax.Array:
    """An array that every process has whole, each putting its own part of it on its devices."""
    return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])


def over_runs(mesh: Mesh, f: Callable[..., Any], shared: int = 0) -> Callable[..., Any]:
    """`f` of one run, for stacked runs: every device computes its own, without communication by construction.

    The last `shared` arguments are the same for all runs. Axes `data` and `model` stay with the
    compiler.
    """

    def stacked(*args):
        own, common = args[: len(args) - shared], args[len(args) - shared :]
        if takes_turns(mesh):
            return jax.lax.map(lambda one: f(*one, *common), own)
        return jax.vmap(f, in_axes=(0,) * len(own) + (None,) * shared)(*args)

    def mapped(*args):
        specs = (PartitionSpec("pack"),) * (len(args) - shared) + (PartitionSpec(),) * shared
        return jax.shard_map(
            stacked, mesh=mesh, in_specs=specs, out_specs=PartitionSpec("pack"), axis_names={"pack"}, check_vma=False
        )(*args)

    return mapped


def takes_turns(mesh: Mesh) -> bool:
    """Whether a device computes its runs one after another: on a CPU. There a whole training step is 1.2-1.5 x as fast
    as vmapped (width 8-64, 6-8 runs, whose logits leave the cache), and XLA's batched QR and SVD wait for threads of
    the pool that they run in, which two devices bring to a standstill (jax 0.10.2)."""
    return mesh.devices.flat[0].platform == "cpu"


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec())


def abstract_like(tree: Any, shardings: Any) -> Any:
    """The shapes of `tree` (arrays, or what has their shape and dtype), to be restored with `shardings`: one for all,
    or a tree of them."""
    if isinstance(shardings, jax.sharding.Sharding):
        shardings = jax.tree.map(lambda _: shardings, tree)
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), tree, shardings)
