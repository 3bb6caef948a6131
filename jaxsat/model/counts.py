"""Parameters and FLOPs of a configuration, in closed form."""

from dataclasses import dataclass

from jaxsat.config import ModelConfig


@dataclass(frozen=True)
class ParameterCounts:
    total: int
    embedding: int  # token and position tables; a tied head is counted here
    head: int  # the output matrix, or its two factors; 0 when tied
    nonembedding: int  # total - embedding - head: the blocks and the final norm, as in the Pythia paper


def count_parameters(config: ModelConfig) -> ParameterCounts:
    """Exact counts; `tests/model/test_counts.py` holds them against the arrays and the published Pythia totals."""
    c, d, v = config, config.width, config.vocab_size
    f, kv, b = c.ffn_width or 4 * d, (c.kv_heads or c.heads) * c.head_dim, int(c.bias)
    attention = 2 * d * d + 2 * d * kv + b * (2 * d + 2 * kv)
    n_up = 2 if c.activation == "swiglu" else 1
    feed_forward = (n_up + 1) * d * f + b * (n_up * f + d)
    norm = d * (2 if c.norm == "layer" and c.bias else 1)
    blocks = c.depth * (attention + feed_forward + 2 * norm) + norm
    embedding = v * d + (c.context * d if c.positions == "learned" else 0)
    head = 0 if c.tied_head else d * v if c.head_rank is None else c.head_rank * (d + v)
    return ParameterCounts(blocks + embedding + head, embedding, head, blocks)


def flops_per_token(config: ModelConfig) -> int:
    """Training FLOPs a token: 6 per parameter of the blocks and the head, and 12 L d T of attention scores and mixing.

    Counted over the whole context as in PaLM (Chowdhery et al. 2022, appendix B), not its causal half; the embedding
    is a look-up. Norms, softmax and activations are left out.
    """
    counts = count_parameters(config)
    head = config.vocab_size * config.width if config.tied_head else counts.head
    return 6 * (counts.nonembedding + head) + 12 * config.depth * config.width * config.context
