"""How many dimensions the n-grams of a text need: Godey et al. 2024, section 6."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from jaxsat.corpus.documents import label
from jaxsat.corpus.ngrams import count, tokenizer_of
from jaxsat.measure.krylov import EnergyCurve, energy_curve
from jaxsat.measure.measure import Computed

W_ERRORS = {10: 0.10, 5: 0.05, 1: 0.01}  # per cent


def ngrams(
    corpus: Sequence[str],
    tokenizer: str = "bpe",
    vocab_size: int = 4096,
    n: int = 5,
    contexts: Sequence[int] = (1000, 4000, 16_000),
) -> Computed:
    """Of the C most frequent contexts of a text, at step C: `ngram_w_error`, index d, the part of the norm of their
    matrix that the best of rank d misses; `ngram_rank_10`, `ngram_rank_5`, `ngram_rank_1`, the rank where that is 10, 5
    and 1 %, which grows with the contexts. tokenizer: "bpe" or "words", trained on the text, or a tokenizer.json."""

    def of() -> pd.DataFrame:
        found = count(corpus, tokenizer_of(tokenizer, corpus, vocab_size), n, max(contexts))
        frames = []
        for c in contexts:
            curve = energy_curve(found.shares_CxV[:c])
            d_P = grid(curve)
            rows = pd.DataFrame({"metric": "ngram_w_error", "index": d_P, "value": curve.w_error(d_P)})
            ranks = {f"ngram_rank_{p}": curve.rank(error).mean() for p, error in W_ERRORS.items()}
            ranks = pd.DataFrame({"metric": ranks.keys(), "index": 0, "value": ranks.values()})
            frames.append(pd.concat([rows, ranks]).assign(step=c))
        return pd.concat(frames, ignore_index=True)

    cut = f"{vocab_size}" if tokenizer == "bpe" else f"{tokenizer} {vocab_size}"
    return Computed(f"{n}-grams {'+'.join(map(label, corpus))} {cut}", of)


def grid(curve: EnergyCurve) -> np.ndarray:
    """Dimensions at about equal ratios, from 1 on."""
    return np.unique(np.geomspace(1, curve.size, 48).round().astype(int))
