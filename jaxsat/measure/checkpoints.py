"""Every number we take of a checkpoint, for all runs of a pack in one jitted program."""

import dataclasses
import functools
from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding, PartitionSpec

from jaxsat import hosts, model
from jaxsat.checkpoints import Store
from jaxsat.config import Layout, ModelConfig, Run, checkpoint_steps
from jaxsat.measure import spectra, table
from jaxsat.measure.anisotropy import mean_cosine, sum_of_directions
from jaxsat.measure.heads import frozen_head_losses, train_frozen_heads
from jaxsat.parallel import abstract_like, make_mesh, over_runs, pack_layout, per_run, put, state_shardings
from jaxsat.sweep import Pack

ANISOTROPY_TOKENS = 8192  # the first of the held-out slice
BLOCK_TOKENS = 1024  # of a forward pass on one device: few enough to stay in a CPU's cache


def measure_pack(
    pack: Pack, store: Store, heldout_MxT1: np.ndarray, known: pd.DataFrame, layout: Layout = Layout()
) -> Iterator[tuple[int, pd.DataFrame]]:
    """(step, rows of the measurements table) for each scheduled checkpoint that `known` has no held-out loss of.

    Parameters lie over the devices as in training, and the held-out rows over axis `data`. A run whose loss is not
    finite gets no rows: it has diverged.
    """
    chosen = Layout(**hosts.first(lambda: dataclasses.asdict(pack_layout(pack, layout))))
    mesh = make_mesh(pack, chosen)
    ranks_K = put(np.array([run.model.rank for run in pack.runs], np.int32), per_run(mesh))
    blocks = _blocks(heldout_MxT1, mesh.shape["data"])
    blocks_NxBxT1 = put(blocks, NamedSharding(mesh, PartitionSpec(None, "data")))
    abstract = abstract_params(pack, mesh)
    ours = known["run"].isin([run.id for run in pack.runs]) & (known["metric"] == "heldout_loss")
    seen = set(known.loc[ours, "step"])
    before = None
    for step in sorted(set(checkpoint_steps(pack.runs[0].train)) & set(store.steps) - seen):
        params = store.params(step, abstract)  # read while the devices still measure the one before
        if before:
            yield _rows(pack, *before)
        before = step, _measure(pack.model, mesh, params, ranks_K, blocks_NxBxT1)
        if jax.process_count() > 1:  # reading asks the other processes: never two programs of several at once
            jax.block_until_ready(before)
    if before:
        yield _rows(pack, *before)


def abstract_params(pack: Pack, mesh: jax.sharding.Mesh):
    """Shapes and shardings of the stacked parameters of a pack's runs, for restoring them."""
    keys_K = jax.random.split(jax.random.key(0), len(pack.runs))
    shapes = jax.eval_shape(jax.vmap(lambda key: model.init(pack.model, key)), keys_K)
    return abstract_like(shapes, state_shardings(mesh, shapes))


def _blocks(rows_MxT1: np.ndarray, n_devices: int = 1) -> np.ndarray:
    """The rows as blocks_NxBxT1, each for one forward pass on `n_devices`; -1 where the last is not full."""
    m, t1 = rows_MxT1.shape
    size = n_devices * min(max(1, BLOCK_TOKENS // (t1 - 1)), -(-m // n_devices))
    return np.pad(rows_MxT1, ((0, -m % size), (0, 0)), constant_values=-1).reshape(-1, size, t1)


@functools.partial(jax.jit, static_argnames=("config", "mesh"))
def _measure(config: ModelConfig, mesh: jax.sharding.Mesh, params, ranks_K, blocks_NxBxT1) -> dict[str, jax.Array]:
    one = functools.partial(_measure_one, config)
    return over_runs(mesh, one, shared=1)(params, ranks_K, blocks_NxBxT1)


def _measure_one(config: ModelConfig, params, rank: jax.Array, blocks_NxBxT1: jax.Array) -> dict[str, jax.Array]:
    sigma_R = head_sigma(config, params)
    n_blocks, block_rows, _ = blocks_NxBxT1.shape
    sampled = -(-ANISOTROPY_TOKENS // config.context)  # rows

    def block(args):
        first, rows_BxT1 = args
        inputs_BxT, targets_BxT = jnp.maximum(rows_BxT1[:, :-1], 0), rows_BxT1[:, 1:]
        h_BxTxD, stream_LxBxTxD = model.hidden(config, params, inputs_BxT)
        loss = model.cross_entropy(*model.head(config, params, h_BxTxD), targets_BxT)

        def directions():
            last_BxTxD = stream_LxBxTxD[-1].astype(jnp.float32)
            if config.norm == "layer":
                last_BxTxD -= last_BxTxD.mean(axis=-1, keepdims=True)
            # A norm divides each vector by a number of its own, which no cosine sees: without the gain only the
            # centring of LayerNorm is left.
            states = jnp.stack([*stream_LxBxTxD.astype(jnp.float32), last_BxTxD, h_BxTxD.astype(jnp.float32)])
            sample_B = (first + jnp.arange(block_rows) < sampled) & (rows_BxT1[:, 0] >= 0)
            states = jnp.where(sample_B[None, :, None, None], states, 0)
            return jax.vmap(sum_of_directions)(states.reshape(len(states), -1, config.width))

        none = jax.tree.map(jnp.zeros_like, jax.eval_shape(directions))
        sums = jax.lax.cond(first < sampled, directions, lambda: none)
        n_targets = (targets_BxT >= 0).sum()
        return loss * n_targets, n_targets, sums

    first_N = jnp.arange(n_blocks) * block_rows
    per_block = jax.lax.map(block, (first_N, blocks_NxBxT1))
    loss, n_targets, sums = jax.tree.map(lambda x: x.sum(0), per_block)
    *layers, before_gain, after_gain = jax.vmap(mean_cosine)(*sums)
    return {
        "heldout_loss": loss / n_targets,
        "singular_value": sigma_R,
        "singular_entropy": spectra.singular_entropy(sigma_R, rank),
        "effective_rank": spectra.effective_rank(sigma_R, rank),
        "largest_share": spectra.largest_share(sigma_R, rank),
        "condition_number": spectra.condition_number(sigma_R, rank),
        "anisotropy": jnp.stack(layers),
        "anisotropy_before_gain": before_gain,
        "anisotropy_after_gain": after_gain,
    }


def measure_frozen_heads(
    run: Run, params, rows_NxT1: np.ndarray, heldout_MxT1: np.ndarray, ranks: Sequence[int]
) -> pd.DataFrame:
    """Rows of `frozen_head_loss`, index = rank: heads of each rank retrained on this run's frozen backbone.

    One pass over the hidden states of `rows_NxT1`; the loss is that of `heldout_MxT1`. Compare each rank with the
    retrained full head, not with the model's own: those have seen other data (Godey et al. 2024, section 5).
    """
    train_h, train_y = _states(run.model, params, rows_NxT1)
    heldout_h, heldout_y = _states(run.model, params, heldout_MxT1)
    heads = train_frozen_heads(train_h, train_y, run.model.vocab_size, ranks, seed=run.seed)
    losses = frozen_head_losses(heads, heldout_h, heldout_y)
    steps = run.train.steps
    return table.rows(run.id, steps, steps * run.tokens_per_step, "frozen_head_loss", losses, index=list(ranks))


@functools.partial(jax.jit, static_argnames="config")
def _final_hidden(config: ModelConfig, params, inputs_NxBxT: jax.Array) -> jax.Array:
    return jax.lax.map(lambda inputs_BxT: model.hidden(config, params, inputs_BxT)[0], inputs_NxBxT)


def _states(config: ModelConfig, params, rows_NxT1: np.ndarray) -> tuple[jax.Array, jax.Array]:
    """(h_NxD, targets_N) of all positions of the rows."""
    targets_N = rows_NxT1[:, 1:].reshape(-1)
    inputs_NxBxT = np.maximum(_blocks(rows_NxT1)[..., :-1], 0)
    h_NxD = _final_hidden(config, params, inputs_NxBxT).reshape(-1, config.width)
    return h_NxD[: len(targets_N)], jnp.asarray(targets_N)


def head_sigma(config: ModelConfig, params) -> jax.Array:
    """Singular values of the head, of A B when factored."""
    if config.tied_head:
        return spectra.head_spectrum(params["embedding"])
    if config.head_rank is None:
        return spectra.head_spectrum(params["head"]["kernel"])
    return spectra.factored_head_spectrum(params["head"]["a"], params["head"]["b"])


def _rows(pack: Pack, step: int, measured: dict[str, jax.Array]) -> tuple[int, pd.DataFrame]:
    """Waits for what is measured at a step, and makes rows of it."""
    values = multihost_utils.process_allgather(measured, tiled=True)
    depth = pack.model.depth
    layers = {"anisotropy": np.arange(depth + 1), "anisotropy_before_gain": depth, "anisotropy_after_gain": depth}
    frames = []
    for k, run in enumerate(pack.runs):
        if not np.isfinite(values["heldout_loss"][k]):
            continue
        own = {name: np.atleast_1d(value[k]) for name, value in values.items()}
        own["singular_value"] = own["singular_value"][: run.model.rank]
        # One table a run: one a metric took 10 s of the 2 minutes of measuring the laptop's 50 runs.
        each = lambda of, own=own: np.concatenate([np.broadcast_to(of(name), x.shape) for name, x in own.items()])
        layer = each(lambda name: layers.get(name, -1))
        index = each(lambda name, rank=run.model.rank: np.arange(rank) if name == "singular_value" else 0)
        value, tokens = np.concatenate(list(own.values())), step * run.tokens_per_step
        frames.append(table.rows(run.id, step, tokens, each(str), value, layer, index))
    return step, pd.concat(frames) if frames else table.empty()
