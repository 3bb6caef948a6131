"""Columns and their values in the words of the page and of figures."""

import math

import numpy as np
import pandas as pd

from jaxsat.report.numbers import number, si

# What axes are called. Of any other metric or key, its own name.
LABELS = {
    "tokens": "training tokens",
    "step": "training steps",
    "rank": "rank r of the head",
    "model.head_rank": "rank r of the head",
    "model.width": "width d",
    "model.depth": "depth (blocks)",
    "model.vocab_size": "vocabulary V",
    "train.learning_rate": "learning rate",
    "train.batch_size": "rows a batch",
    "params.total": "parameters N",
    "params.nonembedding": "non-embedding parameters N",
    "params.head": "parameters of the head",
    "epochs": "epochs of the text",
    "heldout_loss": "held-out loss (nats/token)",
    "heldout_bits_per_byte": "held-out loss (bits/byte)",
    "document_loss": "loss of a held-out document (nats/token)",
    "frozen_head_loss": "loss of heads retrained on the frozen backbone (nats/token)",
    "frozen_head_truncated_loss": "loss of the model's own head, truncated (nats/token)",
    "singular_value": "singular value of the head",
    "singular_entropy": "singular entropy (nats)",
    "effective_rank": "effective rank of the head",
    "anisotropy": "anisotropy (mean pairwise cosine)",
    "anisotropy_before_gain": "anisotropy before the final norm's gain",
    "anisotropy_after_gain": "anisotropy after the final norm's gain",
    "centred_anisotropy": "anisotropy about the mean (mean pairwise cosine)",
    "centred_anisotropy_before_gain": "anisotropy about the mean, before the final norm's gain",
    "centred_anisotropy_after_gain": "anisotropy about the mean, after the final norm's gain",
    "gradient_norm_passed": "part of the gradient's norm that passes the head",
    "gradient_norm_lost": "part of the gradient's norm that is lost at the head",
    "gradient_energy_passed": "part of the gradient's energy that passes the head",
    "gradient_norm_passed.random": "that passes a random subspace of its rank",
    "gradient_norm_lost.random": "that is lost at a random subspace of its rank",
    "gradient_energy_passed.random": "energy that passes a random subspace of its rank",
    "excess_loss": "loss above the language's entropy (nats/token)",
    "symbols_seen": "part of the symbols that training has had",
    "ngram_w_error": "W-error, the part of the norm that is missed",
    "flops": "training FLOPs",
    "forward_latency": "forward pass (s/token)",
    "decoding_latency": "decoding (s/token)",
    "head_tail": "tail of the ideal head's spectrum beyond rank r",
    "head_gap_truncated": "loss of the truncated head above the true entropy (nats)",
    "head_gap_trained": "loss of a trained head above the true entropy (nats)",
}
_SECTIONS = ("model", "train", "data", "start", "imported", "params")
_SHORT = {
    "rank": "r =", "model.head_rank": "r =", "model.width": "d =", "model.depth": "L =", "seed": "seed",
    "train.learning_rate": "lr", "train.weight_decay": "decay", "train.batch_size": "batch",
}  # fmt: skip


def label(name: str) -> str:
    """Of an axis. A configuration key is its last part; a metric with points says of what it is."""
    of, _, last = name.rpartition(".")
    words = last.replace("_", " ")
    return LABELS.get(name, f"{words}, {of}" if of and of not in _SECTIONS else words)


def called(column: str, value: object) -> str:
    """One value of a column, as the name of a line or a panel: "d = 64", "lr 0.04", "1.54M tokens"."""
    if column == "metric":
        return label(str(value)).partition(" (")[0]
    if isinstance(value, tuple):
        return " + ".join(map(str, value))
    if isinstance(value, bool | np.bool_):
        return f"{label(column)}: {'yes' if value else 'no'}"
    if not isinstance(value, int | float | np.number):
        return f"{label(column)} {value}" if value == "none" else str(value)
    if column == "tokens":
        return f"{si(value)} tokens"
    return f"{_SHORT.get(column, label(column))} {value:g}"


def rows(frame: pd.DataFrame) -> list[tuple[str, ...]]:
    return list(zip(*(cells(frame[name]) for name in frame), strict=True))


def cells(column: pd.Series) -> list[str]:
    """A table's column for people: numbers of like size share their decimals, so that their points line up. An
    infinite end of an interval (columns `low` and `high`) is no bound."""
    values = column.tolist()
    texts = [_cell(v) for v in values]
    if column.name in ("low", "high"):
        texts = ["no bound" if "∞" in text else text for text in texts]
    sizes = [abs(v) for v in values if np.isfinite(v) and v] if pd.api.types.is_float_dtype(column) else []
    if not sizes or max(sizes) >= 1e4 or max(sizes) > 1e3 * min(sizes):
        return texts
    needed = max(len(text.partition(".")[2]) for text in texts)
    decimals = max(0, min(needed, 3 - math.floor(math.log10(max(sizes)))))
    lined_up = [f"{v:.{decimals}f}".replace("-", "−") for v in values]
    return [new if np.isfinite(v) else old for v, new, old in zip(values, lined_up, texts, strict=True)]


def _cell(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, tuple):
        return " + ".join(map(str, value))
    if isinstance(value, int | float):
        return number(value)
    return "–" if value is None or value is pd.NA else str(value)
