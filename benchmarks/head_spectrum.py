"""The spectrum of a Pythia-sized output head against NumPy's and SciPy's SVD: python -m benchmarks.head_spectrum"""

import functools
import json

import jax
import numpy as np
import scipy.linalg

from benchmarks import median_seconds
from jaxsat.measure.spectra import head_spectrum

V, D, ROUNDS = 50_304, 512, 3


def head() -> tuple[np.ndarray, np.ndarray]:
    """(w_VxD in float32, of condition number 1e4; its singular values by float64)."""
    g = np.random.default_rng(0)
    q_DxD, _ = np.linalg.qr(g.standard_normal((D, D)))
    w_VxD = (g.standard_normal((V, D)) @ (np.logspace(0, -4, D)[:, None] * q_DxD)).astype(np.float32)
    oracle_D = np.linalg.svd(np.linalg.qr(w_VxD.astype(np.float64), mode="r"), compute_uv=False)
    return w_VxD, oracle_D


def bench() -> list[dict]:
    """Median seconds of interleaved rounds; ratio = rival / ours. `detail` has each one's worst error against float64,
    as a part of sigma_1 and, in brackets, of the singular value itself."""
    w_VxD, oracle_D = head()
    w_device = jax.device_put(w_VxD)
    solvers = {
        "jaxsat": lambda: head_spectrum(w_device).block_until_ready(),
        "numpy": functools.partial(np.linalg.svd, w_VxD, compute_uv=False),  # takes float32 through float64
        "scipy": functools.partial(scipy.linalg.svdvals, w_VxD),  # stays in float32, as we do
    }
    errors = {name: np.abs(np.asarray(solve(), np.float64) - oracle_D) for name, solve in solvers.items()}  # compiles
    medians = median_seconds(solvers, ROUNDS)
    ours, *rivals = medians.items()
    accuracy = ", ".join(f"{n} {e.max() / oracle_D[0]:.0e} ({(e / oracle_D).max():.0e})" for n, e in errors.items())
    return [
        {
            "name": f"head_spectrum_vs_{name}",
            "ours": ours[1],
            "rival": rival,
            "ratio": rival / ours[1],
            "unit": "s",
            "shape": f"V={V}, d={D}, float32, condition number 1e4",
            "target": None,
            "detail": f"{ROUNDS} rounds; worst errors: {accuracy}",
        }
        for name, rival in rivals
    ]


if __name__ == "__main__":
    print(json.dumps(bench(), indent=1))
