"""How long a model takes for a token: a number of this machine, not of the model alone."""

import functools
import statistics
import time
from collections.abc import Callable
from typing import Literal

import jax
import numpy as np

from jaxsat import machine
from jaxsat.config import InputError, Run
from jaxsat.evaluate import generate_tokens, token_losses
from jaxsat.evaluate.scores import BLOCK_TOKENS
from jaxsat.measure.measure import Checkpoint, Measure, every

NEW_TOKENS = 64  # of one sequence, or as many as the context has room for


def latency(
    runs: Callable[[Run], bool] = every,
    at: Literal["every", "last", "best"] | tuple[int, ...] = "last",
    repeats: int = 5,
) -> Measure:
    """Seconds a token on one device, the median of `repeats` after one that compiles: `forward_latency` of a forward
    pass with losses over some rows of whole context (about 1024 tokens), `decoding_latency` of greedy decoding of one
    sequence. Both in full float32 products, as everything is evaluated.

    Both depend on the machine: `latency_device.KIND` names the device as JAX does; its value is 1, and of a CPU how
    many cores the process may use. Raises InputError for no repeats.
    """
    if repeats < 1:
        raise InputError(f"latency of {repeats} repeats: must be at least 1")
    return Measure("latency", functools.partial(_latency, repeats=repeats), at, runs)


def _latency(c: Checkpoint, repeats: int) -> dict[str, float]:
    rows_BxT1 = np.zeros((max(1, BLOCK_TOKENS // c.config.context), c.config.context + 1), np.int32)
    n_new = min(NEW_TOKENS, c.config.context)
    forward = lambda: jax.block_until_ready(token_losses(c.config, c.params, rows_BxT1))
    decoding = lambda: generate_tokens(c.config, c.params, [[0]], n_new)
    (device,) = c.params["embedding"].devices()
    return {
        "forward_latency": _median(forward, repeats) / rows_BxT1[:, 1:].size,
        "decoding_latency": _median(decoding, repeats) / n_new,
        f"latency_device.{device.device_kind}": machine.cores() if device.platform == "cpu" else 1,
    }


def _median(f: Callable[[], object], repeats: int) -> float:
    f()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        f()
        times.append(time.perf_counter() - start)
    return statistics.median(times)
