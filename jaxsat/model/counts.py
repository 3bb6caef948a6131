"""Parameters and FLOPs of a configuration, in closed form."""

from dataclasses import dataclass

from jaxsat.config import Layout, ModelConfig
from jaxsat.model.loss import chunk_tokens


@dataclass(frozen=True)
class ParameterCounts:
    total: int
    embedding: int  # token and position tables; a tied head is counted here
    head: int  # all its matrices; a tied one's is counted above
    nonembedding: int  # total - embedding - head: the blocks and the final norm, as in the Pythia paper


def count_parameters(config: ModelConfig) -> ParameterCounts:
    """Exact counts; `tests/model/test_counts.py` holds them against the arrays and the published Pythia totals."""
    c, d, v = config, config.width, config.vocab_size
    f, b = c.ffn_width or 4 * d, int(c.bias)
    he, kv = c.heads * c.head_dim, (c.kv_heads or c.heads) * c.head_dim
    attention = 2 * d * (he + kv) + b * (d + he + 2 * kv)
    n_up = 2 if c.gated else 1
    feed_forward = (n_up + 1) * d * f + b * (n_up * f + d)
    norm = d * (2 if c.norm == "layer" and c.bias else 1)
    blocks = c.depth * (attention + feed_forward + 2 * norm) + norm
    embedding = v * d + (c.context * d if c.positions == "learned" else 0)
    output, inner, _ = _head(c)
    head = inner + (0 if c.tied_head else output)
    return ParameterCounts(blocks + embedding + head, embedding, head, blocks)


def _head(config: ModelConfig) -> tuple[int, int, int]:
    """(parameters of the output matrix or its factors, of a mixture besides, softmaxes); see `jaxsat.model.heads`."""
    d, v, r = config.width, config.vocab_size, config.head_rank
    k = config.head_softmaxes if config.head == "mixture" else 0
    return d * v if r is None else r * (d + v), k * (d * d + d), max(1, k)


def flops_per_token(config: ModelConfig) -> int:
    """Training FLOPs a token: 6 per parameter of the blocks and the head, of the output matrix for each softmax, and
    12 L d T of attention scores and mixing.

    Counted over the whole context as in PaLM (Chowdhery et al. 2022, appendix B), not its causal half; the embedding
    is a look-up. Norms, softmax and activations are left out.
    """
    output, inner, n_softmaxes = _head(config)
    weights = count_parameters(config).nonembedding + inner + n_softmaxes * output
    return 6 * weights + 12 * config.depth * config.heads * config.head_dim * config.context


def step_bytes(config: ModelConfig, rows: int, layout: Layout, platform: str) -> int:
    """About what a device needs to train one run with `rows` rows a device, in bytes: parameters, gradient and Adam's
    two moments in float32; what layers and head keep for the backward pass; a chunk of logits; embedding and
    head, whole.

    `jaxsat plan` holds it against what the compiler says.
    """
    c, d, v = config, config.width, config.vocab_size
    size = 2 if c.compute_dtype == "bfloat16" else 4
    he, kv = c.heads * c.head_dim, (c.kv_heads or c.heads) * c.head_dim
    f, n_up = c.ffn_width or 4 * d, 2 if c.gated else 1
    tokens, model = rows * c.context, layout.model
    scores = 0 if platform == "tpu" else c.heads * c.context * (4 + size) // model  # splash attention keeps none
    norms = 2 * (2 * 4 + size) * d  # in float32: centred and scaled
    every = norms + size * (4 * d + (2 * he + 2 * kv + (2 + 2 * n_up) * f) // model)
    dots = size * (2 * d + (he + 2 * kv + n_up * f) // model)
    remat = layout.remat or "none"
    kept = c.depth * {"none": every + scores, "dots": dots, "full": size * d}[remat]
    layer = 0 if remat == "none" else every + scores
    # tanh(h P), what the output matrix is given, and gradients; h A, its gelu, and a gradient
    features = {"linear": 0, "mixture": c.head_softmaxes * (2 * d + 2 * c.rank), "nonlinear": 3 * c.rank}[c.head]
    state = 16 * count_parameters(c).total // ((layout.data or 1) * model)
    chunk = 3 * 4 * min(tokens, chunk_tokens(platform)) * v // model
    tables = 2 * 4 * v * (d + c.rank) // model
    return state + tokens * (kept + max(layer, size * features)) + chunk + tables
