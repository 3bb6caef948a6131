"""Scores of items (`jaxsat.evaluate`) as a measure."""

import hashlib
from typing import Literal

import pandas as pd
from etils import epath

from jaxsat.config import InputError
from jaxsat.corpus import tokenizer as bpe
from jaxsat.evaluate import Items, Scores, read_items, score
from jaxsat.evaluate.scoring import METRICS
from jaxsat.measure.measure import Checkpoint, Measure


def items(
    path: epath.PathLike, at: Literal["every", "last", "best"] | tuple[int, ...] = "last", cut: bool = False
) -> Measure:
    """The items of a .jsonl file, scored: see `item_rows` for the metrics. `cut`: contexts that are too long lose their
    beginning; else they are refused. Other items under the same name are another measure. Raises InputError."""
    found = read_items(path)

    def of(c: Checkpoint) -> pd.DataFrame:
        if c.tokenizer is None or not c.tokenizer.exists():
            raise InputError(f"items {found.name}: the model has no tokenizer.json")
        return item_rows(score(c.config, c.params, bpe.load(str(c.tokenizer), c.config.vocab_size), found, cut=cut))

    return Measure(measure_name(found, cut), of, at)


def measure_name(found: Items, cut: bool) -> str:
    told = [(item.id, item.group, item.context, item.options, item.answer) for item in found.items]
    return f"items {found.name} {hashlib.sha256(repr(told).encode()).hexdigest()[:8]}" + (" cut" if cut else "")


def item_rows(scores: Scores) -> pd.DataFrame:
    """As a table of a measure: NAME.accuracy and the like, the mean over all items; NAME.GROUP.accuracy, that of a
    group; with .n at the end, of how many items; NAME.item.accuracy, index i, of item i."""
    whole, own = scores.summary, scores.table[scores.table["metric"].isin(METRICS)]
    name = whole["items"].iloc[0]
    metric = name + "." + whole["group"].where(whole["group"] == "", whole["group"] + ".") + whole["metric"]
    number = {id: i for i, id in enumerate(dict.fromkeys(own["id"]))}
    each = pd.DataFrame({"metric": f"{name}.item." + own["metric"], "index": own["id"].map(number)})
    return pd.concat([
        pd.DataFrame({"metric": metric, "index": 0, "value": whole["value"]}),
        pd.DataFrame({"metric": metric + ".n", "index": 0, "value": whole["n"].astype(float)}),
        each.assign(value=own["value"]),
    ], ignore_index=True)  # fmt: skip
