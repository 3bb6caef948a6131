"""Every number we take of a checkpoint, for all runs of a pack in one jitted program."""

import functools
from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd

from jaxsat import model
from jaxsat.checkpoints import Store
from jaxsat.config import ModelConfig, Run, checkpoint_steps
from jaxsat.measure import spectra, table
from jaxsat.measure.anisotropy import anisotropy
from jaxsat.measure.heads import frozen_head_losses, train_frozen_heads
from jaxsat.parallel import abstract_like, make_mesh, over_runs, per_run, replicated
from jaxsat.sweep import Pack

ANISOTROPY_TOKENS = 8192  # the first of the held-out slice
BLOCK_ROWS = 16  # rows a forward pass: small enough to stay in a CPU's cache


def measure_pack(
    pack: Pack, store: Store, heldout_MxT1: np.ndarray, known: pd.DataFrame
) -> Iterator[tuple[int, pd.DataFrame]]:
    """(step, rows of the measurements table) for each scheduled checkpoint that `known` has no held-out loss of.

    A run whose loss is not finite gets no rows: it has diverged.
    """
    mesh = make_mesh(len(pack.runs), 1)
    ranks_K = jax.device_put(np.array([run.model.rank for run in pack.runs]), per_run(mesh))
    heldout = jax.device_put(heldout_MxT1, replicated(mesh))
    ours = known["run"].isin([run.id for run in pack.runs]) & (known["metric"] == "heldout_loss")
    seen = set(known.loc[ours, "step"])
    for step in sorted(set(checkpoint_steps(pack.runs[0].train)) & set(store.steps) - seen):
        params = store.params(step, abstract_params(pack))
        values = jax.device_get(_measure(pack.model, mesh, params, ranks_K, heldout))
        frames = [
            _rows(run.id, step, step * run.tokens_per_step, {name: v[k] for name, v in values.items()}, run.model)
            for k, run in enumerate(pack.runs)
            if np.isfinite(values["heldout_loss"][k])
        ]
        yield step, pd.concat(frames) if frames else known.iloc[:0]


def abstract_params(pack: Pack):
    """Shapes and shardings of the stacked parameters of a pack's runs, for restoring them."""
    keys_K = jax.random.split(jax.random.key(0), len(pack.runs))
    shapes = jax.eval_shape(jax.vmap(lambda key: model.init(pack.model, key)), keys_K)
    return abstract_like(shapes, per_run(make_mesh(len(pack.runs), 1)))


@functools.partial(jax.jit, static_argnames=("config", "mesh"))
def _measure(config: ModelConfig, mesh: jax.sharding.Mesh, params, ranks_K, heldout_MxT1) -> dict[str, jax.Array]:
    one = functools.partial(_measure_one, config)
    return over_runs(mesh, one, shared=1)(params, ranks_K, heldout_MxT1)


def _measure_one(config: ModelConfig, params, rank: jax.Array, heldout_MxT1: jax.Array) -> dict[str, jax.Array]:
    sigma_R = head_sigma(config, params)
    sample_NxT = heldout_MxT1[: -(-ANISOTROPY_TOKENS // config.context), :-1]
    final_BxTxD, stream_LxBxTxD = model.hidden(config, params, sample_NxT)
    flat = lambda x: x.reshape(-1, config.width)
    last_NxD = flat(stream_LxBxTxD[-1]).astype(jnp.float32)
    if config.norm == "layer":
        last_NxD -= last_NxD.mean(axis=1, keepdims=True)
    return {
        "heldout_loss": heldout_loss(config, params, heldout_MxT1),
        "singular_value": sigma_R,
        "singular_entropy": spectra.singular_entropy(sigma_R, rank),
        "effective_rank": spectra.effective_rank(sigma_R, rank),
        "largest_share": spectra.largest_share(sigma_R, rank),
        "condition_number": spectra.condition_number(sigma_R, rank),
        "anisotropy": jax.vmap(lambda x: anisotropy(flat(x)))(stream_LxBxTxD),
        # A norm divides each vector by a number of its own, which no cosine sees: without the gain only the
        # centring of LayerNorm is left.
        "anisotropy_before_gain": anisotropy(last_NxD),
        "anisotropy_after_gain": anisotropy(flat(final_BxTxD)),
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
    n_rows, context = len(rows_NxT1), rows_NxT1.shape[1] - 1
    inputs = np.pad(rows_NxT1[:, :-1], ((0, -n_rows % BLOCK_ROWS), (0, 0))).reshape(-1, BLOCK_ROWS, context)
    h_NxD = _final_hidden(config, params, inputs).reshape(-1, config.width)
    return h_NxD[: n_rows * context], jnp.asarray(rows_NxT1[:, 1:].reshape(-1))


def heldout_loss(config: ModelConfig, params, rows_MxT1: jax.Array) -> jax.Array:
    """Mean loss in nats/token over the rows, a block of rows at a time."""
    pad = -rows_MxT1.shape[0] % BLOCK_ROWS
    inputs = jnp.pad(rows_MxT1[:, :-1], ((0, pad), (0, 0)))
    targets = jnp.pad(rows_MxT1[:, 1:], ((0, pad), (0, 0)), constant_values=-1)

    def block(args):
        inputs_BxT, targets_BxT = args
        h_BxTxD, _ = model.hidden(config, params, inputs_BxT)
        loss = model.cross_entropy(*model.head(config, params, h_BxTxD), targets_BxT)
        return loss * (targets_BxT >= 0).sum()

    blocks = (x.reshape(-1, BLOCK_ROWS, x.shape[1]) for x in (inputs, targets))
    return jax.lax.map(block, tuple(blocks)).sum() / (targets >= 0).sum()


def head_sigma(config: ModelConfig, params) -> jax.Array:
    """Singular values of the head, of A B when factored."""
    if config.tied_head:
        return spectra.head_spectrum(params["embedding"])
    if config.head_rank is None:
        return spectra.head_spectrum(params["head"]["kernel"])
    return spectra.factored_head_spectrum(params["head"]["a"], params["head"]["b"])


def _rows(run: str, step: int, tokens: int, values: dict[str, np.ndarray], config: ModelConfig) -> pd.DataFrame:
    frames = []
    for metric, value in values.items():
        match metric:
            case "singular_value":
                frames.append(table.rows(run, step, tokens, metric, value[: config.rank]))
            case "anisotropy":
                frames.append(table.rows(run, step, tokens, metric, value, layer=np.arange(config.depth + 1), index=0))
            case "anisotropy_before_gain" | "anisotropy_after_gain":
                frames.append(table.rows(run, step, tokens, metric, value, layer=config.depth))
            case _:
                frames.append(table.rows(run, step, tokens, metric, value))
    return pd.concat(frames)
