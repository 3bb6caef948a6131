"""From the start of a process to its first finished training step: python -m benchmarks warm_start

A small model (depth 2, width 32) in the processes of a user: all that `jaxsat.train` imports, then one step. Warm has
the compiled programs of an earlier process in the cache; cold, the rival, has an empty one.
"""

import statistics
import subprocess
import sys
import tempfile
import time
from os import environ

ROUNDS = 7

PROCESS = """
from jaxsat import parallel
from jaxsat.config import ModelConfig, Run
from jaxsat.sweep import Pack
from jaxsat.train import Program, hypers, initializer, train_step
import jax, numpy as np
parallel.start()
pack = Pack((Run(ModelConfig(width=32, heads=2, head_rank=32)),))
program, hyper, mesh = Program.of(pack), hypers(pack.runs), parallel.make_mesh(pack)
rows = np.zeros((1, pack.runs[0].train.batch_size, pack.model.context + 1), np.int32)
state, metrics = train_step(program, mesh, initializer(program, mesh)(hyper), hyper, rows)
print(float(metrics["loss"][0]), flush=True)
"""


def seconds(cache: str) -> float:
    begun = time.perf_counter()
    command, env = [sys.executable, "-c", PROCESS], environ | {"JAXSAT_CACHE": cache}
    with subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True) as process:
        float(process.stdout.readline())
        return time.perf_counter() - begun


def bench() -> list[dict]:
    """Seconds to the first loss; ratio = cold / warm."""
    with tempfile.TemporaryDirectory() as cache:
        cold = seconds(cache)
        warm = sorted(seconds(cache) for _ in range(ROUNDS))
    return [
        {
            "name": "warm_start_seconds",
            "ours": statistics.median(warm),
            "rival": cold,
            "ratio": cold / statistics.median(warm),
            "unit": "s",
            "shape": "depth 2, width 32, V=1024",
            "target": None,
            "detail": f"{ROUNDS} warm starts {warm[0]:.2f}-{warm[-1]:.2f} s; target: ours 2 s",
        }
    ]
