"""What safety costs: python -m benchmarks checkpoints

verify_bandwidth: the checksums of parameters and optimizer of 10M parameters on the devices, against reading the files
that they were saved in, from the page cache. checkpoint_stall_percent: the time in which saves hold training up, over
the schedule of a run of 1000 steps, in per cent of its steps; `rival` is the target. resume_seconds: from the start of
a process to the tenth step after the checkpoint of one that was killed, against the tenth step of a new study, both
with compiled programs and a prepared text. checkpoint_bytes: what that study keeps on disk, against its arrays.
"""

import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import jax
import numpy as np

from benchmarks import median_seconds
from jaxsat.checkpoints import Store
from jaxsat.checksums import checksums
from jaxsat.config import ModelConfig, Run, TrainConfig
from jaxsat.directory import Directory
from jaxsat.parallel import make_mesh, per_run, per_run_and_row, put
from jaxsat.plan import checkpoint_bytes
from jaxsat.sweep import Pack
from jaxsat.train import LANGUAGE_MODEL, Program, hypers, initializer, train_step

RUN = Run(ModelConfig(depth=8, width=256, heads=4, context=128, vocab_size=8192), TrainConfig(steps=1000, batch_size=8))
ROUNDS = 5
# Tiny runs, of which much on disk would be names, sizes and hashes.
STUDY = """
from jaxsat import DataConfig, ModelConfig, Run, Sweep, TrainConfig, product


def sweeps(scale):
    base = Run(ModelConfig(depth=2, width=16, heads=1, context=64, vocab_size=1024), TrainConfig(batch_size=16),
               DataConfig(("words.txt",), heldout_tokens=2048))
    return [Sweep("main", base, product({"model.head_rank": [2, 4, 8, 16]}))]
"""
PROCESS = """
import os, sys
from jaxsat import checkpoints, parallel
from jaxsat.study import Study
parallel.start()
checkpoints.quiet()
def ended(stage, fraction, what):
    if stage == "train" and fraction > float(sys.argv[2]):
        print(what, flush=True)
        os._exit(0)
Study("small.py", "laptop", sys.argv[1]).train(ended)
"""


def bench() -> list[dict]:
    return _large() + _tiny()


def _large() -> list[dict]:
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


def _tiny() -> list[dict]:
    with tempfile.TemporaryDirectory() as folder:
        home, words = Path(folder), np.random.default_rng(0).integers(0, 3000, (2000, 30))
        (home / "small.py").write_text(STUDY)
        (home / "words.txt").write_text("\n".join(" ".join(f"w{word}" for word in line) for line in words))

        def seconds(out: str, until: float = 0.0) -> float:  # of training
            began, env = time.monotonic(), os.environ | {"JAXSAT_CACHE": str(home / "cache")}
            command = [sys.executable, "-W", "ignore", "-c", PROCESS, out, str(until)]
            subprocess.run(command, cwd=home, env=env, check=True, stdout=subprocess.DEVNULL)
            return time.monotonic() - began

        seconds("killed", 0.5)
        resumed, new = [], []
        for i in range(ROUNDS):
            shutil.copytree(home / "killed", home / f"resumed{i}")
            resumed.append(seconds(f"resumed{i}"))
            new.append(seconds(f"new{i}"))
        seconds("killed", 1.0)  # to its end
        size = sum(p.stat().st_size for p in (home / "killed" / "checkpoints").rglob("*") if p.is_file())
        packs = Directory.open(home / "killed").packs
        held = sum(checkpoint_bytes(pack, make_mesh(pack), LANGUAGE_MODEL, pack.runs) for pack in packs)
    shape = "4 runs, depth 2, width 16, V=1024"
    ours, rival = statistics.median(resumed), statistics.median(new)
    return [
        {
            "name": "resume_seconds",
            "ours": ours,
            "rival": rival,
            "ratio": rival / ours,
            "unit": "s",
            "shape": shape,
            "target": None,
            "detail": f"{ROUNDS} rounds, {min(resumed):.1f}-{max(resumed):.1f} s; {os.cpu_count()} cores",
        },
        {
            "name": "checkpoint_bytes",
            "ours": size / 1e6,
            "rival": held / 1e6,
            "ratio": held / size,
            "unit": "MB",
            "shape": shape,
            "target": 1 / 1.3,
            "detail": f"{size / held:.2f} of the arrays' own bytes, over a whole schedule",
        },
    ]
