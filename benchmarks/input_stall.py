"""Share of the training loop that waits for batches: python -m benchmarks input_stall

A pack of 8 runs with 8 data orders through `train_pack`, as its own log says it: batches are read ahead by threads.
The rival reads each batch when it needs it.
"""

import dataclasses
import json
import os
import tempfile
import time
from pathlib import Path

from etils import epath

from benchmarks import Worker, answer, questions
from jaxsat import corpus, parallel
from jaxsat.config import ModelConfig, Run, TrainConfig
from jaxsat.sweep import Pack
from jaxsat.train import train_pack

STEPS, SKIPPED = 400, 100  # the first windows wait for the compiler


def work() -> None:
    """Answers a width by (part of the time that waited, seconds a step, seconds to read a step's batches)."""
    parallel.start()
    for question in questions():
        train = TrainConfig(batch_size=16, steps=STEPS, checkpoint_every=STEPS)
        base = Run(ModelConfig(width=int(question), heads=1, head_rank=int(question)), train)
        pack = Pack(tuple(dataclasses.replace(base, seed=seed) for seed in range(8)))
        tokens = corpus.prepare(base.data, base.model.vocab_size, base.model.context)
        with tempfile.TemporaryDirectory() as out:
            train_pack(pack, tokens, epath.Path(out))
            log = (Path(out) / "runs" / base.id / "metrics.jsonl").read_text().splitlines()
        lines = [line for line in map(json.loads, log) if "input_stall" in line and line["step"] > SKIPPED]
        rate = sum(1 / line["tokens_per_second"] for line in lines) / len(lines)
        begun = time.perf_counter()
        for i in range(100):
            for seed in range(8):
                corpus.batch_at(tokens, seed, i, 16)
        reading = (time.perf_counter() - begun) / 100
        step = 8 * base.tokens_per_step * rate
        answer([sum(line["input_stall"] for line in lines) / len(lines), step, reading])


def bench() -> list[dict]:
    """Per cent of the wall time; ratio = rival / ours."""
    with Worker("input_stall") as worker:
        stall, step, reading = worker.ask(8)
    rival = reading / (step * (1 - stall) + reading)
    return [
        {
            "name": "input_stall_percent",
            "ours": 100 * stall,
            "rival": 100 * rival,
            "ratio": rival / max(stall, 1e-4),  # of the log's last digit
            "unit": "%",
            "shape": "d=8, K=8 with 8 seeds, V=1024, B=16, T=64",
            "target": None,
            "detail": f"{1000 * step:.1f} ms a step, {1000 * reading:.2f} ms to read its batches; "
            f"{os.cpu_count()} cores; target: ours under 1 %",
        }
    ]


if __name__ == "__main__":
    work()
