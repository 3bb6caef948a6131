"""Strict JAX for every test: two fake CPU devices at least, no silent rank promotion, a compilation cache of its own."""

import os
from pathlib import Path

import jax
import pytest

jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real data for checks, beside the checkout or at JAXSAT_SHARED_DATA; never part of the project."""
    root = Path(os.environ.get("JAXSAT_SHARED_DATA", Path(__file__).parents[2] / "shared" / "data"))
    if not root.is_dir():
        pytest.skip(f"no shared data at {root}: set JAXSAT_SHARED_DATA")
    return root
