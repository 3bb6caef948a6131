"""Rank-limited heads on a frozen backbone (Godey et al. 2024, arXiv:2404.07647, section 5): how much of the loss is
the head's rank, and nothing else.

One forward pass keeps the last hidden states of the training text on the host, in memory or, above IN_MEMORY bytes, in
a temporary file that is gone with the process. On them heads W = A B of each rank are trained in one program, which
holds neither N x V nor B x V numbers (see `heads`). Beside them stand the truncated SVDs of the model's own head.
"""

import shutil
import tempfile
from collections.abc import Callable, Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from numpy.typing import ArrayLike

from jaxsat import model
from jaxsat.config import InputError, ModelConfig, Run
from jaxsat.corpus import batch_at
from jaxsat.measure import heads
from jaxsat.measure.heads import Head
from jaxsat.measure.measure import Checkpoint, Measure, blocks, every

FROZEN_TOKENS = 500_000  # on whose states heads are trained
FROZEN_RANKS = (2, 4, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 1024, 2048)
RATES = (3e-3, 1e-2, 3e-2)  # of learning, of which each rank has one
IN_MEMORY = 2**30  # bytes of hidden states: 262 144 of width 1024
JUDGED = 1 / 8  # of the training states, on which the rates are judged


def frozen_heads(runs: Callable[[Run], bool] = every, ranks: Sequence[int] = FROZEN_RANKS) -> Measure:
    """Heads of each of `ranks`, and of full rank, retrained on the last checkpoint's frozen backbone. By index = rank:

    `frozen_head_loss`, nats a token of the held-out slice, after one pass over the hidden states of FROZEN_TOKENS of
    the training text (of an import, that part of the text it was given which is not held out). Compare each rank with
    the retrained full head, not with the model's own: those have seen other data.
    `frozen_head_gain`: by how much the second half of that pass still lowered each loss; where it is not small,
    training was too short.
    `frozen_head_learning_rate`: which of RATES it had, that whose loss was least on JUDGED of the training states after
    training on their first half. (The paper adjusts the rate to the number of parameters; how is not known to us.)
    `frozen_head_truncated_loss`, up to the head's own rank: of the truncated SVD of the model's own head. Of a head
    that is not linear there is none.
    `frozen_head_document_loss`, layer = document of the slice as in `document_loss`, and `frozen_head_document_tokens`,
    index 0, how many it has there: what `claims.knee_over_documents` takes.

    Raises InputError of a model without a text, of one with too little, and where the temporary file has no room.
    """
    return Measure("frozen_heads", partial(_frozen_heads, ranks=tuple(ranks)), at="last", runs=runs)


def train_frozen_heads(
    h_NxD: ArrayLike,
    targets_N: ArrayLike,
    vocab_size: int,
    ranks: Sequence[int],
    *,
    epochs: int = 1,
    batch_size: int = 256,
    learning_rate: float | Sequence[float] = 1e-2,
    seed: int = 0,
) -> list[Head]:
    """A head of each rank, trained on the hidden states of N positions (of rows drawn over the whole corpus) and their
    next tokens. learning_rate: of all, or of each.

    A head does not depend on which others are asked for. Each epoch is a fresh permutation; its end, where it does not
    fill a batch, is left out. 0.5 M states of D = 64, V = 1024, 8 ranks: 12 to 19 s on two busy cores; the head of
    full rank ends .02 nats below the backbone's own.
    Raises InputError on a rank outside 1 to D, or when N is below one batch.
    """
    n, d = np.shape(h_NxD)
    if n < batch_size:
        raise InputError(f"{n} hidden states are fewer than one batch of {batch_size}: use more tokens")
    init, data = jax.random.split(jax.random.key(seed))
    steps = n // batch_size
    order = [jax.random.permutation(k, n)[: steps * batch_size] for k in jax.random.split(data, epochs)]
    order_SxB = np.concatenate(order).reshape(epochs * steps, batch_size)
    rates_K = np.broadcast_to(learning_rate, len(ranks))
    return heads.train(heads.gaussian_heads(init, d, vocab_size, ranks), h_NxD, targets_N, order_SxB, rates_K)


def frozen_head_losses(of: Sequence[Head], h_NxD: ArrayLike, targets_N: ArrayLike) -> np.ndarray:
    """The loss of each head in nats per token: K numbers."""
    return heads.divergences(of, h_NxD, targets_N).mean(axis=1, dtype=np.float64)


def _frozen_heads(c: Checkpoint, ranks: tuple[int, ...]) -> pd.DataFrame:
    if c.corpus is None or not sum(map(len, c.corpus.train)):
        raise InputError(
            f"frozen heads are trained on a text, and {c.run.imported.name or c.run.id} has none: leave it out by "
            "`runs`, or give the import a corpus"
        )
    ranks = sorted({*(r for r in ranks if r <= c.config.width), c.config.width})
    rows = min(sum(map(len, c.corpus.train)), FROZEN_TOKENS // c.config.context)
    marked = c.corpus.marked or c.corpus.heldout_marked
    early, late, rate_K = _at_best_rates(
        *_states(c, batch_at(c.corpus, c.run.seed, 0, rows), marked), c.config.vocab_size, ranks, c.run.seed
    )
    heldout_RxT1 = np.asarray(c.heldout.tokens_NxBxT1).reshape(-1, c.config.context + 1)
    states = _states(c, heldout_RxT1, marked)
    unit_N = np.asarray(c.heldout.unit_NxBxT).reshape(-1)[heldout_RxT1[:, 1:].reshape(-1) >= 0]
    nats_KxN = heads.divergences(late, *states)
    loss_K = nats_KxN.mean(axis=1, dtype=np.float64)
    tables = {
        "frozen_head_loss": (ranks, loss_K),
        "frozen_head_gain": (ranks, frozen_head_losses(early, *states) - loss_K),
        "frozen_head_learning_rate": (ranks, rate_K),
    }
    if c.config.head == "linear":
        own = [r for r in ranks if r <= c.rank]
        factors = model.heads.matrices(c.config, c.params)["output"]
        w_DxV = factors[0] if len(factors) == 1 else factors[0] @ factors[1]
        cut = heads.truncated_heads(w_DxV, own)
        tables["frozen_head_truncated_loss"] = own, frozen_head_losses(cut, *states) if own else []
    found = [pd.DataFrame({"metric": name, "layer": -1, "index": i, "value": v}) for name, (i, v) in tables.items()]
    return pd.concat([*found, _by_document(nats_KxN, unit_N, ranks, c.heldout.n_units)], ignore_index=True)


def _by_document(nats_KxN: np.ndarray, unit_N: np.ndarray, ranks: Sequence[int], n_units: int) -> pd.DataFrame:
    known = unit_N >= 0
    sums = lambda x_N: np.bincount(unit_N[known], x_N[known], n_units)
    tokens_M = sums(np.ones(len(unit_N)))
    tables = [(0, "frozen_head_document_tokens", tokens_M)]
    tables += [(r, "frozen_head_document_loss", sums(nats_N) / tokens_M) for r, nats_N in zip(ranks, nats_KxN)]
    parts = [pd.DataFrame({"layer": range(n_units), "index": r, "metric": m, "value": v}) for r, m, v in tables]
    return pd.concat(parts).query("value >= 0")  # of a document without a token there is no loss


def _at_best_rates(
    h_NxD: np.ndarray, targets_N: np.ndarray, vocab_size: int, ranks: Sequence[int], seed: int
) -> tuple[list[Head], list[Head], np.ndarray]:
    """(heads trained on the first half of the states, heads trained on all, rate_K): each at the rate that was best
    for its rank after the first half, by the states that follow it."""
    half = len(h_NxD) // 2
    judged = slice(half, half + max(1, int(JUDGED * len(h_NxD))))
    # On the host, as at d = 1024, V = 50304 the heads of one rate take 0.75 GB.
    tried = [
        jax.device_get(
            train_frozen_heads(h_NxD[:half], targets_N[:half], vocab_size, ranks, learning_rate=rate, seed=seed)
        )
        for rate in RATES
    ]
    losses_LxK = np.stack([frozen_head_losses(each, h_NxD[judged], targets_N[judged]) for each in tried])
    best_K = np.where(np.isfinite(losses_LxK), losses_LxK, np.inf).argmin(axis=0)
    rate_K = np.array(RATES)[best_K]
    late = train_frozen_heads(h_NxD, targets_N, vocab_size, ranks, learning_rate=rate_K, seed=seed)
    return [tried[best][k] for k, best in enumerate(best_K)], late, rate_K


@partial(jax.jit, static_argnames=("config", "pairs", "mesh"))
def _final_hidden(
    config: ModelConfig, params: model.Params, rows_NxBxT1: jax.Array, pairs: bool, mesh: Mesh
) -> jax.Array:
    def on_each(params: model.Params, rows_NxBxT1: jax.Array) -> jax.Array:
        def block(rows_BxT1: jax.Array) -> jax.Array:
            inputs_BxT, segment_BxT = model.read_marks(rows_BxT1)
            h_BxTxD, _ = model.hidden(config, params, inputs_BxT, segment_BxT=segment_BxT if pairs else None)
            return h_BxTxD.astype(jnp.float32)

        return jax.lax.map(block, rows_NxBxT1)

    parts = PartitionSpec(None, "batch")
    specs = dict(in_specs=(PartitionSpec(), parts), out_specs=parts)
    return jax.shard_map(on_each, mesh=mesh, check_vma=False, **specs)(params, rows_NxBxT1)


def _states(c: Checkpoint, rows_RxT1: np.ndarray, marked: bool) -> tuple[np.ndarray, np.ndarray]:
    """(h_NxD, targets_N) of all positions of the rows that have a target, on the host; each device passes a part of
    every block."""
    is_target_RxT, width = rows_RxT1[:, 1:] >= 0, c.config.width
    h_NxD = _room(int(is_target_RxT.sum()), width)
    mesh = Mesh(np.array(jax.local_devices()), ("batch",))
    rows_NxBxT1 = blocks(rows_RxT1, mesh.size)
    a_block = 4 * rows_NxBxT1.shape[1] * is_target_RxT.shape[1] * width
    n = min(len(rows_NxBxT1), max(1, heads.FED // a_block))  # blocks a program
    rows_NxBxT1 = np.pad(rows_NxBxT1, ((0, -len(rows_NxBxT1) % n), (0, 0), (0, 0)), constant_values=-1)
    params = jax.device_put(c.params, NamedSharding(mesh, PartitionSpec()))
    start = 0
    for i in range(0, len(rows_NxBxT1), n):
        fed = jax.device_put(rows_NxBxT1[i : i + n], NamedSharding(mesh, PartitionSpec(None, "batch")))
        found = np.asarray(_final_hidden(c.config, params, fed, marked, mesh))
        kept = found.reshape(-1, width)[(rows_NxBxT1[i : i + n, :, 1:] >= 0).reshape(-1)]
        h_NxD[start : (start := start + len(kept))] = kept
    return h_NxD, rows_RxT1[:, 1:][is_target_RxT]


def _room(n: int, d: int) -> np.ndarray:
    """An empty array n x d, float32, whose file has no name any more where it is in one."""
    if (size := 4 * n * d) <= IN_MEMORY:
        return np.empty((n, d), np.float32)
    folder = tempfile.gettempdir()
    if (free := shutil.disk_usage(folder).free) < size:
        raise InputError(
            f"{n} hidden states of width {d} take {size / 2**30:.1f} GiB, and {folder} has {free / 2**30:.1f}: set "
            "TMPDIR to a folder with more"
        )
    with tempfile.TemporaryFile() as file:
        return np.memmap(file, np.float32, "w+", shape=(n, d))
