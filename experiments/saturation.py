"""Why do small language models stop improving? Saturation and the softmax bottleneck.

Godey, de la Clergerie and Sagot (2024), arXiv:2404.07647: small models saturate late in training, the spectrum of
their output head degenerates as they do, and a head of low rank costs loss whatever the backbone.

    jaxsat reproduce saturation                          laptop: 46 runs of width 8 to 64; 9 to 18 minutes on 2 cores
    jaxsat reproduce saturation --scale workstation      width 64 to 512, at most 4 epochs (not measured yet)
    jaxsat reproduce saturation --scale pod              the Pythia shapes on C4 (not measured yet)

Expect at the laptop scale: loss falls with every doubling of the head's rank; without weight decay the spectrum
degenerates while the loss still falls; heads on the synthetic language follow the square of the tail. Our small models
do not saturate there, and the report says what it takes; those of the paper do, in published evaluations.
"""

from functools import partial

import numpy as np
import pandas as pd

from jaxsat import laws, measure
from jaxsat.claims import Claim, Estimate, above, below, between, published
from jaxsat.claims.estimates import association, contrast, knee, late_level, late_rise, mean_over, slope
from jaxsat.claims.papers import GODEY, KULKARNI
from jaxsat.config import DataConfig, ModelConfig, Run, TrainConfig
from jaxsat.corpus import synthetic
from jaxsat.laws import HOFFMANN, Law
from jaxsat.measure import Computed, Measure, control
from jaxsat.model import PYTHIA, llama, pythia
from jaxsat.report import Chart, Section, standard
from jaxsat.results import NotMeasured, Results
from jaxsat.sweep import Sweep, chain, product, zipped

PAPER_TOKENS_PER_PARAMETER = 21_000  # of Pythia-14m, after 300 B tokens [derived]
PAPER_SMALL = 4e8  # parameters: Pythia-410m, with 405 M, is the first of the larger models
PAPER_KNEE = 1000
MOST_EPOCHS = 4  # beyond it a rise of the held-out loss may be over-fitting
MISFIT = 0.003  # of a run about its law: two seeds of the laptop scale differ by 0.24 % (median), a deviation of 0.25 %
FULL = "rank == `model.width`"
LANGUAGES = {f"spectrum i^-{power}": power for power in (0.5, 1.0, 1.5)}
CONTROL_RANKS = (1, 2, 3, 4, 6, 8, 12, 16)


def sweeps(scale: str) -> list[Sweep]:
    """`main`: width x head rank x seed, equal tokens; `budget`: shorter runs, for the law's D axis; `probe`: what
    weight decay does to the spectrum of a full head."""
    match scale:
        case "laptop":
            model = ModelConfig(vocab_size=1024, context=64)
            train = TrainConfig(steps=1500, batch_size=16, warmup_steps=30, schedule="linear", final_lr=0.0)
            base, widths, seeds = Run(model, train), (8, 16, 32, 64), (0, 1)
            repeated = widths[:2]  # second seeds of all ranks at 32 and 64 too: a minute more, the same verdicts
            ranks = {8: (2, 4, 8), 16: (2, 4, 8, 16), 32: (2, 4, 8, 16, 32), 64: (4, 8, 16, 32, 64)}
            budgets, probe = (375, 750), dict(steps=7500, rates=(0.04, 0.12))
        case "workstation":  # 3.1 epochs of 5.3 M tokens; the probe 3.7
            model = llama(depth=4, vocab_size=8192, context=256)
            train = TrainConfig(steps=1000, batch_size=64, warmup_steps=50, schedule="linear", final_lr=0.0)
            base = Run(model, train, DataConfig(("bible_web", "bible_basic", "docs")))
            widths, seeds = (64, 128, 256, 512), (0, 1, 2)
            repeated = widths
            ranks = {d: tuple(2**i for i in range(3, 10) if 2**i <= d) for d in widths}
            budgets, probe = (250, 500), dict(steps=1200, rates=(0.006, 0.02))
        case "pod":
            return [_pythia_sweep()]
    shapes = {
        d: {"model.width": [d], "model.heads": [max(1, d // 16)], "train.learning_rate": [0.384 / d]} for d in widths
    }
    full = [product(shapes[d], {"model.head_rank": [d], "seed": seeds}) for d in widths]
    seeds_of = {d: seeds if d in repeated else seeds[:1] for d in widths}
    lower = [product(shapes[d], {"model.head_rank": ranks[d][:-1], "seed": seeds_of[d]}) for d in widths]
    shorter = [product(points, {"train.steps": budgets}) for points in full[:-1]]
    smallest = product(
        shapes[widths[0]],
        {"model.head_rank": [None], "train.steps": [probe["steps"]], "train.schedule": ["cosine"]},
        {"train.final_lr": [0.1], "train.weight_decay": [0.0, 0.1], "train.learning_rate": probe["rates"]},
        {"train.checkpoint_every": [probe["steps"] // 24], "seed": [0, 1]},
    )
    return [
        Sweep("main", base, chain(*lower, *full)),
        Sweep("budget", base, chain(*shorter)),
        Sweep("probe", base, smallest),
    ]


def _pythia_sweep() -> Sweep:
    """The Pythia shapes and recipe (Biderman et al. 2023): 143 000 steps of 1024 rows of 2048 tokens, here of C4."""
    rates = {"14m": 1e-3, "31m": 1e-3, "70m": 1e-3, "160m": 6e-4, "410m": 3e-4, "1b": 3e-4, "1.4b": 2e-4}
    train = TrainConfig(steps=143_000, batch_size=1024, warmup_steps=1430, checkpoint_every=1000)
    base = Run(pythia("14m", compute_dtype="bfloat16"), train, DataConfig(("c4/en",)))
    sizes = {"model.depth": 0, "model.width": 1, "model.heads": 2}
    axes = {key: [PYTHIA[size][i] for size in rates] for key, i in sizes.items()}
    return Sweep("main", base, zipped(axes | {"train.learning_rate": list(rates.values())}))


def measures(scale: str) -> list[Measure]:
    """The standard ones, and heads of every rank on frozen backbones: the two widest, and all twice the knee."""
    full = [run for run in sweeps(scale)[0].runs if run.model.rank == run.model.width and run.seed == 0]
    least = min(2 * PAPER_KNEE, sorted(run.model.width for run in full)[-2])
    return [*measure.standard(), measure.frozen_heads(runs=lambda run: run in full and run.model.width >= least)]


def computed(scale: str) -> list[Computed]:
    """Languages softmax(W phi) with a W of rank 16 and a chosen spectrum: the theorem's premises hold exactly."""
    heads = lambda power: control(synthetic.world(512, 16, power, logit_sd=1.5, seed=0), CONTROL_RANKS)
    return published.lambada() + [Computed(name, partial(heads, power)) for name, power in LANGUAGES.items()]


def _ends(r: Results, params: str = "params.total") -> pd.DataFrame:
    """Last losses of full-rank runs, of every token budget: the points of a law."""
    last = r.last("heldout_loss", part=[part for part in ("main", "budget") if part in r.parts], where=FULL)
    return last.rename(columns={params: "N", "tokens": "D", "value": "loss"})


# Seeds and budgets of a width share its misfit, which three widths cannot tell: that of the laptop's ladder is 0.95 %.
_rung = partial(Law, groups="model.width", misfit=0.01, held_out="N")
LAWS = {
    "L(N, D), total parameters": _rung(_ends),
    "L(N, D), non-embedding": _rung(partial(_ends, params="params.nonembedding")),
    "A and alpha of the larger models": Law(
        lambda r: _ends(r).query(f"N >= {PAPER_SMALL}"), hold=HOFFMANN, misfit=MISFIT
    ),
}


# What the claims need, of the runs alone.

_full = lambda r: r.select("main", FULL)
_probe_needs = lambda r: "" if "probe" in r.parts else "runs with and without weight decay"
_rank_needs = lambda r: "" if r.count("rank < `model.width`", "main") else "runs of several head ranks"


def _law_needs(r: Results) -> str:
    sizes = _full(r)["params.total"]
    n = sizes[sizes >= PAPER_SMALL].nunique()
    return "" if n >= 3 else f"three sizes of {PAPER_SMALL:.0e} parameters or more, and smaller ones; there are {n}"


def _saturation_needs(r: Results) -> str:
    runs = _full(r)
    least = PAPER_TOKENS_PER_PARAMETER
    if (most := (runs["tokens"] / runs["params.total"]).max()) < least:
        return f"{least:,} tokens a parameter, as Pythia-14m saw; the smallest here sees {most:,.0f}"
    if (epochs := runs["epochs"].max()) > MOST_EPOCHS:
        return f"at most {MOST_EPOCHS} epochs, as a rise may be over-fitting; here {epochs:.0f}"
    return _law_needs(r)


def _knee_needs(r: Results) -> str:
    n = r.count(f"{FULL} and `model.width` >= {2 * PAPER_KNEE} and seed == 0", "main")
    return "" if n >= 3 else f"three backbones of width {2 * PAPER_KNEE} or more, twice the paper's knee; there are {n}"


def _rises(r: Results, runs: pd.DataFrame) -> dict[str, Estimate]:
    """The late rise of the loss of each run, per cent, over the held-out documents."""
    return {id: late_rise(nats.to_numpy(), nats.index) for id, nats in r.curves("document_loss", runs).items()}


def _levels(r: Results, metric: str, runs: pd.DataFrame) -> pd.Series:
    """The late rise of another metric of each run."""
    return pd.Series({id: late_level(c.iloc[:, 0], c.index) for id, c in r.curves(metric, runs).items()})


def saturation(r: Results) -> Estimate:
    runs = _full(r)
    rises = pd.Series({id: rise.value for id, rise in _rises(r, runs).items()})
    small = (runs["params.total"] < PAPER_SMALL).reindex(rises.index)
    how = "late rise of small models less twice that of the larger, which counts as 0 where they fall"
    return contrast(rises[small], 2 * rises[~small].clip(lower=0), "%", how)


def gap(r: Results, at: str) -> Estimate:
    rows = r.rows("heldout_loss", part="main", where=FULL).sort_values("tokens")
    names = {"params.total": "N", "tokens": "D", "value": "loss"}
    curves = rows[rows["tokens"] > 0].rename(columns=names)[["series", *names.values()]]
    # The best checkpoint is that of the least neighbours: the least of many noisy losses is too low.
    neighbours = [curves.groupby("series")["loss"].shift(by) for by in (1, -1)]
    curves["chosen_by"] = pd.concat(neighbours, axis=1).mean(axis=1)
    found = getattr(laws.gaps(curves, PAPER_SMALL, hold=HOFFMANN, misfit=MISFIT), at)
    how = f"mean over the small models, {at} checkpoint; E, B, beta held, misfit of a run {100 * MISFIT:g} %"
    return Estimate(found.value, found.low, found.high, "%", how, curves["series"].nunique())


def with_saturation(r: Results, metric: str) -> Estimate:
    runs = _full(r)
    # Without the zeros sizes would be ranked by how fast their loss still falls, which goes with size as all else does.
    rises = pd.Series({id: rise.value if rise.low > 0 else 0.0 for id, rise in _rises(r, runs).items()})
    return association(rises, _levels(r, metric, runs), "rank correlation over runs of two late rises; 0 for none")


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


def common_knee(r: Results) -> Estimate:
    heads, gains = (r.rows(f"frozen_head_{what}", part="main") for what in ("loss", "gain"))
    if (late := (gains["value"] / heads["value"].to_numpy()).max()) > 0.01:
        raise NotMeasured(f"heads trained to their end: the second half of training still gave {late:.1%}")
    knees = pd.Series({d: knee(of["index"], of["value"]) for d, of in heads.groupby("model.width")}).dropna()
    return slope(np.log(knees.index), np.log(knees.to_numpy()), "", "log of the knee on log of the width")


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


SMALL, LATE = "small models (below 4e8 parameters)", "the last tenth of the tokens against the least earlier level"
CLAIMS = [
    Claim("saturation", f"Late in training the loss of {SMALL} goes up, by more than twice what that of larger ones "
          f"does: {LATE}, at 21,000 tokens a parameter or more and at most 4 epochs.",
          GODEY, "models up to 410M", "secondary", saturation, above(0), _saturation_needs),
    Claim("published_rise", f"Of the Pythia suite, {SMALL} end with a worse perplexity on LAMBADA than their best, and "
          "larger ones do not or by less. The perplexities are those that EleutherAI has published; none is ours.",
          GODEY, "160m: 24.6, then 32.9", "secondary", partial(published.lambada_rise, small=PAPER_SMALL), above(0)),
    Claim("gap_final", f"The final checkpoints of {SMALL} are worse than a law fitted to the larger ones, with E, B "
          "and beta of Hoffmann et al.; at the paper's scale by 8 %, give or take 5.",
          GODEY, "8 % worse on average", "secondary", partial(gap, at="final"), above(0), _law_needs, between(3, 13)),
    Claim("gap_best", "So are their best checkpoints; at the paper's scale by 4 %, give or take 4.",
          GODEY, "about 4 % worse", "secondary", partial(gap, at="best"), above(0), _law_needs, between(0, 8)),
    Claim("spectral_saturation", "The head's singular values degenerate as small models saturate: over all sizes the "
          f"rises of singular entropy and loss ({LATE}) have a rank correlation above 0, size not controlled.",
          GODEY, "", "secondary", partial(with_saturation, metric="singular_entropy"), above(0), _saturation_needs),
    Claim("late_anisotropy", "Last-layer anisotropy (after the final gain) rises as saturation sets in: over all sizes "
          f"its rise and that of the loss ({LATE}) have a rank correlation above 0, size not controlled.",
          GODEY, "", "secondary", partial(with_saturation, metric="anisotropy_after_gain"), above(0),
          _saturation_needs),
    Claim("rank_costs", "A head of low rank costs loss, whatever the width of the backbone: more than 0.01 nats for "
          "each halving of its rank.", GODEY, "below rank 1000", "secondary", rank_costs, below(-0.01), _rank_needs),
    Claim("common_knee", "On frozen backbones the loss is worse below a rank that does not depend on their width: the "
          "rank within 1 % of the full head grows with a power of the width between -0.5 and 0.5, where the second "
          "half of the heads' training gave at most 1 %.",
          GODEY, "about 1000", "secondary", common_knee, between(-0.5, 0.5), _knee_needs),
    Claim("degeneration_alone", "A head's spectrum can degenerate without a rise of the loss: without weight decay "
          f"singular entropy rises by more than 0.1 nats ({LATE}) where the loss rises by less than 0.5 %.",
          KULKARNI, "", "secondary", degeneration_alone, above(0.1), _probe_needs, kind="follow-up"),
    Claim("weight_decay", "Weight decay drives the effective rank of the head: without it the spectrum ends more "
          "degenerate by more than 0.1 nats of singular entropy, at equal rate and seed. (The sign is ours.)",
          KULKARNI, "", "secondary", weight_decay, above(0.1), _probe_needs, kind="follow-up"),
    Claim("gap_follows_tail", "The loss gap of a rank-limited head falls with the square of the tail of the ideal "
          "head's spectrum: a log-log slope of 2, give or take 0.15, over tails above 1e-3 of the largest and gaps "
          "above 1e-4 nats.",
          GODEY, "slope 2; 1 at least", "derived", gap_follows_tail, between(1.85, 2.15), kind="check"),
    Claim("gap_below_bound", "The gap of the truncated head stays below 2 R sigma_(r+1), with R the largest feature "
          "norm: log10 of their ratio is below 0.",
          GODEY, "at every rank", "derived", gap_below_bound, below(0), kind="check"),
]  # fmt: skip
SECTIONS = [
    standard.loss("main"),
    standard.lambada(),
    standard.scaling(LAWS),
    standard.head("main"),
    Section(
        "What moves the spectrum",
        Chart(["singular_entropy", "heldout_loss"], colour="train.weight_decay", dash="train.learning_rate",
              part="probe", name="weight_decay_probe", caption="By weight decay and learning rate."),
        text="The smallest width with a full head, trained five times longer, with and without weight decay.",
    ),
    standard.representations("main"),
    Section(
        "A language whose answer is known",
        Chart([("head_gap_truncated", "head_gap_trained")], x="head_tail", colour="series", dash="metric", log="xy",
              slope=2, name="synthetic_control", where=f"series in {list(LANGUAGES)}",
              caption="Loss above the language's entropy against the tail of the spectrum that a head leaves."),
        text="Next-token distributions softmax(W phi) with a W of rank 16 and chosen spectrum: the only place where "
        "the premises of the theorem hold exactly.",
    ),
]  # fmt: skip
