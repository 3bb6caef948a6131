"""Numbers, estimates and columns in the words of the page and of figures."""

import math

import numpy as np
import pandas as pd

from jaxsat.claims import Estimate

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
    "document_loss": "loss of a held-out document (nats/token)",
    "frozen_head_loss": "loss of heads retrained on the frozen backbone (nats/token)",
    "singular_value": "singular value of the head",
    "singular_entropy": "singular entropy (nats)",
    "effective_rank": "effective rank of the head",
    "anisotropy": "anisotropy (mean pairwise cosine)",
    "anisotropy_before_gain": "anisotropy before the final norm's gain",
    "anisotropy_after_gain": "anisotropy after the final norm's gain",
    "head_tail": "tail of the ideal head's spectrum beyond rank r",
    "head_gap_truncated": "loss of the truncated head above the true entropy (nats)",
    "head_gap_trained": "loss of a trained head above the true entropy (nats)",
}
_SHORT = {
    "rank": "r =", "model.head_rank": "r =", "model.width": "d =", "model.depth": "L =", "seed": "seed",
    "train.learning_rate": "lr", "train.weight_decay": "decay", "train.batch_size": "batch",
}  # fmt: skip


def label(name: str) -> str:
    """Of an axis."""
    return LABELS.get(name, name.rpartition(".")[2].replace("_", " "))


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


def si(value: float) -> str:
    for scale, suffix in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= scale:
            return f"{value / scale:.3g}{suffix}"
    return f"{value:.3g}"


def number(value: float | None) -> str:
    """Four significant digits; thousands separated; nothing measured is a dash."""
    if value is None or math.isnan(value):
        return "–"
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    if float(value).is_integer() and abs(value) < 1e15:
        return f"{int(value):,}".replace("-", "−")
    text = f"{value:,.0f}" if 1e4 <= abs(value) < 1e15 else f"{value:,.4g}"
    return text.replace("e-0", "e-").replace("-", "−")


def signed(value: float) -> str:
    return ("+" if value > 0 else "") + number(value)


def estimate(e: Estimate) -> str:
    """The value, its interval and its unit, with as many decimals as the interval's width has meaning. An end that is
    no bound is said to be none."""
    if math.isinf(e.low) and math.isinf(e.high):
        return f"{number(e.value)} {e.unit}".strip() + ", without a bound on either side"
    if math.isinf(e.low) or math.isinf(e.high) or not 1e-5 < e.high - e.low < 1e15:
        value, low, high = map(number, (e.value, e.low, e.high))
    else:
        decimals = max(0, 1 - math.floor(math.log10(e.high - e.low)))
        while decimals < 9 and any(end and not round(end, decimals) for end in (e.low, e.high)):
            decimals += 1  # an end near zero is on one side of it
        value, low, high = (f"{x:,.{decimals}f}".replace("-", "−") for x in (e.value, e.low, e.high))
    low, high = ("no bound" if math.isinf(end) else text for end, text in ((e.low, low), (e.high, high)))
    return f"{value} [{low}, {high}] {e.unit}".strip()


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
    if isinstance(value, int | float):
        return number(value)
    return "–" if value is None or value is pd.NA else str(value)
