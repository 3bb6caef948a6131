"""Items scored by a model: a table of the items, and a summary with intervals over them."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import special
from tokenizers import Tokenizer

from jaxsat import model
from jaxsat.config import InputError, ModelConfig
from jaxsat.corpus.pairs import Pair, encode_pairs
from jaxsat.corpus.tokenizer import end_id
from jaxsat.evaluate.generation import generate_tokens, tokens_with
from jaxsat.evaluate.items import Item, Items
from jaxsat.evaluate.likelihood import log_likelihoods

LEVEL = 0.9  # of the intervals, as those of claims
SHARES = ("accuracy", "accuracy_token", "accuracy_byte", "exact_match")  # means of what is 0 or 1
METRICS = (*SHARES, "loglikelihood", "loglikelihood_token", "loglikelihood_byte")


@dataclass(frozen=True)
class Scores:
    """table: id, group, metric, index, value. A row an item and metric of METRICS (index 0), and an option and each of
    option_loglikelihood (nats, the sum over its tokens), option_tokens, option_bytes (index: of the option).

    summary: items, group ("" the whole), n (items), metric, value (their mean), low, high (90 %).
    cut: contexts of how many items were cut. written: of each item of exact match what the model wrote.
    """

    table: pd.DataFrame
    summary: pd.DataFrame
    cut: int
    written: dict[str, str]


def score(
    config: ModelConfig, params: model.Params, tokenizer: Tokenizer, items: Items, *, cut: bool = False
) -> Scores:
    """Every item by the measures that its kind has:

    accuracy             pair: the good text has the greater log-likelihood (the sum over its tokens). choice: the
                         answer has the greatest, of equals the first, as in lm-eval. cloze: greedy decoding writes
                         the word
    accuracy_token       pair, choice: the same of the mean log-likelihood a token
    accuracy_byte        pair, choice: the same of the mean a byte of the text as written
    exact_match          match: greedy decoding writes the target, up to the end of text or, where the target is one
                         line, the end of the line; white space around it is left out of account
    loglikelihood        of the right text, nats; _token and _byte: its mean a token, a byte

    A pair's texts stand after `begin_ids`; other texts after their context, which stands as the tokenizer encodes it.
    `cut`: what is longer than the model's context loses the beginning of its own; else it is refused. Raises
    InputError, which names the item.
    """
    texts = [(item.context, continuation) for item in items.items for continuation in item.continuations]
    pairs = iter(encode_pairs(tokenizer, texts))
    fitted = [[_fit(config, item, next(pairs), i, cut) for i in range(len(item.options))] for item in items.items]
    flat = [pair for pairs_ in fitted for pair, _ in pairs_]
    found = log_likelihoods(config, params, flat)
    if not np.isfinite(found.nats_N).all():
        raise InputError(f"{items.name}: the model's probabilities are no numbers, as after it has diverged")
    written = _write(config, params, tokenizer, items.items, fitted)
    rows: list[tuple[str, str, str, int, float]] = []
    first = 0
    for item, pairs_ in zip(items.items, fitted):
        own = slice(first, first + len(pairs_))
        first += len(pairs_)
        tokens_O = np.array([len(pair.continuation) for pair, _ in pairs_])
        bytes_O = np.array([len(option.encode()) for option in item.options])
        nats_O = found.nats_N[own]
        of = {"loglikelihood": nats_O, "loglikelihood_token": nats_O / tokens_O, "loglikelihood_byte": nats_O / bytes_O}
        values = {metric: values_O[item.answer] for metric, values_O in of.items()}
        if len(item.options) > 1:
            values |= {metric: _wins(item, values_O) for metric, values_O in zip(SHARES, of.values())}
        elif item.kind == "cloze":
            values["accuracy"] = found.greedy_N[own][0]
        else:
            values["exact_match"] = written[item.id] == item.options[0].strip()
        rows += [(item.id, item.group, metric, 0, float(values[metric])) for metric in METRICS if metric in values]
        options = {"option_loglikelihood": nats_O, "option_tokens": tokens_O, "option_bytes": bytes_O}
        rows += [(item.id, item.group, m, i, float(v)) for m, v_O in options.items() for i, v in enumerate(v_O)]
    table = pd.DataFrame(rows, columns=["id", "group", "metric", "index", "value"])
    n_cut = sum(any(was_cut for _, was_cut in pairs_) for pairs_ in fitted)
    return Scores(table, summary(items.name, table), n_cut, written)


def summary(name: str, table: pd.DataFrame) -> pd.DataFrame:
    """A row a group and metric, the whole ("") first: items, group, n, metric, value, low, high.

    The interval is over items, as if they were drawn independently: Wilson's of a share, Student's t of a mean.
    """
    table = table[table["metric"].isin(METRICS)]
    groups = ["", *(group for group in table["group"].unique() if group)]
    rows = []
    for group in groups:
        of_group = table if not group else table[table["group"] == group]
        for metric in METRICS:
            values = of_group.loc[of_group["metric"] == metric, "value"].to_numpy()
            if len(values):
                interval = wilson if metric in SHARES else student
                rows.append((name, group, len(values), metric, values.mean(), *interval(values)))
    return pd.DataFrame(rows, columns=["items", "group", "n", "metric", "value", "low", "high"])


def wilson(values: np.ndarray) -> tuple[float, float]:
    """The 90 % interval of a share (Wilson 1927), of values that are 0 or 1."""
    n, p, z = len(values), values.mean(), special.ndtri((1 + LEVEL) / 2)
    middle, half = p + z**2 / (2 * n), z * np.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    low, high = ((middle + sign * half) / (1 + z**2 / n) for sign in (-1, 1))
    return float(min(low, p)), float(max(high, p))  # of 0 and 1 the end is the value itself, but for rounding


def student(values: np.ndarray) -> tuple[float, float]:
    """The 90 % interval of a mean by Student's t; of one value without bounds."""
    if len(values) < 2:
        return -np.inf, np.inf
    half = special.stdtrit(len(values) - 1, (1 + LEVEL) / 2) * values.std(ddof=1) / np.sqrt(len(values))
    return float(values.mean() - half), float(values.mean() + half)


def _wins(item: Item, values_O: np.ndarray) -> bool:
    return bool(values_O[0] > values_O[1] if item.kind == "pair" else values_O.argmax() == item.answer)


def _fit(config: ModelConfig, item: Item, pair: Pair, option: int, cut: bool) -> tuple[Pair, bool]:
    """(the pair in the model's context, whether its own was cut). Of exact match the end of the target is written too,
    which takes a place more."""
    what = f"{item.where}: item {item.id!r}" + (f", option {option}" if len(item.options) > 1 else "")
    n_context, n_scored = map(len, pair)
    if not n_scored:
        raise InputError(f"{what}: {item.options[option]!r:.40} adds no token to its context")
    room = config.context + 1 - n_scored - (item.kind == "match")
    if n_context <= room:
        return pair, False
    said = f"{what}: context of {n_context} tokens and {n_scored} that are scored; model.context = {config.context}"
    if not item.context or room < 1:
        raise InputError(f"{said} is too short for it: leave the item out")
    if not cut:
        raise InputError(f"{said} has room for {room} of context: leave it out, or have contexts cut on their left")
    return Pair(pair.context[-room:], pair.continuation), True


def _write(
    config: ModelConfig,
    params: model.Params,
    tokenizer: Tokenizer,
    items: Sequence[Item],
    fitted: Sequence[Sequence[tuple[Pair, bool]]],
) -> dict[str, str]:
    """What greedy decoding writes of each item of exact match, by id."""
    asked = [(item, pairs[0][0]) for item, pairs in zip(items, fitted) if item.kind == "match"]
    if not asked:
        return {}
    lines = [item.options[0].strip() for item, _ in asked]
    limits = [2 * len(pair.continuation) + 8 for _, pair in asked]  # room for the same text in more tokens, and its end
    end = end_id(tokenizer)
    ends = {end} - {None} | (set() if any("\n" in line for line in lines) else set(tokens_with(tokenizer, "\n")))
    found = generate_tokens(config, params, [pair.context for _, pair in asked], limits, ends=ends)
    written = {}
    for (item, _), line, ids in zip(asked, lines, found):
        text = tokenizer.decode([i for i in ids if i != end], skip_special_tokens=False)
        written[item.id] = (text if "\n" in line else text.split("\n")[0]).strip()
    return written
