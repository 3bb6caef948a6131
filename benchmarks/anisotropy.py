"""Anisotropy in linear time against the cosines of all pairs: python -m benchmarks.anisotropy"""

import json

import jax
import numpy as np

from benchmarks import median_seconds
from jaxsat.measure import mean_pairwise_cosine

N, D, ROUNDS, BLOCK = 10_000, 512, 5, 1000


def states() -> np.ndarray:
    """Normal vectors with a common offset, of a mean cosine of about a half."""
    g = np.random.default_rng(0)
    return (g.standard_normal((N, D)) + g.standard_normal(D)).astype(np.float32)


def all_pairs(h_NxD: np.ndarray) -> float:
    """As it is usually done: normalised rows, the product of all with all, a block of rows at a time."""
    u_NxD = h_NxD / np.linalg.norm(h_NxD, axis=1, keepdims=True)
    total = sum(float((u_NxD[i : i + BLOCK] @ u_NxD.T).sum(dtype=np.float64)) for i in range(0, N, BLOCK))
    return (total - N) / (N * (N - 1))


def bench() -> list[dict]:
    """Median seconds of interleaved rounds; ratio = rival / ours. The states lie where each is at home."""
    h_NxD = states()
    h_device = jax.device_put(h_NxD)
    solvers = {"ours": lambda: float(mean_pairwise_cosine(h_device)), "rival": lambda: all_pairs(h_NxD)}
    values = {name: solve() for name, solve in solvers.items()}  # compiles
    medians = median_seconds(solvers, ROUNDS)
    difference = abs(values["ours"] - values["rival"])
    if difference > 1e-6:
        raise AssertionError(f"the values differ by {difference:.0e}")
    return [
        {
            "name": "anisotropy_vs_pairs",
            **medians,
            "ratio": medians["rival"] / medians["ours"],
            "unit": "s",
            "shape": f"n={N}, d={D}, float32",
            "target": 300,
            "detail": f"{ROUNDS} rounds; NumPy, {BLOCK} rows a block; the values differ by {difference:.0e}",
        }
    ]


if __name__ == "__main__":
    print(json.dumps(bench(), indent=1))
