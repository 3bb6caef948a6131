"""Heads of all ranks in one program against a program a rank, one after the other: python -m benchmarks frozen_heads

Both train the same heads on the same batches of the same states and then ask for their losses, by the functions of
`jaxsat.measure`; the rival with one rank a call. Two readings of each shape: warm, and with a compilation of each
program, as a measure of a new shape needs it.
"""

import json

import jax
import numpy as np

from benchmarks import median_seconds
from jaxsat.measure import frozen_head_losses, train_frozen_heads

# D, V, ranks, states, rounds
SHAPES = [
    (64, 1024, (2, 4, 8, 16, 24, 32, 48, 64), 32_768, 3),
    (256, 50_304, (2, 4, 8, 16, 32, 64, 128, 256), 1024, 1),
]


def entry(d: int, v: int, ranks: tuple[int, ...], n: int, rounds: int) -> dict:
    """Median warm seconds of interleaved rounds; ratio = solo / packed."""
    rng = np.random.default_rng(0)
    h_NxD = rng.standard_normal((n, d), np.float32)
    targets_N = rng.integers(0, v, n)

    def losses(asked: tuple[int, ...]) -> np.ndarray:
        return frozen_head_losses(train_frozen_heads(h_NxD, targets_N, v, asked), h_NxD[:1024], targets_N[:1024])

    solvers = {
        "packed": lambda: losses(ranks),
        "solo": lambda: np.concatenate([losses((r,)) for r in ranks]),
    }
    jax.clear_caches()
    first = median_seconds(solvers, 1)
    packed_K, solo_K = (solve() for solve in solvers.values())
    np.testing.assert_allclose(packed_K, solo_K, rtol=1e-3)
    seconds = median_seconds(solvers, rounds)
    return {
        "name": "frozen_heads_packed_vs_solo",
        "ours": seconds["packed"],
        "rival": seconds["solo"],
        "ratio": seconds["solo"] / seconds["packed"],
        "unit": "s",
        "shape": f"d={d}, V={v}, ranks {', '.join(map(str, ranks))}, {n} states, batches of 256",
        "target": 2,
        "detail": f"{jax.default_backend()}, {rounds} rounds; with compilation {first['packed']:.1f} against "
        f"{first['solo']:.1f} s; losses agree to {np.abs(packed_K / solo_K - 1).max():.0e}",
    }


def bench() -> list[dict]:
    return [entry(*shape) for shape in SHAPES]


if __name__ == "__main__":
    print(json.dumps(bench(), indent=1))
