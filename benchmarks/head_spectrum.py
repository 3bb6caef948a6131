"""The spectrum of a Pythia-sized output head against NumPy's, SciPy's and PyTorch's SVD:
python -m benchmarks.head_spectrum"""

import functools
import importlib.util
import json
import os
from collections.abc import Callable

import jax
import numpy as np
import scipy.linalg

from benchmarks import median_seconds
from jaxsat.measure.spectra import head_spectrum

V, D, ROUNDS = 50_304, 512, 3
WIDE = 1024  # against PyTorch
# Of sigma_1, asked of every value of both there: in float32 ours errs by 1.0e-6 and PyTorch by 1.3e-6, and at the
# smallest by 2e-10 and 5e-10, which are 2e-6 and 5e-6 of that value itself.
ACCURACY = 2e-6


def head(d: int = D) -> tuple[np.ndarray, np.ndarray]:
    """(w_VxD in float32, of condition number 1e4; its singular values by float64)."""
    g = np.random.default_rng(0)
    q_DxD, _ = np.linalg.qr(g.standard_normal((d, d)))
    w_VxD = (g.standard_normal((V, d)) @ (np.logspace(0, -4, d)[:, None] * q_DxD)).astype(np.float32)
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
    ] + [against_torch()]


def against_torch() -> dict:
    """At d = 1024, of the two ways to ask PyTorch (the SVD of the head, or of the R of its QR as ours) the faster one
    that is as accurate as is asked of ours; `detail` has the errors of the smallest value, as a part of itself, too."""
    name = "head_spectrum_vs_torch"
    if importlib.util.find_spec("torch") is None:
        return {"name": name, "skipped": "torch is not installed (pip install 'jaxsat[bench]')"}
    import torch

    torch.set_num_threads(os.cpu_count())
    w_VxD, oracle_D = head(WIDE)
    w_device, w_torch = jax.device_put(w_VxD), torch.from_numpy(w_VxD)
    solvers: dict[str, Callable] = {
        "jaxsat": lambda: head_spectrum(w_device).block_until_ready(),
        "torch svdvals": lambda: torch.linalg.svdvals(w_torch),
        "torch qr, svdvals": lambda: torch.linalg.svdvals(torch.linalg.qr(w_torch, mode="r").R),
    }
    errors = {n: np.abs(np.asarray(solve(), np.float64) - oracle_D) for n, solve in solvers.items()}
    exact = {n: solve for n, solve in solvers.items() if errors[n].max() <= ACCURACY * oracle_D[0]}
    accuracy = ", ".join(
        f"{n} {e.max() / oracle_D[0]:.0e} ({e[-1] / oracle_D[-1]:.0e} of the smallest)" for n, e in errors.items()
    )
    medians = median_seconds(exact, ROUNDS)
    ours = medians.pop("jaxsat")
    rival = min(medians, key=medians.get)
    return {
        "name": name,
        "ours": ours,
        "rival": medians[rival],
        "ratio": medians[rival] / ours,
        "unit": "s",
        "shape": f"V={V}, d={WIDE}, float32, condition number 1e4",
        "target": 1.2,
        "detail": f"{rival}, {torch.__version__}; {ROUNDS} rounds; worst errors: {accuracy}",
    }


if __name__ == "__main__":
    print(json.dumps(bench(), indent=1))
