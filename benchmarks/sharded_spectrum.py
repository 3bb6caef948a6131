"""The spectrum of a head split over devices, where it lies, against gathering it first.

python -m benchmarks.sharded_spectrum
"""

import json
import math
import os
import re
import subprocess
import sys

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec, SingleDeviceSharding

from benchmarks import median_seconds
from benchmarks.head_spectrum import D, V, head
from jaxsat.measure.spectra import head_spectrum

ROUNDS = 5
DEVICES = max(2, os.cpu_count() or 2)


def bench() -> list[dict]:
    """Median seconds of interleaved rounds on one CPU device a core, in a process of its own; ratio = rival / ours.
    `detail` has the entries that a device receives and each one's worst error against float64, as a part of sigma_1."""
    # Two devices in OpenBLAS at once fight for its threads: at V = 8192 5.7 s instead of 0.26 (2 CPU cores).
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "JAX_NUM_CPU_DEVICES": str(DEVICES),
        "OPENBLAS_NUM_THREADS": "1",
        "NPROC": "32",
    }
    child = subprocess.run(
        [sys.executable, "-m", "benchmarks.sharded_spectrum"], env=environment, stdout=subprocess.PIPE, check=True
    )
    return json.loads(child.stdout)


def compared() -> list[dict]:
    w_VxD, oracle_D = head()
    mesh = Mesh(np.array(jax.devices()).reshape(1, 1, -1), ("pack", "data", "model"), axis_types=(AxisType.Auto,) * 3)
    split = jax.device_put(w_VxD, NamedSharding(mesh, PartitionSpec("model")))
    one = SingleDeviceSharding(jax.devices()[0])
    with jax.set_mesh(mesh):
        program = head_spectrum.lower(split).compile()
    solvers = {
        "ours": lambda: program(split).block_until_ready(),
        "rival": lambda: head_spectrum(jax.device_put(split, one)).block_until_ready(),
    }
    errors = {n: np.abs(np.asarray(f(), np.float64) - oracle_D).max() / oracle_D[0] for n, f in solvers.items()}
    medians = median_seconds(solvers, ROUNDS)
    gathered = re.findall(r"= f32\[([\d,]+)\]\S* all-gather", program.as_text())
    received = sum(math.prod(map(int, shape.split(","))) for shape in gathered)
    detail = (
        f"{ROUNDS} rounds; a device is sent {received:,} numbers, gathering {V * D:,}; errors {errors['ours']:.0e} and "
        f"{errors['rival']:.0e}"
    )
    ratio = medians["rival"] / medians["ours"]
    shape = f"V={V}, d={D}, float32, condition number 1e4, {len(jax.devices())} CPU devices"
    said = {"unit": "s", "shape": shape, "target": None, "detail": detail}
    return [{"name": "sharded_spectrum_vs_gather", **medians, "ratio": ratio} | said]


if __name__ == "__main__":
    print(json.dumps(compared() if "JAX_NUM_CPU_DEVICES" in os.environ else bench(), indent=1))
