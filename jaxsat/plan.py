"""What a sweep needs on TPUs that are not here: the real training step of every shape, compiled for them.

The TPU compiler (libtpu) needs no chip, but an environment from before JAX starts, and some programs abort it, process
and all. So it works in a process of its own: `python -m jaxsat.plan` reads a request as JSON and answers in lines of
JSON. What it found is kept under the cache directory, by the hash of the program and the compiler's version; JAX's own
cache cannot read programs for absent devices back (jax 0.10.2).
"""

import dataclasses
import functools
import hashlib
import importlib.util
import json
import math
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata
from typing import Any

import jax
import jax.numpy as jnp
import pandas as pd

from jaxsat import experiment as experiments
from jaxsat import model, parallel
from jaxsat.checkpoints import Retention
from jaxsat.config import InputError, Layout, Run, from_dict, validate_layout
from jaxsat.corpus import cache_dir
from jaxsat.machine import TPUS
from jaxsat.sweep import Pack, make_packs
from jaxsat.train import LANGUAGE_MODEL, Program, Task, hypers, train_step, write_atomically
from jaxsat.train.step import abstract_state

COMMAND = [sys.executable, "-P", "-m", "jaxsat.plan"]
TIMEOUT = 3600  # s for one program; the largest of ours takes minutes
REMATS = ("none", "dots", "full")


@dataclass(frozen=True)
class Shape:
    """One program of a sweep and what it needs on each device."""

    depth: int
    width: int
    parameters: int
    nonembedding: int | None  # None of a task, which says neither what an embedding is nor its FLOPs
    packs: int  # trained by this program, one after another
    runs: int  # a pack
    mesh: tuple[int, int, int]  # devices along pack, data, model
    remat: str
    gib: float | None  # a device, as compiled; None where the compiler does not say
    estimate: float  # the same by `model.step_bytes`, from which packs and layouts are chosen
    flops: int | None  # a step of the pack, by `model.flops_per_token`
    steps: int  # of all packs
    gib_on_disk: float  # checkpoints of all packs, at their end
    problem: str = ""  # why it cannot be trained so, and the smallest change with which it can


@dataclass(frozen=True)
class Plan:
    """A sweep on `slices` slices of a topology."""

    topology: str
    slices: int
    chips: int
    mfu: float
    shapes: list[Shape]
    hours: float  # with that part of the peak FLOP/s of each mesh's devices
    chip_hours: float  # of all chips: those that a mesh leaves idle are paid for too


def table(plan: Plan) -> pd.DataFrame:
    """A row a shape, as `jaxsat plan` prints it."""
    memory = TPUS[plan.topology.partition(":")[0]].gib
    return pd.DataFrame(
        {
            "depth x width": f"{s.depth} x {s.width}",
            "parameters": f"{s.parameters:,}",
            "non-embedding": "?" if s.nonembedding is None else f"{s.nonembedding:,}",
            "packs x runs": f"{s.packs} x {s.runs}",
            "pack x data x model": " x ".join(map(str, s.mesh)),
            "remat": s.remat,
            "GiB a device": f"{'?' if s.gib is None else f'{s.gib:.2f}'} of {memory}",
            "estimate": f"{s.estimate:.2f}",
            "FLOPs a step": "?" if s.flops is None else f"{s.flops:.3g}",
            "": "does not fit" if s.problem else "fits",
        }
        for s in plan.shapes
    )


def summary(plan: Plan) -> list[str]:
    """What does not fit, and the whole sweep in a line."""
    lines = [f"depth {s.depth} width {s.width} x {s.runs} runs: {s.problem}" for s in plan.shapes if s.problem]
    known = [s for s in plan.shapes if s.flops is not None]
    flops, runs = sum(s.steps * s.flops for s in known), sum(s.packs * s.runs for s in known)
    if tasks := sum(s.packs * s.runs for s in plan.shapes) - runs:
        lines.append(f"{tasks} runs of tasks, whose FLOPs are not known, are not in what follows")
    where = f"{plan.chips} chips of {f'{plan.slices} x ' if plan.slices > 1 else ''}{plan.topology}"
    cost = f"{plan.chip_hours:,.1f} chip-hours, {plan.hours:,.1f} h on {where}, at an MFU of {100 * plan.mfu:g} %"
    disk = f"checkpoints of {sum(s.gib_on_disk for s in plan.shapes):,.1f} GiB"
    return [*lines, f"{runs} runs, {flops:.3g} FLOPs: {cost}; {disk}"]


def plan(
    name: str,
    scale: str,
    topology: str,
    slices: int = 1,
    layout: Layout = Layout(),
    mfu: float = 0.4,
    say: Callable[[str], None] = lambda line: None,
) -> Plan:
    """Compiles every shape of a sweep for `slices` slices of `topology`, such as v5e:16x16. `mfu`: the part of the peak
    FLOP/s that training is taken to use. `say` is told what goes on.

    Raises InputError for an unknown topology, a layout that does not divide it, a faulty experiment, and where the
    compiler is not installed.
    """
    topology, chips = _known(topology), slices * _chips(topology)
    validate_layout(layout)
    if slices < 1:
        raise InputError(f"--slices {slices}: must be at least 1")
    if not 0 < mfu <= 1:
        raise InputError(f"--mfu {mfu}: must be above 0 and at most 1")
    if importlib.util.find_spec("libtpu") is None:
        raise InputError("jaxsat plan needs the TPU compiler: pip install 'jaxsat[tpu]'")
    request = {"name": name, "scale": scale, "topology": topology, "slices": slices}
    request |= {"layout": dataclasses.asdict(layout), "aborted": []}
    shapes = _shapes(request, say)
    peak = TPUS[topology.partition(":")[0]].flops
    hours = sum(s.steps * (s.flops or 0) / (math.prod(s.mesh) * peak * mfu) for s in shapes) / 3600
    return Plan(topology, slices, chips, mfu, shapes, hours, hours * chips)


def _shapes(request: dict[str, Any], say: Callable[[str], None]) -> list[Shape]:
    while True:
        shapes, doing = [], None
        try:
            for answer in _answers(request):
                match answer:
                    case {"error": message}:
                        raise InputError(message)
                    case {"doing": doing, "line": line}:
                        say(line)
                    case _:
                        shapes.append(Shape(**answer | {"mesh": tuple(answer["mesh"])}))
            return shapes
        except _Aborted as e:  # again without it: all the rest is cached
            if doing is None:
                raise
            request["aborted"].append([doing, f"the TPU compiler {e}"])


class _Aborted(Exception):
    """The compiler's process died of a signal, or was too slow."""


def _answers(request: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """What the compiler's process says, as it says it."""
    env = os.environ | {
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
        "JAX_PLATFORMS": "cpu",
        "JAX_ENABLE_COMPILATION_CACHE": "false",
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # else the second process on a machine dies
        "TPU_SKIP_MDS_QUERY": "1",  # asks no metadata server
        "TPU_WORKER_HOSTNAMES": "localhost",
        "TPU_LOG_DIR": "disabled",
    }
    with (
        tempfile.TemporaryFile("w+", errors="replace") as log,
        subprocess.Popen(COMMAND, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, env=env, text=True) as p,
    ):
        try:
            p.stdin.write(json.dumps(request))
            p.stdin.close()
            line = None
            while line != "":
                began, timer = time.monotonic(), threading.Timer(TIMEOUT, p.kill)
                timer.start()
                line = p.stdout.readline()
                timer.cancel()
                if line:
                    yield json.loads(line)
        except BaseException:
            p.kill()
            raise
        code = p.wait()
        log.seek(0)
        said = log.read().strip()
        if code < 0:
            fatal = next((line for line in said.splitlines() if re.match(r"F\d{4} ", line)), f"signal {-code}")
            late = time.monotonic() - began >= TIMEOUT
            raise _Aborted(f"did not end in {TIMEOUT} s" if late else f"aborted: {fatal}")
        if code:
            raise RuntimeError(said[-10_000:])


def _serve(request: dict[str, Any], answer: Callable[[dict[str, Any]], None]) -> None:
    name, scale, topology, slices = (request[key] for key in ("name", "scale", "topology", "slices"))
    layout, aborted = from_dict(Layout, request["layout"]), dict(request["aborted"])
    experiment = experiments.load(name, scale).chosen()
    devices = _devices(topology, slices)
    task_of = lambda pack: experiment.tasks[pack.runs[0].task] if pack.runs[0].task else LANGUAGE_MODEL
    groups: dict[Any, list[Pack]] = {}
    for pack in make_packs(
        experiment.runs.values(), lambda run, n_runs: parallel.pack_size(run, n_runs, layout, devices)
    ):
        groups.setdefault((Program.of(pack, task=task_of(pack)), len(pack.runs)), []).append(pack)

    def fits(label: str, pack: Pack, layout: Layout, topology: str) -> tuple[float | None, str]:
        """(GiB a device, why not)."""
        lowered = _lowered(pack, layout, _devices(topology, slices), task_of(pack))
        key = [lowered.as_text(), topology, slices, *(metadata.version(p) for p in ("jax", "jaxlib", "libtpu"))]
        key += [os.environ.get("LIBTPU_INIT_ARGS"), os.environ.get("XLA_FLAGS")]
        digest = hashlib.sha256(json.dumps(key).encode()).hexdigest()[:32]
        if digest in aborted:
            return None, aborted[digest]
        path = cache_dir() / "plans" / f"{digest}.json"
        if not path.exists():
            answer({"doing": digest, "line": label})
            write_atomically(path, json.dumps(_compiled(lowered)))
        return tuple(json.loads(path.read_text()))

    for i, packs in enumerate(groups.values()):
        pack, m = packs[0], packs[0].model
        chosen = parallel.pack_layout(pack, layout, devices)
        mesh = parallel.make_mesh(pack, layout, devices)
        rows, here = pack.runs[0].train.batch_size // mesh.shape["data"], len(pack.runs) // mesh.shape["pack"]
        label = f"{i + 1}/{len(groups)} depth {m.depth} width {m.width} x {len(pack.runs)} runs: compiling"
        gib, problem = fits(label, pack, layout, topology)
        if problem:
            problem = f"{problem}; {_remedy(label, pack, layout, chosen, topology, fits)}"
        task, counts = task_of(pack), model.count_parameters(m)
        init = functools.partial(task.init, m)
        drawn = jax.eval_shape(init, jax.random.key(0), jnp.int32(m.rank)) if pack.runs[0].task else {}
        shape = Shape(
            depth=m.depth,
            width=m.width,
            parameters=sum(x.size for x in jax.tree.leaves(drawn)) if drawn else counts.total,
            nonembedding=None if drawn else counts.nonembedding,
            packs=len(packs),
            runs=len(pack.runs),
            mesh=mesh.devices.shape,
            remat=chosen.remat,
            gib=gib,
            estimate=here * model.step_bytes(m, rows, chosen, "tpu") / 2**30,
            flops=None if drawn else sum(run.tokens_per_step for run in pack.runs) * model.flops_per_token(m),
            steps=sum(pack.runs[0].last_step - pack.runs[0].first_step for pack in packs),
            gib_on_disk=sum(checkpoint_bytes(pack, mesh, task, experiment.runs.values()) for pack in packs) / 2**30,
            problem=problem,
        )
        answer(dataclasses.asdict(shape))


def _remedy(label: str, pack: Pack, layout: Layout, chosen: Layout, topology: str, fits: Callable[..., Any]) -> str:
    """The smallest change that makes it fit, found by compiling."""
    chip, _, size = topology.partition(":")
    sizes = TPUS[chip].topologies
    remats = REMATS[REMATS.index(chosen.remat) + 1 :]
    models = [n for n in (2, 4, 8) if n > layout.model]
    changes = [(f"--layout.runs {n}", Pack(pack.runs[:n]), layout, topology) for n in _halves(len(pack.runs))]
    changes += [(f"--layout.remat {r}", pack, dataclasses.replace(layout, remat=r), topology) for r in remats]
    changes += [(f"--layout.model {n}", pack, dataclasses.replace(layout, model=n), topology) for n in models]
    larger = [f"{chip}:{size}" for size in sizes[sizes.index(size) + 1 :]]
    changes += [(f"--topology {to}", pack, layout, to) for to in larger]
    for what, *changed in changes:
        try:
            gib, problem = fits(f"{label}, does not fit: trying {what}", *changed)
        except InputError:  # it does not divide
            continue
        if not problem:
            return f"fits with {what}" + (f" ({gib:.2f} GiB)" if gib else "")
    return "nor does it with fewer runs, remat, splits of the model or larger slices: choose a chip with more memory"


def _halves(n: int) -> list[int]:
    return [n >> i for i in range(1, n.bit_length())]


def _lowered(pack: Pack, layout: Layout, devices: Sequence[jax.Device], task: Task) -> jax.stages.Lowered:
    """The training step as `train_pack` runs it, of language models on texts, not on pairs."""
    mesh, remat = parallel.make_mesh(pack, layout, devices), parallel.pack_layout(pack, layout, devices).remat
    program, train = Program.of(pack, remat, task), pack.runs[0].train
    hyper = parallel.abstract_like(jax.eval_shape(lambda: hypers(pack.runs)), parallel.per_run(mesh))
    shape = (len(pack.runs), train.batch_size, pack.model.context + 1 if task.reads else 1)
    rows_KxBxT1 = jax.ShapeDtypeStruct(shape, jnp.int32, sharding=parallel.per_run_and_row(mesh))
    return train_step.lower(program, mesh, abstract_state(program, mesh, hyper), hyper, rows_KxBxT1)


def checkpoint_bytes(pack: Pack, mesh: jax.sharding.Mesh, task: Task, runs: Iterable[Run]) -> int:
    """Of all arrays that are kept of a pack in a study of `runs`."""
    state = abstract_state(Program.of(pack, task=task), mesh, jax.eval_shape(lambda: hypers(pack.runs)))
    size = lambda tree: sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))
    kept, params = Retention.of(pack, pack.starts(runs)), size(state["params"])
    return len(kept.steps) * params + len(kept.whole | {*sorted(kept.steps)[-2:]}) * (size(state) - params)


def _compiled(lowered: jax.stages.Lowered) -> tuple[float | None, str]:
    """(GiB a device, why it does not fit)."""
    try:
        m = lowered.compile().memory_analysis()
    except jax.errors.JaxRuntimeError as e:
        if "RESOURCE_EXHAUSTED" not in str(e):
            raise
        needed = re.search(r"([\d.]+)([MGT])\b", str(e)) if "hbm" in str(e).lower() else None
        gib = float(needed[1]) * {"M": 2**-10, "G": 1, "T": 2**10}[needed[2]] if needed else None
        return gib, str(e).splitlines()[0].partition("RESOURCE_EXHAUSTED: ")[2] if needed is None else "too large"
    in_use = m.argument_size_in_bytes + m.output_size_in_bytes - m.alias_size_in_bytes + m.temp_size_in_bytes
    return (in_use + m.generated_code_size_in_bytes) / 2**30, ""


def _devices(topology: str, slices: int) -> Sequence[jax.Device]:
    from jax.experimental import topologies

    options: dict[str, Any] = {"num_slices": slices} if slices > 1 else {}
    if topology.startswith("v4:"):
        options["chip_config_name"] = "megacore"  # a chip is one device, as on TPU VMs
    if topology.endswith(":1x1"):
        options["chips_per_host_bounds"] = (1, 1, 1)
    return topologies.get_topology_desc(platform="tpu", topology_name=topology, **options).devices


def _known(topology: str) -> str:
    """As TPUS spells it: v4:8x8x4 is v4:4x8x8."""
    chip, _, size = topology.partition(":")
    for known in TPUS[chip].topologies if chip in TPUS else ():
        if sorted(known.split("x")) == sorted(size.split("x")):
            return f"{chip}:{known}"
    known = "; ".join(f"{chip}: {' '.join(c.topologies)}" for chip, c in TPUS.items())
    raise InputError(f"unknown topology {topology!r}: give one such as v5e:16x16, of {known}")


def _chips(topology: str) -> int:
    return math.prod(map(int, topology.partition(":")[2].split("x")))


def _main() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libtpu and experiments print goes with the errors

    def answer(document: dict[str, Any]) -> None:
        print(json.dumps(document), file=answers, flush=True)

    try:
        _serve(json.load(sys.stdin), answer)
    except InputError as e:
        answer({"error": str(e)})


if __name__ == "__main__":
    _main()
