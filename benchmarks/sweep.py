"""Training the whole laptop sweep in packs, against one run at a time: python -m benchmarks sweep

Wall time with compiles: each distinct program is compiled here, without a cache, and timed over a few steps; the rest
is extrapolated, steps times seconds a step. Unpacked, a run has a head of its own rank and all cores.
"""

import os
import statistics
import time

import jax
import numpy as np

from benchmarks import Worker, answer, questions
from jaxsat import parallel
from jaxsat.config import Layout
from jaxsat.experiments import saturation
from jaxsat.sweep import Pack, make_packs
from jaxsat.train import Program, hypers, initializer, train_step

STEPS, ROUNDS = 10, 5


def seconds(packs: list[Pack]) -> tuple[float, float, int]:
    """(of compiling, of training, number of programs)."""
    compiling, step, rng = 0.0, {}, np.random.default_rng(0)
    for pack in packs:
        program, mesh, n = Program.of(pack), parallel.make_mesh(pack), len(pack.runs)
        if (program, n) in step:
            continue
        rows = rng.integers(0, pack.model.vocab_size, (n, program.train.batch_size, 65), np.int32)
        rows_KxBxT1 = jax.device_put(rows, parallel.per_run_and_row(mesh))
        hyper = jax.device_put(hypers(pack.runs), parallel.per_run(mesh))
        begun = time.perf_counter()
        state, metrics = train_step(program, mesh, initializer(program, mesh)(hyper), hyper, rows_KxBxT1)
        jax.block_until_ready(metrics)
        compiling += time.perf_counter() - begun
        took = []
        for _ in range(ROUNDS):
            begun = time.perf_counter()
            for _ in range(STEPS):
                state, metrics = train_step(program, mesh, state, hyper, rows_KxBxT1)
            jax.block_until_ready(metrics)
            took.append((time.perf_counter() - begun) / STEPS)
        step[program, n] = statistics.median(took)
    training = sum(step[Program.of(pack), len(pack.runs)] * pack.runs[0].train.steps for pack in packs)
    return compiling, training, len(step)


def work() -> None:
    parallel.start()
    jax.config.update("jax_enable_compilation_cache", False)
    runs = list(dict.fromkeys(run for sweep in saturation.sweeps("laptop") for run in sweep.runs))
    sizes = lambda run, n_runs: parallel.pack_size(run, n_runs, Layout(), jax.devices())
    for question in questions():
        packs = make_packs(runs, sizes) if question == "packed" else [Pack((run,)) for run in runs]
        answer([len(packs), *seconds(packs)])


def bench() -> list[dict]:
    """Minutes; ratio = unpacked / packed."""
    with Worker("sweep") as a, Worker("sweep") as b:
        packs, *packed, programs = a.ask("packed")
        runs, *solo, solo_programs = b.ask("unpacked")
    return [
        {
            "name": "sweep_packed_vs_unpacked",
            "ours": sum(packed) / 60,
            "rival": sum(solo) / 60,
            "ratio": sum(solo) / sum(packed),
            "unit": "min",
            "shape": f"{runs} runs in {packs} packs",
            "target": 1.6,
            "detail": f"{packed[0]:.0f} s for {programs} programs, {packed[1]:.0f} s of "
            f"steps; unpacked {solo[0]:.0f} s for {solo_programs} programs, {solo[1]:.0f} s of steps; extrapolated "
            f"from {STEPS * ROUNDS} of each program; {os.cpu_count()} cores",
        }
    ]


if __name__ == "__main__":
    work()
