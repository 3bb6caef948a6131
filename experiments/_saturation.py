"""What the claims of `saturation` need, and the estimates that they are decided by: nothing is declared here."""

import numpy as np
import pandas as pd

from jaxsat import laws
from jaxsat.claims import Estimate, downstream
from jaxsat.claims.estimates import (
    association,
    contrast,
    explained,
    knee,
    knee_over_documents,
    late_level,
    late_rise,
    mean_over,
    share,
    slope,
)
from jaxsat.claims.saturation import FEWEST
from jaxsat.claims.saturation import saturation as detected
from jaxsat.laws import HOFFMANN
from jaxsat.results import NotMeasured, Results

PAPER_TOKENS_PER_PARAMETER = 21_000  # of Pythia-14m, after 300 B tokens [derived]
PAPER_SMALL = 4e8  # parameters: Pythia-410m, with 405 M, is the first of the larger models
PAPER_KNEE = 1000
MOST_EPOCHS = 4  # beyond it a rise of the held-out loss may be over-fitting
MISFIT = 0.003  # of a run about its law: two seeds of the laptop scale differ by 0.24 % (median), a deviation of 0.25 %
CONTEXTS = (1000, 4000, 16_000)
FULL = "rank == `model.width`"
LANGUAGES = {f"spectrum i^-{power}": power for power in (0.5, 1.0, 1.5)}


def ends(r: Results, params: str = "params.total") -> pd.DataFrame:
    """Last losses of full-rank runs, of every token budget: the points of a law."""
    ours = [part for part in ("main", "budget") if part in r.parts] or "main"
    last = r.last("heldout_loss", part=ours, where=FULL)
    return last.rename(columns={params: "N", "tokens": "D", "value": "loss"})


# What the claims need, of the runs alone.


def parts(r: Results) -> list[str]:
    """Whose late losses count: `saturating`, where it is there, else `main`; and what is imported."""
    ours = "saturating" if "saturating" in r.parts else "main"
    return [part for part in (ours, "imported") if part in r.parts] or [ours]


def full(r: Results) -> pd.DataFrame:
    return r.select(parts(r), FULL)


def probe_needs(r: Results) -> str:
    return "" if "probe" in r.parts or r.scale != "pod" else "runs with and without weight decay"


def rank_needs(r: Results) -> str:
    return "" if r.count("rank < `model.width`", "main") else "runs of several head ranks"


def law_needs(r: Results) -> str:
    sizes = full(r)["params.total"]
    n = sizes[sizes >= PAPER_SMALL].nunique()
    return "" if n >= 3 else f"three sizes of {PAPER_SMALL:.0e} parameters or more, and smaller ones; there are {n}"


def length_needs(r: Results) -> str:
    runs = full(r)
    seen, least = runs["tokens"] / runs["params.total"], PAPER_TOKENS_PER_PARAMETER
    if seen.max() < least and not runs["imported.name"].notna().any():
        return f"{least:,} tokens a parameter, as Pythia-14m saw; the smallest here sees {seen.max():,.0f}"
    if (epochs := runs["epochs"].max()) > MOST_EPOCHS:
        return f"at most {MOST_EPOCHS} epochs, as a rise may be over-fitting; here {epochs:.0f}"
    return ""


def saturation_needs(r: Results) -> str:
    return length_needs(r) or law_needs(r)


def knee_needs(r: Results) -> str:
    n = r.count(f"{FULL} and `model.width` >= {2 * PAPER_KNEE} and seed == 0", "main")
    return "" if n >= 3 else f"three backbones of width {2 * PAPER_KNEE} or more, twice the paper's knee; there are {n}"


# What they are decided by.


def _detected(r: Results, runs: pd.DataFrame) -> pd.Series:
    """Of each run by how much its loss is surely above its best, as a log: 0 where `jaxsat detect` finds nothing."""
    found = {id: detected(nats.index, nats.iloc[:, 0]) for id, nats in r.curves("heldout_loss", runs).items()}
    if short := [id for id, of in found.items() if np.isnan(of.low)]:
        raise NotMeasured(f"the loss at {FEWEST} checkpoints after the first tenth of run {short[0]}")
    return pd.Series({id: np.log(of.low) for id, of in found.items()})


def saturating(r: Results, small: bool) -> Estimate:
    rises = _detected(r, full(r)).rename(full(r)["params.total"].to_dict())
    of = rises[(rises.index < PAPER_SMALL) == small]
    return share(of > 0, "of the models, by the rule of jaxsat detect on the held-out loss")


def _rises(r: Results, runs: pd.DataFrame) -> dict[str, Estimate]:
    """The late rise of the loss of each run, per cent, over the held-out documents."""
    return {id: late_rise(nats.to_numpy(), nats.index) for id, nats in r.curves("document_loss", runs).items()}


def _levels(r: Results, metric: str, runs: pd.DataFrame) -> pd.Series:
    """The late rise of another metric of each run."""
    return pd.Series({id: late_level(c.iloc[:, 0], c.index) for id, c in r.curves(metric, runs).items()})


def gap(r: Results, at: str) -> Estimate:
    rows = r.rows("heldout_loss", part=parts(r), where=FULL).sort_values("tokens")
    names = {"params.total": "N", "tokens": "D", "value": "loss"}
    curves = rows[rows["tokens"] > 0].rename(columns=names)[["series", *names.values()]]
    # The best checkpoint is that of the least neighbours: the least of many noisy losses is too low.
    neighbours = [curves.groupby("series")["loss"].shift(by) for by in (1, -1)]
    curves["chosen_by"] = pd.concat(neighbours, axis=1).mean(axis=1)
    found = getattr(laws.gaps(curves, PAPER_SMALL, hold=HOFFMANN, misfit=MISFIT), at)
    how = f"mean over the small models, {at} checkpoint; E, B, beta held, misfit of a run {100 * MISFIT:g} %"
    return Estimate(found.value, found.low, found.high, "%", how, curves["series"].nunique())


def downstream_loss(r: Results) -> Estimate:
    return downstream.downstream_loss(r, small(r))


def small(r: Results) -> pd.DataFrame:
    return full(r)[full(r)["params.total"] < PAPER_SMALL]


def with_saturation(r: Results, metric: str) -> Estimate:
    # Sizes are not ranked by how fast their loss still falls, which goes with size as all else does.
    how = "rank correlation over runs of two late rises; that of the loss 0 where none is detected"
    return association(_detected(r, full(r)), _levels(r, metric, full(r)), how)


def degeneration_alone(r: Results) -> Estimate:
    runs = r.select("probe", "`train.weight_decay` == 0")
    still = [id for id, rise in _rises(r, runs).items() if rise.high < 0.5]
    how = f"late rise of singular entropy; {len(still)} of {len(runs)} runs without weight decay, whose loss stays"
    if not still:
        return Estimate(0, -np.inf, np.inf, "nats", how, 1)
    return mean_over(_levels(r, "singular_entropy", runs.loc[still]), "nats", how)


def rank_costs(r: Results) -> Estimate:
    last, how = r.last("heldout_loss", part="main"), "loss on log2 of the head's rank, a slope a width"
    return slope(np.log2(last["rank"]), last["value"], "nats a doubling", how, last["model.width"])


def knees(r: Results) -> pd.DataFrame:
    """A row a backbone: its knee with its interval, or why it has none."""
    losses, tokens = (r.rows(f"frozen_head_document_{what}", part=parts(r)) for what in ("loss", "tokens"))
    found = []
    for series, of in losses.groupby("series"):
        of_documents = tokens[tokens["series"] == series].set_index("layer")["value"]
        nats = of.pivot(index="layer", columns="index", values="value")
        row = {"series": series, "model.width": of["model.width"].iloc[0]}
        try:
            e = knee_over_documents(nats.columns, nats.to_numpy(), of_documents[nats.index])
            found.append(row | {"knee": e.value, "low": e.low, "high": e.high, "why": ""})
        except NotMeasured as why:
            found.append(row | {"knee": np.nan, "low": np.nan, "high": np.nan, "why": str(why).partition(": ")[2]})
    return pd.DataFrame(found)


def common_knee(r: Results) -> Estimate:
    heads, gains = (r.rows(f"frozen_head_{what}", part=parts(r)) for what in ("loss", "gain"))
    if (late := (gains["value"] / heads["value"].to_numpy()).max()) > 0.01:
        raise NotMeasured(f"heads trained to their end: the second half of training still gave {late:.1%}")
    found = knees(r).dropna()
    if found.empty:
        raise NotMeasured("a backbone with a knee")
    return slope(np.log(found["model.width"]), np.log(found["knee"]), "", "log of the knee on log of the width")


def _languages(r: Results, *needed: str) -> list[pd.DataFrame]:
    """Of each language, by rank: the tail of its spectrum, and what heads of that rank lose."""
    rows = r.measurements[r.measurements["series"].isin(LANGUAGES)]
    if missing := {"head_tail", *needed} - set(rows["metric"]):
        raise NotMeasured(f"{min(missing)} of the synthetic languages")
    return [of.pivot(index="index", columns="metric", values="value") for _, of in rows.groupby("series")]


def gap_follows_tail(r: Results) -> Estimate:
    gaps, slopes = ["head_gap_truncated", "head_gap_trained"], []
    for of in _languages(r, *gaps):
        points = of[of["head_tail"] > 1e-3 * of["head_tail"].max()].melt("head_tail", gaps).query("value > 1e-4")
        logs = [np.log(each[["head_tail", "value"]].T.to_numpy()) for _, each in points.groupby("metric")]
        slopes.append(np.mean([np.polyfit(*xy, 1)[0] for xy in logs]))
    return mean_over(slopes, "", "log-log slope over languages; mean of truncated and trained heads")


def gap_below_bound(r: Results) -> Estimate:
    found = [of.query("head_gap_bound > 0") for of in _languages(r, "head_gap_truncated", "head_gap_bound")]
    used = [(of["head_gap_truncated"] / of["head_gap_bound"]).max() for of in found]
    return mean_over(np.log10(used), "", "log10 of the largest share of the bound that a rank uses, over languages")


def weight_decay(r: Results) -> Estimate:
    last = r.last("singular_entropy", part="probe").set_index(["train.learning_rate", "seed"])
    by_decay = [last.loc[last["train.weight_decay"] == decay, "value"] for decay in (0.0, 0.1)]
    return contrast(*by_decay, "nats", "singular entropy without decay less that with it, at equal rate and seed")


# The experiments beside the main sweep.


def gradient_lost(r: Results) -> Estimate:
    lost, random = (r.last(f"gradient_norm_lost{of}", part="main")["value"] for of in ("", ".random"))
    return mean_over(lost, "", f"of its norm, over widths; a random subspace of that rank loses {random.mean():.4f}")


def gradient_beyond_random(r: Results) -> Estimate:
    lost, random = (
        r.last(f"gradient_norm_lost{of}", part="main").set_index("series")["value"] for of in ("", ".random")
    )
    return mean_over(lost - random, "", "lost less what a random subspace of that rank loses, over widths")


def spam(r: Results) -> Estimate:
    last, seen = (r.last(metric, part="spam") for metric in ("excess_loss", "symbols_seen"))
    if (least := seen["value"].min()) < 0.9:
        raise NotMeasured(f"runs that have seen 0.9 of the symbols; here {least:.2f}")
    how = "excess loss on log2 of V, a slope a seed"
    return slope(np.log2(last["model.vocab_size"]), last["value"], "nats a doubling", how, last["seed"])


def known_rank(r: Results, true: int) -> Estimate:
    last = r.last("excess_loss", part="known_rank")
    found = pd.Series({seed: knee(of["rank"], of["value"], 0.05) for seed, of in last.groupby("seed")})
    if found.isna().any():
        raise NotMeasured("heads of lower rank, and of higher rank than recovers the loss")
    return mean_over(np.log2(found / true), "", "log2 of the recovered rank over the true one, over seeds")


def ngram_rank(r: Results) -> Estimate:
    ranks = r.rows("ngram_rank_5", where=f"step == {max(CONTEXTS)}")["value"]
    return mean_over(np.log10(ranks), "", "log10 of the rank, over texts and vocabularies")


def _settings(r: Results) -> tuple[pd.Series, pd.Series, pd.DataFrame]:
    """Of each run of `cause` its effective rank, its loss, and its settings as columns of zeros and ones."""
    rank, loss = (r.last(metric, part="cause").set_index("series") for metric in ("effective_rank", "heldout_loss"))
    keys = ["train.weight_decay", "train.batch_size", "train.learning_rate"]
    return rank["value"], loss["value"], pd.get_dummies(loss[keys].astype(str), drop_first=True, dtype=float)


def rank_with_loss(r: Results) -> Estimate:
    rank, loss, _ = _settings(r)
    return association(rank, loss, "rank correlation of effective rank and loss over runs")


def rank_explained(r: Results) -> Estimate:
    rank, loss, settings = _settings(r)
    return explained(rank, loss, settings, "size of the raw correlation less that at equal settings; runs resampled")


def head_against_linear(r: Results, kind: str, equal: str) -> Estimate:
    """Of that kind the runs whose `params.total` or `flops` are nearest to those of the linear head."""
    last = r.last("heldout_loss", part="remedies").set_index("seed")
    linear, other = (last[last["model.head"] == head] for head in ("linear", kind))
    off = (other[equal] / linear[equal].iloc[0] - 1).abs()
    how = f"linear less {kind}, paired by seed; {equal} differ by {off.min():.1%}"
    return contrast(linear["value"], other.loc[off == off.min(), "value"], "nats", how)


def other_heads(r: Results) -> pd.DataFrame:
    """A row a head: what it costs, and its loss at the end of training, the mean over seeds and its range."""
    last = r.last("heldout_loss", part="remedies")
    by_head = last.groupby(["model.head", "model.head_rank"])
    about = by_head[["params.total", "flops"]].first()
    return about.join(by_head["value"].agg(loss="mean", low="min", high="max")).reset_index()


def rank_exponent(r: Results) -> Estimate:
    last = r.last("up.effective_rank", part="optimizer")
    of = last.groupby(["train.optimizer", "seed", "model.width"])["value"].mean().reset_index()
    fits = {key: np.polyfit(np.log(g["model.width"]), np.log(g["value"]), 1)[0]
            for key, g in of.groupby(["train.optimizer", "seed"])}  # fmt: skip
    exponents = pd.Series(fits).unstack(0)
    how = "exponent of the effective rank of `up` against width, Muon less AdamW, paired by seed"
    return contrast(exponents["muon"], exponents["adamw"], "", how)
