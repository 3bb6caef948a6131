"""What the model knows of the mesh that it is traced under: axes `data` (rows of a batch) and `model` (attention
heads, feed-forward layers, vocabulary). Without a mesh, everything here does nothing."""

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

# The dimension, from the end, that axis `model` splits: outputs of the first matrix of a pair, inputs of the second.
_SPLIT = {name: -1 for name in ("query", "key", "value", "up", "gate", "head")} | {"out": -2, "down": -2}


def split_dimension(path: tuple[str, ...]) -> int | None:
    """The dimension of a parameter, from the end, that axis `model` splits; None where every device needs it all."""
    if path[-1] == "embedding":
        return -2
    module = next((name for name in path if name in _SPLIT), None)
    if module is None or path[-1] in ("a", "latent", "prior") or (path[-1] == "bias" and _SPLIT[module] == -2):
        return None
    return _SPLIT[module]


def axis_size(axis: str) -> int:
    return jax.sharding.get_abstract_mesh().shape.get(axis, 1)


def constrain(x: jax.Array, *axes: str | None) -> jax.Array:
    """`x` with its first dimensions split over these axes, where they divide, and the others whole. Left to itself the
    compiler gathers activations instead of weights: 9.1 GiB of temporaries a device instead of 1.0 (219M parameters,
    256 TPU chips)."""
    if axis_size("data") == axis_size("model") == 1:
        return x
    fits = [axis if axis and size % axis_size(axis) == 0 else None for axis, size in zip(axes, x.shape)]
    return jax.lax.with_sharding_constraint(x, PartitionSpec(*fits))


def look_up(table_VxD: jax.Array, tokens_N: jax.Array) -> jax.Array:
    """x_NxD, the tokens' rows of the table: of its own part, where the vocabulary is split, added up over the parts.

    Left to itself the compiler gathers every device's gradients of N x D before it adds them into the table's.
    """
    if axis_size("data") == axis_size("model") == 1:
        return table_VxD[tokens_N]
    vocabulary = PartitionSpec("model" if table_VxD.shape[0] % axis_size("model") == 0 else None)
    rows = PartitionSpec("data" if len(tokens_N) % axis_size("data") == 0 else None)

    def own(table_VxD, tokens_N):
        if vocabulary == PartitionSpec(None):
            return table_VxD[tokens_N]
        own_N = tokens_N - jax.lax.axis_index("model") * len(table_VxD)
        mine_N = (own_N >= 0) & (own_N < len(table_VxD))
        x_NxD = jnp.where(mine_N[:, None], table_VxD[jnp.where(mine_N, own_N, 0)], 0)
        return jax.lax.psum(x_NxD, "model")

    specs = dict(in_specs=(vocabulary, rows), out_specs=rows)
    return jax.shard_map(own, axis_names={"data", "model"}, check_vma=False, **specs)(table_VxD, tokens_N)


def platform() -> str:
    """What is compiled for: the devices of the mesh, which may be a TPU that is not here."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    return device.platform if device else jax.default_backend()
