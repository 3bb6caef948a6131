"""Eight packed runs against the best program for one run after another: python -m benchmarks packing

Aggregate tokens a second of the laptop sweep's shapes (depth 2, 16 rows of 64 tokens, V=1024), with two devices on
the CPU. The solo program has the same chunked loss, one device, and all cores.
"""

import dataclasses
import os
import statistics
import time

import jax
import numpy as np

from benchmarks import Worker, answer, questions
from jaxsat import parallel
from jaxsat.config import ModelConfig, Run, TrainConfig
from jaxsat.sweep import Pack
from jaxsat.train import Program, hypers, initializer, train_step

K, WIDTHS, ROUNDS, STEPS = 8, (16, 32), 15, 40
TARGETS = {16: 1.4, 32: 1.2}


def program(pack: Pack):
    """n -> seconds of n training steps of a pack."""
    mesh, train = parallel.make_mesh(pack), pack.runs[0].train
    compiled, hyper = Program.of(pack), jax.device_put(hypers(pack.runs), parallel.per_run(mesh))
    state = initializer(compiled, mesh)(hyper)
    rows = np.random.default_rng(0).integers(0, pack.model.vocab_size, (len(pack.runs), train.batch_size, 65), np.int32)
    rows_KxBxT1 = jax.device_put(rows, parallel.per_run_and_row(mesh))

    def seconds(n: int) -> float:
        nonlocal state
        start = time.perf_counter()
        for _ in range(n):
            state, metrics = train_step(compiled, mesh, state, hyper, rows_KxBxT1)
        jax.block_until_ready(metrics)
        return time.perf_counter() - start

    return seconds


def work() -> None:
    """Answers a width by the seconds of a round of each: 8 runs packed, 1 run solo."""
    parallel.start()
    programs = {}
    for question in questions():
        if (width := int(question)) not in programs:
            base = Run(ModelConfig(width=width, heads=width // 16, head_rank=width), TrainConfig(batch_size=16))
            runs = tuple(dataclasses.replace(base, seed=seed) for seed in range(K))
            programs[width] = [program(Pack(runs)), program(Pack(runs[:1]))]
            for seconds in programs[width]:
                seconds(3)
        packed, solo = programs[width]
        answer([packed(STEPS), solo(STEPS)])


def bench() -> list[dict]:
    """Interleaved rounds, median thousands of tokens a second; ratio = packed / solo."""
    entries, tokens = [], STEPS * 16 * 64 / 1000
    # The solo program's own best: two devices share the threads, so it may take both cores there or here.
    with Worker("packing", JAX_NUM_CPU_DEVICES="2") as two, Worker("packing", JAX_NUM_CPU_DEVICES="1") as one:
        for width in WIDTHS:
            two.ask(width), one.ask(width)
            rounds = [two.ask(width) + one.ask(width)[1:] for _ in range(ROUNDS)]
            packed = [K * tokens / seconds for seconds, _, _ in rounds]
            here, alone = ([tokens / r[i] for r in rounds] for i in (1, 2))
            solo = max(here, alone, key=statistics.median)
            ratios = sorted(a / b for a, b in zip(packed, solo))
            entries.append(
                {
                    "name": "packing_vs_solo",
                    "ours": statistics.median(packed),
                    "rival": statistics.median(solo),
                    "ratio": statistics.median(packed) / statistics.median(solo),
                    "unit": "k tokens/s",
                    "shape": f"d={width}, K={K}, V=1024, B=16, T=64",
                    "target": TARGETS[width],
                    "detail": f"ratios of {ROUNDS} rounds {ratios[0]:.2f}-{ratios[-1]:.2f}; "
                    f"solo {statistics.median(here):.0f} on one of two devices"
                    f", {statistics.median(alone):.0f} on the only one; {os.cpu_count()} cores",
                }
            )
    return entries


if __name__ == "__main__":
    work()
