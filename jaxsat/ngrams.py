"""`jaxsat ngrams CORPUS`: how many dimensions what follows what in a text needs."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from jaxsat.claims.estimates import mean_over
from jaxsat.config import InputError
from jaxsat.corpus import ngrams as counting
from jaxsat.corpus import tokenizer as bpe
from jaxsat.measure.krylov import energy_curve, leading
from jaxsat.measure.ngrams import W_ERRORS, grid


def ngrams(
    corpus: Sequence[str], tokenizer: str, vocab_size: int, n: int, contexts: str, values: int
) -> tuple[dict[str, Any], list[str]]:
    """The document that `--json` prints, and what was taken of what cannot be, in lines. Raises InputError."""
    if not corpus:
        raise InputError("name a corpus (jaxsat corpus list), or the path of a .txt, .jsonl or .tsv file")
    sizes = _sizes(contexts)
    if values < 0:
        raise InputError(f"--values {values}: how many singular values, 0 or more")
    if tokenizer not in bpe.TRAINED and not Path(tokenizer).is_file():
        raise InputError(f"--tokenizer {tokenizer}: no such file; give 'bpe', 'words' or the path of a tokenizer.json")
    cut = counting.tokenizer_of(tokenizer, corpus, vocab_size)
    found, notes = counting.count(corpus, cut, n, max(sizes)), []
    if over := [size for size in sizes if size > found.contexts]:
        notes.append(f"--contexts {over[0]}: the text has {found.contexts} different contexts, which are all taken")
    sizes = sorted({min(size, found.contexts) for size in sizes})
    document = {"corpus": list(corpus), "tokens": found.tokens, "vocabulary": bpe.size(cut), "n": n,
                "contexts_in_text": found.contexts, "sizes": []}  # fmt: skip
    for size in sizes:
        shares_CxV = found.shares_CxV[:size]
        curve = energy_curve(shares_CxV)
        d_P = grid(curve)
        of = {"contexts": size, "dimensions": curve.size, "exact": len(curve.lines) == 1, "ranks": {}}
        for percent, error in W_ERRORS.items():
            rank_P = curve.rank(error)
            interval = mean_over(rank_P, "", "rank") if len(rank_P) > 1 else None
            ends = (interval.low, interval.high) if interval else (rank_P[0], rank_P[0])
            of["ranks"][str(percent)] = {"value": float(rank_P.mean()), "low": float(ends[0]), "high": float(ends[1])}
        of["w_error"] = [{"rank": int(d), "w_error": float(e)} for d, e in zip(d_P, curve.w_error(d_P))]
        of["singular_values"] = leading(shares_CxV, values).sigma_K.tolist() if values else []
        document["sizes"].append(of)
    return document, notes


def _sizes(text: str) -> list[int]:
    parts = text.replace("_", "").split(",")
    if not all(part.strip().isdecimal() and int(part) > 0 for part in parts):
        raise InputError(f"--contexts {text}: must be numbers above 0 with commas between, such as 1000,10000")
    return sorted({int(part) for part in parts})


def frame(document: dict[str, Any]) -> pd.DataFrame:
    """A row a number of contexts."""
    rows = []
    for of in document["sizes"]:
        row = {"contexts": of["contexts"], "dimensions": of["dimensions"]}
        for percent, rank in of["ranks"].items():
            half = (rank["high"] - rank["low"]) / 2
            row[f"rank for {percent} %"] = f"{rank['value']:.0f}" + ("" if of["exact"] else f" ± {half:.0f}")
        rows.append(row)
    return pd.DataFrame(rows)
