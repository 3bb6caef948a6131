"""Memory of the chunked loss against the plain one: python -m benchmarks chunked_loss

Bytes of temporaries that XLA plans for forward and backward together, of 1024 tokens at V = 50304.
"""

import jax
import jax.numpy as jnp
import optax

from jaxsat.model import cross_entropy

B, T, R, V = 8, 128, 128, 50_304


def plain(z_BxTxR: jax.Array, w_RxV: jax.Array, targets_BxT: jax.Array) -> jax.Array:
    return optax.softmax_cross_entropy_with_integer_labels(z_BxTxR @ w_RxV, targets_BxT).mean()


def bench() -> list[dict]:
    """MiB of temporaries; ratio = plain / chunked."""
    shapes = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((B, T, R), (R, V))]
    shapes.append(jax.ShapeDtypeStruct((B, T), jnp.int32))
    mib = {}
    for name, loss in {"chunked": cross_entropy, "plain": plain}.items():
        compiled = jax.jit(jax.value_and_grad(loss, argnums=(0, 1))).lower(*shapes).compile()
        mib[name] = compiled.memory_analysis().temp_size_in_bytes / 2**20
    return [
        {
            "name": "chunked_loss_memory",
            "ours": mib["chunked"],
            "rival": mib["plain"],
            "ratio": mib["plain"] / mib["chunked"],
            "unit": "MiB",
            "shape": f"B={B}, T={T}, R={R}, V={V}, float32",
            "target": 2,
            "detail": f"{jax.default_backend()}; all logits are {4 * B * T * V / 2**20:.0f} MiB",
        }
    ]
