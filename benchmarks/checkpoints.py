"""What safety costs: python -m benchmarks checkpoints

verify_bandwidth: the checksums of parameters and optimizer of 10M parameters on the devices, against reading the files
that they were saved in, from the page cache. checkpoint_stall_percent: the time in which saves hold training up, over
the schedule of a run of 1000 steps, in per cent of its steps; `rival` is the target.
"""

import os
import tempfile
import time
from pathlib import Path

import jax
import numpy as np

from benchmarks import median_seconds
from jaxsat.checkpoints import Store
from jaxsat.checksums import checksums
from jaxsat.config import ModelConfig, Run, TrainConfig
from jaxsat.parallel import make_mesh, per_run, per_run_and_row, put
from jaxsat.sweep import Pack
from jaxsat.train import Program, hypers, initializer, train_step

RUN = Run(ModelConfig(depth=6, width=256, heads=4, context=128, vocab_size=8192), TrainConfig(steps=1000, batch_size=8))
ROUNDS = 5


def bench() -> list[dict]:
    pack = Pack((RUN,))
    mesh, program = make_mesh(pack), Program.of(pack)
    hyper = jax.tree.map(lambda x: put(np.asarray(x), per_run(mesh)), hypers(pack.runs))
    state = initializer(program, mesh)(hyper)
    rows = np.random.default_rng(0).integers(0, RUN.model.vocab_size, (1, RUN.train.batch_size, RUN.model.context + 1))
    rows_KxBxT1 = put(rows.astype(np.int32), per_run_and_row(mesh))
    steps, stalls = [], []
    with tempfile.TemporaryDirectory() as folder, Store(folder, [RUN.id], writable=True) as store:
        for step in range(ROUNDS + 1):
            for _ in range(3):
                began = time.monotonic()
                state, _ = jax.block_until_ready(train_step(program, mesh, state, hyper, rows_KxBxT1))
                steps.append(time.monotonic() - began)
            store.close()  # as where the one before has long been written
            began = time.monotonic()
            store.save(step, state, 0.0)
            stalls.append(time.monotonic() - began)
        store.close()
        files = [p for p in Path(folder, str(ROUNDS)).rglob("*") if p.is_file()]
        size = sum(p.stat().st_size for p in files)
        solvers = {"checksums": lambda: checksums(state), "files": lambda: [p.read_bytes() for p in files]}
        seconds = median_seconds(solvers, ROUNDS)
    n = sum(x.size for x in jax.tree.leaves(state["params"]))
    held = sum(x.nbytes for x in jax.tree.leaves(state["params"])) * 3
    seconds_a_step, stall, saves = np.median(steps[3:]), np.median(stalls[1:]), len(RUN.checkpoint_steps)
    percent = 100 * saves * stall / (RUN.train.steps * seconds_a_step)
    shape = f"{n / 1e6:.1f}M parameters, d=256, V=8192"
    return [
        {
            "name": "verify_bandwidth",
            "ours": seconds["checksums"],
            "rival": seconds["files"],
            "ratio": seconds["files"] / seconds["checksums"],
            "unit": "s",
            "shape": shape,
            "target": 0.7,
            "detail": f"{held / seconds['checksums'] / 1e9:.2f} against {size / seconds['files'] / 1e9:.2f} GB/s; "
            f"files are {size / held:.2f} of the arrays' bytes; {os.cpu_count()} cores",
        },
        {
            "name": "checkpoint_stall_percent",
            "ours": percent,
            "rival": 2.0,
            "ratio": 2.0 / percent,
            "unit": "%",
            "shape": shape,
            "target": 1.0,
            "detail": f"{saves} saves of {1000 * stall:.0f} ms in {RUN.train.steps} steps of "
            f"{1000 * seconds_a_step:.0f} ms",
        },
    ]
