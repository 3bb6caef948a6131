"""Greedy tokens a second against `generate` of transformers: python -m benchmarks generate_vs_transformers

One sequence of a model of 10M parameters in float32, on this CPU, from the same weights and prompt; both have a
key-value cache, and a process of their own with all cores. And 64 sequences of ours at once against one.
"""

import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

import jax
import numpy as np
import torch
import transformers

from benchmarks import Worker, answer, questions
from jaxsat import interop, model, parallel
from jaxsat.evaluate import generate_tokens

CONFIG = model.neox(depth=6, width=256, heads=8, context=512, vocab_size=10_240)
PROMPT, NEW, ROUNDS, MANY = 32, 128, 9, 64


def work(who: str, folder: str) -> None:
    """Answers a number of sequences by [seconds, the tokens of the first one]."""
    if who == "jaxsat":
        parallel.start()
        params = interop.open(folder).params()
        write = lambda prompts_BxP: generate_tokens(CONFIG, params, prompts_BxP.tolist(), NEW)
    else:
        torch.set_num_threads(os.cpu_count())
        theirs = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
        settings = dict(do_sample=False, max_new_tokens=NEW, min_new_tokens=NEW, pad_token_id=0)
        write = lambda prompts_BxP: theirs.generate(torch.from_numpy(prompts_BxP), **settings)[:, PROMPT:].tolist()
    for question in questions():
        prompts_BxP = np.random.default_rng(0).integers(0, CONFIG.vocab_size, (int(question), PROMPT))
        start = time.perf_counter()
        first, *_ = write(prompts_BxP)
        answer([time.perf_counter() - start, first])


def bench() -> list[dict]:
    """Interleaved rounds, median seconds a token; ratio = rival / ours, of one sequence the rival being transformers,
    of 64 the one."""
    seconds, tokens = {"one": [], "torch": [], "many": []}, {}
    with tempfile.TemporaryDirectory() as root:
        folder = Path(root) / "model"
        params = jax.device_get(jax.jit(model.init, static_argnums=0)(CONFIG, jax.random.key(0)))
        interop.write(CONFIG, params, None, folder)
        with (
            Worker("generate_vs_transformers", "jaxsat", folder, JAX_NUM_CPU_DEVICES="1") as a,
            Worker("generate_vs_transformers", "torch", folder) as b,
        ):
            for round_ in range(ROUNDS + 1):  # the first compiles
                for name, worker, n in (("one", a, 1), ("torch", b, 1), ("many", a, MANY)):
                    took, tokens[name] = worker.ask(n)
                    seconds[name] += [took / (n * NEW)] * (round_ > 0)
    alike = next((i for i, (x, y) in enumerate(zip(tokens["one"], tokens["torch"])) if x != y), NEW)
    median = {name: statistics.median(s) for name, s in seconds.items()}
    shape = f"10M parameters, L=6, d=256, H=8, V={CONFIG.vocab_size}, prompt of {PROMPT}, {NEW} new, float32"
    versions = f"{os.cpu_count()} cores, jax {jax.__version__}, torch {torch.__version__}, "
    versions += f"transformers {transformers.__version__}"
    what = {
        "generate_vs_transformers": ("one", "torch", f"one sequence; the first {alike} tokens are equal", 0.7),
        "generate_many_vs_one": ("many", "one", f"{MANY} sequences at once against one of ours", 5),
    }
    return [
        {
            "name": name,
            "ours": median[ours],
            "rival": median[rival],
            "ratio": median[rival] / median[ours],
            "unit": "s/token",
            "shape": shape,
            "target": target,
            "detail": f"{said}; {1 / median[ours]:.0f} against {1 / median[rival]:.0f} tokens/s; {versions}",
        }
        for name, (ours, rival, said, target) in what.items()
    ]


if __name__ == "__main__":
    work(*sys.argv[1:])
