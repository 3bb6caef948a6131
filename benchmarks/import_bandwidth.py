"""Importing a model of Pythia-160m's shape against reading its file alone: python -m benchmarks import_bandwidth

Ours reads, hashes, turns and stacks every tensor as float32 on the device; the rival, safetensors' own reader, brings
them as they are into memory. The file lies in the page cache for both.
"""

import json
import os
import tempfile
from pathlib import Path

import jax
import numpy as np
import safetensors.numpy

from benchmarks import median_seconds
from jaxsat import interop, model
from jaxsat.interop.names import shapes

CONFIG, ROUNDS = model.pythia("160m"), 7


def bench() -> list[dict]:
    """Median seconds of interleaved rounds; ratio = rival / ours, of the bytes of the file."""
    entries = []
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda x: rng.standard_normal(x.shape, np.float32), shapes(CONFIG))
    with tempfile.TemporaryDirectory() as root:
        for dtype in (np.float32, np.float16):
            folder = Path(root) / dtype.__name__
            file = folder / "model.safetensors"
            interop.write(CONFIG, params, None, folder)
            halves = {name: w.astype(dtype) for name, w in safetensors.numpy.load_file(file).items()}
            safetensors.numpy.save_file(halves, file, {"format": "pt"})
            del halves

            def ours(folder=folder) -> str:
                source = interop.open(folder)
                jax.block_until_ready(source.params())
                return source.content_hash

            solvers = {"jaxsat": ours, "safetensors": lambda file=file: safetensors.numpy.load_file(file)}
            for solve in solvers.values():
                solve()
            seconds, size = median_seconds(solvers, ROUNDS), file.stat().st_size
            speeds = ", ".join(f"{name} {size / s / 1e9:.2f} GB/s" for name, s in seconds.items())
            entries.append(
                {
                    "name": "import_bandwidth",
                    "ours": seconds["jaxsat"],
                    "rival": seconds["safetensors"],
                    "ratio": seconds["safetensors"] / seconds["jaxsat"],
                    "unit": "s",
                    "shape": f"{size / 1e6:.0f} MB of {dtype.__name__}, L=12, d=768, V=50304",
                    "target": 0.6,
                    "detail": f"{speeds}; {os.cpu_count()} cores",
                }
            )
    return entries


if __name__ == "__main__":
    print(json.dumps(bench(), indent=1))
