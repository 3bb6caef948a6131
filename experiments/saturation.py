"""Why do small language models stop improving? Saturation and the softmax bottleneck.

Godey, de la Clergerie and Sagot (2024), arXiv:2404.07647: small models saturate late in training, the spectrum of
their output head degenerates as they do, and a head of low rank costs loss whatever the backbone.

    jaxsat reproduce saturation                          laptop: 42 runs of width 8 to 64; 5 minutes on 2 cores
    jaxsat reproduce saturation --scale workstation      width 64 to 512; about an hour on one GPU (not measured yet)
    jaxsat reproduce saturation --scale pod              the Pythia shapes on C4 (not measured yet)

Expect at the laptop scale: loss falls with every doubling of the head's rank; no width saturates; without weight decay
the spectrum degenerates while the loss still falls; heads on the synthetic language follow the square of the tail.
Every verdict is computed from the measurements.
"""

from collections.abc import Iterator

import numpy as np
import pandas as pd

from jaxsat import corpus, laws
from jaxsat.config import DataConfig, ModelConfig, Run, TrainConfig
from jaxsat.corpus import synthetic
from jaxsat.measure import control, lipschitz_bound, measure_frozen_heads, table
from jaxsat.model import PYTHIA, llama, pythia
from jaxsat.report import Claim, Figure, Measured, Section, Table, figures, standard, tables
from jaxsat.study import Study
from jaxsat.sweep import Sweep, chain, product, zipped

CONTROL_RANKS = (1, 2, 3, 4, 6, 8, 12, 16)
CONTROL_POWERS = (0.5, 1.5)
# Pythia-14m saw 300 B tokens: the tokens a parameter at which the paper sees saturation [derived].
PAPER_TOKENS_PER_PARAMETER = 21_000
PAPER_SMALL = 4e8  # parameters: Pythia-410m, with 405 M, is the first of the larger models
SEED_NOISE = 0.35  # per cent of the loss: median difference of two seeds at the laptop scale, 12 pairs
DEGENERATE = 0.1  # nats of singular entropy
ANISOTROPIC = 0.05  # of a mean cosine
HELD = ("E", "B", "beta")
COUNTS = {"L(N, D), total parameters": "params.total", "L(N, D), non-embedding": "params.nonembedding"}


def sweeps(scale: str) -> list[Sweep]:
    """`main`: width x head rank x seed, equal tokens; `budget`: shorter runs, for the law's D axis; `probe`: what
    weight decay does to the spectrum of a full head."""
    match scale:
        case "laptop":
            model = ModelConfig(vocab_size=1024, context=64)
            train = TrainConfig(steps=1500, batch_size=16, warmup_steps=30, schedule="linear", final_lr=0.0)
            base, widths, seeds = Run(model, train), (8, 16, 32, 64), (0, 1)
            repeated = widths[:2]  # second seeds of all ranks at 32 and 64 too: 5.4 minutes, not 4.4; same verdicts
            ranks = {8: (2, 4, 8), 16: (2, 4, 8, 16), 32: (2, 4, 8, 16, 32), 64: (4, 8, 16, 32, 64)}
            budgets, probe = (375, 750), dict(steps=7500, rates=(0.04, 0.12))
        case "workstation":
            model = llama(depth=4, vocab_size=8192, context=256)
            train = TrainConfig(steps=6000, batch_size=64, warmup_steps=100, schedule="linear", final_lr=0.0)
            base = Run(model, train, DataConfig(("bible_web", "bible_basic", "docs")))
            widths, seeds = (64, 128, 256, 512), (0, 1, 2)
            repeated = widths
            ranks = {d: tuple(2**i for i in range(3, 10) if 2**i <= d) for d in widths}
            budgets, probe = (1500, 3000), dict(steps=30_000, rates=(0.006, 0.02))
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
        {"train.checkpoint_every": [probe["steps"] // 12]},
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


def measure(study: Study) -> Iterator[pd.DataFrame]:
    """Heads of every rank on the frozen backbones of the two widest full-rank models, and the synthetic control."""
    known = set(zip(study.measurements["run"], study.measurements["metric"]))
    for run in _frozen_backbones(study):
        if (run.id, "frozen_head_loss") not in known:
            c, d = study.corpus(run), run.model.width
            rows = min(len(c.train_RxT1), 500_000 // run.model.context)
            ranks = [r for r in (2, 4, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 1024, 2048) if r <= d]
            sample = corpus.batch_at(c, run.seed, 0, rows)
            yield measure_frozen_heads(run, study.params(run)[1], sample, c.heldout_MxT1, ranks)
    for power in CONTROL_POWERS:
        name = f"synthetic-i^-{power}"
        if (name, "head_tail") not in known:
            world = synthetic.world(512, 16, power, logit_sd=1.5, seed=0)
            sigma = np.linalg.svd(world.w_VxR, compute_uv=False)
            radius = float(np.linalg.norm(world.phi_CxR, axis=1).max())
            bound = [lipschitz_bound(sigma, r, radius) for r in CONTROL_RANKS]
            bounds = table.rows(name, 0, 0, "head_gap_bound", bound, index=CONTROL_RANKS)
            yield pd.concat([control(name, world, CONTROL_RANKS), bounds])


def _frozen_backbones(study: Study) -> list[Run]:
    runs = study.runs
    full = [study.by_id[id] for id in _full(runs[runs["state"] == "done"]).index]
    widest = sorted({run.model.width for run in full})[-2:]
    return [next(run for run in full if run.model.width == d) for d in widest]


def _full(runs: pd.DataFrame) -> pd.DataFrame:
    """The runs of the main part whose head has the largest rank of their width."""
    main = runs[runs["part"] == "main"]
    rank = pd.to_numeric(main["model.head_rank"]).fillna(np.inf)
    return main[rank == rank.groupby(main["model.width"]).transform("max")]


def _ladder(study: Study) -> pd.DataFrame:
    """Final losses of all full-rank runs, of every token budget: the points of the law."""
    runs = study.runs
    chosen = pd.concat([_full(runs), runs[runs["part"] == "budget"]])
    points = tables.final_losses(study.measurements, chosen)
    return points[points["state"] == "done"]


def fits(study: Study) -> dict[str, laws.Fit]:
    """L(N, D) on all full-rank runs but the widest, once for each way to count N."""
    points = _ladder(study)
    seen = points[points["model.width"] < points["model.width"].max()]
    out = {}
    for name, column in COUNTS.items():
        inputs = {"N": seen[column].to_numpy(), "D": seen["tokens"].to_numpy()}
        if len(seen) > len(laws.chinchilla.constants):
            out[name] = laws.fit(laws.chinchilla, inputs, seen["loss"].to_numpy())
    return out


def report(study: Study, fits: dict[str, laws.Fit]) -> tuple[list[Section], list[Claim]]:
    m, runs = study.measurements, study.runs
    main, probe = runs[runs["part"] == "main"], runs[runs["part"] == "probe"]
    sections = [
        standard.loss(m, main),
        _law_section(study, fits),
        standard.head(m, main),
        Section(
            "What moves the spectrum",
            "The smallest width with a full head, trained five times longer, with and without weight decay.",
            [
                Figure(
                    "weight_decay_probe",
                    "Singular entropy and loss by weight decay and learning rate.",
                    figures.weight_decay_probe(m, probe),
                )
            ],
        ),
        standard.representations(m, main),
        Section(
            "A language whose answer is known",
            "Next-token distributions softmax(W phi) with a W of rank 16 and chosen spectrum: the only place where the "
            "premises of the theorem hold exactly.",
            [
                Figure(
                    "synthetic_control",
                    "Loss above the language's entropy against the tail of the spectrum that a head of rank r leaves.",
                    figures.synthetic_control(m),
                    m[m["run"].str.startswith("synthetic")],
                )
            ],
        ),
    ]
    return sections, claims(study, fits)


def _law_section(study: Study, fits: dict[str, laws.Fit]) -> Section:
    points = _ladder(study)
    if points.empty or not fits:
        return Section("Scaling law", "Too few finished full-rank runs for a law.")
    name, fit = next(iter(fits.items()))
    widest = points.index[points["model.width"] == points["model.width"].max()]
    params = {name: COUNTS.get(name, "params.total") for name in fits}
    residuals = {name: tables.gaps(each, points, widest, params[name]) for name, each in fits.items()}
    first = residuals[name]
    seen, held = first[first["in_fit"]], first[~first["in_fit"]]
    text = (
        f"{fit.form.formula}, fitted to the last checkpoints of {fit.rows} runs; the widest is held out: its error is "
        f"{held['gap_percent'].mean():+.2f} % and {int(held['inside'].sum())} of {len(held)} runs lie inside the "
        f"interval. Root mean square residual {np.sqrt((seen['gap_percent'] ** 2).mean()):.2f} %. Intervals are 90 %, "
        "by a bootstrap over runs widened to what the data do not reject. "
        + (f"The data do not identify {', '.join(fit.unidentified)}." if fit.unidentified else "")
    )
    return Section(
        "Scaling law",
        text,
        [
            Figure(
                f"law_{i}" if i else "law",
                f"{name}: the law, its 90 % band, and the gap of each of {each.rows} runs and those held out.",
                figures.law(each, points, widest, params[name]),
                residuals[name],
            )
            for i, (name, each) in enumerate(fits.items())
        ],
        [
            Table("law_constants", "Constants with 90 % intervals.", tables.constants(fits)),
            Table(
                "law_fits",
                "How well each law fits, and tells the widest models, which are held out: root mean square errors, and "
                "how many of them lie in the 90 % interval of a new loss.",
                tables.quality(fits, residuals),
            ),
            Table("law_residuals", "Every point of the first law, and the held-out widest models.", first),
        ],
    )


# Claims. Each is computed from the two tables, of runs that were trained and measured to their end, and is None (or
# left out) where its measurements are not there.


def claims(study: Study, fits: dict[str, laws.Fit]) -> list[Claim]:
    found = [
        _saturation(study),
        *_gap(study, fits),
        _spectrum_with_loss(study),
        _degeneration_alone(study),
        _late_anisotropy(study),
        _rank_costs(study),
        _common_knee(study),
        *_tail(study),
        _weight_decay(study),
    ]
    return [claim for claim in found if claim]


def _last(study: Study, *parts: str) -> pd.DataFrame:
    """Final losses of the finished runs of some parts."""
    runs = study.runs[study.runs["part"].isin(parts)]
    last = tables.final_losses(study.measurements, runs)
    return last[(last["state"] == "done") & (last["tokens"] == runs["tokens"].reindex(last.index))]


def _small(study: Study) -> set[int]:
    """Widths of the small models: those below Pythia-410m where at least three sizes are above, else the smallest."""
    sizes = _full(study.runs).groupby("params.total")["model.width"].first()
    below = sizes[sizes.index < PAPER_SMALL]
    return set(below) if len(sizes) - len(below) >= 3 else {sizes.min()}


def _longest(study: Study) -> pd.DataFrame:
    """The small models' runs of the most tokens: late in training is where the paper looks."""
    small = _last(study, "main", "probe")
    small = small[small["model.width"].isin(_small(study))]
    return small[small["tokens"] == small["tokens"].max()]


def _noise(study: Study) -> tuple[float, str]:
    """What a rise of the loss must exceed to be one, in per cent, and where that comes from."""
    seeds = _last(study, "main").groupby(["model.depth", "model.width", "rank"])["loss"]
    ranges = (100 * (seeds.max() - seeds.min()) / seeds.mean())[seeds.size() > 1]
    if ranges.empty:
        return SEED_NOISE, f"{SEED_NOISE} %, the laptop scale's seed noise as there are no two seeds here"
    return float(ranges.median()), f"{ranges.median():.2f} %, the median difference of two seeds"


def _late_rise(study: Study, metric: str, runs: pd.DataFrame) -> pd.Series:
    """Of each run: the metric at the last checkpoint less its minimum after the spike of early training, where it
    peaks in the first tenth of the run."""
    rows = tables.joined(study.measurements, study.runs.loc[runs.index], metric)
    rises = {}
    for run, curve in rows.sort_values("step").groupby("run", sort=False):
        early = curve.loc[curve["step"] <= curve["step"].max() / 10, "value"]
        after = curve.loc[early.idxmax() :, "value"]
        rises[run] = after.iloc[-1] - after.min()
    return pd.Series(rises, dtype=float)


def _over_runs(values: pd.Series, unit: str, text: str) -> Measured:
    """The mean and the range over runs of several settings, which are no seeds of one."""
    if len(values) == 1:
        return Measured(values.iloc[0], unit=unit, text=f"{text}; one run")
    return Measured(values.mean(), values.min(), values.max(), unit, f"{text}; range over {len(values)} runs")


def _saturation(study: Study) -> Claim | None:
    small, (noise, origin) = _longest(study), _noise(study)
    if small.empty:
        return None
    main = _last(study, "main")
    large = main[main["model.width"] == study.runs["model.width"].max()]
    risen, too = ((runs["rise_percent"] > noise).sum() for runs in (small, large))
    ratio = (small["tokens"] / small["params.total"]).max()
    starved = ratio < PAPER_TOKENS_PER_PARAMETER
    why = (
        f"{risen} of the {len(small)} longest runs of small models, and {too} of the {len(large)} widest, end above "
        f"their own minimum by more than seed noise ({origin})."
    )
    if risen > len(small) / 2:
        verdict = "reproduced" if too <= len(large) / 2 else "not reproduced"
    elif starved:
        verdict = "not testable at this scale"
        why += f" The small saw {ratio:,.0f} tokens a parameter, Pythia-14m {PAPER_TOKENS_PER_PARAMETER:,}."
    else:
        verdict = "not reproduced"
    rise = _over_runs(small["rise_percent"], "%", "rise above the run's own minimum, small models")
    statement = "Late in training the loss of small models goes up, and that of large ones does not."
    return Claim("saturation", statement, "models up to 410M", "secondary", rise, verdict, why, _beyond(study, verdict))


def _gap(study: Study, fits: dict[str, laws.Fit]) -> list[Claim]:
    """The gap of small models to the law of the larger ones: A and alpha fitted to those, E, B and beta held at the
    whole ladder's, and at those with the least and the largest loss of an endless N that the data admit."""
    points, small = _ladder(study), _small(study)
    longest = points[(points["part"] == "main") & (points["tokens"] == points["tokens"].max())]
    larger = longest.loc[~longest["model.width"].isin(small), "params.total"]
    if not fits or larger.nunique() < 2 or len(larger) < 3 or len(larger) == len(longest):
        return []
    curves = tables.joined(study.measurements, study.runs.loc[longest.index], "heldout_loss")
    curves = curves[curves["tokens"] > 0].rename(columns={"params.total": "N", "tokens": "D", "value": "loss"})
    fit = next(iter(fits.values()))
    floors = fit.extremes["E"] + fit.extremes["B"] * longest["tokens"].max() ** -fit.extremes["beta"]
    ends = (floors.argmin(), floors.argmax()) if floors.size else ()
    held = [{name: fit.constants[name].value for name in HELD}]
    held += [{name: fit.extremes[name][i] for name in HELD} for i in ends]
    found = [laws.gaps(curves[["run", "N", "D", "loss"]], larger.min(), hold=hold) for hold in held]
    claims = []
    for at, paper in (("final", "8 % worse on average"), ("best", "about 4 % worse")):
        gap, *others = (getattr(each, at) for each in found)
        low, high = min([gap.low, *(o.value for o in others)]), max([gap.high, *(o.value for o in others)])
        verdict = "reproduced" if low > 0 else "not reproduced"
        where = "lies above zero" if low > 0 else "lies below zero" if high < 0 else "does not exclude zero"
        why = (
            f"The 90 % interval of the gap {where}. A and alpha are fitted to the {len(larger)} larger runs; E, B and "
            "beta are the law's, and the interval also spans the least and the largest floor that the data admit."
        )
        measured = Measured(gap.value, low, high, "%", f"gap to the law at the {at} checkpoint, small models")
        statement = f"The {at} checkpoints of small models are worse than a law fitted to larger ones."
        command = _beyond(study, verdict)
        claims.append(Claim(f"gap_{at}", statement, paper, "secondary", measured, verdict, why, command))
    return claims


def _with_saturation(
    study: Study, id: str, statement: str, metric: str, least: float, unit: str, what: str
) -> Claim | None:
    """Whether `metric` rises late, by more than `least`, in the runs whose loss does, and not in the others."""
    small, (noise, _) = _longest(study), _noise(study)
    rise = _late_rise(study, metric, small)
    if rise.empty:
        return None
    moved, saturated = rise > least, small["rise_percent"].reindex(rise.index) > noise
    both, n = (moved & saturated).sum(), saturated.sum()
    if n:
        verdict = "reproduced" if both > n / 2 and (moved == saturated).mean() > 0.5 else "not reproduced"
        why = (
            f"{what} rises late by more than {least} {unit}in {both} of the {n} longest runs of small models that "
            f"saturate, and in {(moved & ~saturated).sum()} of the {len(rise) - n} that do not."
        )
    else:
        verdict = "not testable at this scale"
        why = (
            f"{what} rises late by more than {least} {unit}in {moved.sum()} of the {len(rise)} longest runs of small "
            "models, but none of them saturates."
        )
    measured = _over_runs(rise, unit.strip(), f"late rise of {what[0].lower()}{what[1:]}, small models")
    return Claim(id, statement, "", "secondary", measured, verdict, why, _beyond(study, verdict))


def _spectrum_with_loss(study: Study) -> Claim | None:
    statement = "The head's singular values degenerate as small models saturate."
    return _with_saturation(
        study, "spectral_saturation", statement, "singular_entropy", DEGENERATE, "nats ", "Singular entropy"
    )


def _degeneration_alone(study: Study) -> Claim | None:
    small, (noise, _) = _longest(study), _noise(study)
    rise = _late_rise(study, "singular_entropy", small)
    if rise.empty:
        return None
    degenerate = rise > DEGENERATE
    alone = degenerate & (small["rise_percent"].reindex(rise.index) <= noise)
    verdict = "reproduced" if alone.any() else "not reproduced" if degenerate.any() else "not testable at this scale"
    why = (
        f"Singular entropy rises late by more than {DEGENERATE} nats in {degenerate.sum()} of the {len(rise)} longest "
        "runs of small models"
    )
    why += f"; in {alone.sum()} of these the loss does not rise beyond seed noise." if degenerate.any() else "."
    measured = _over_runs(rise, "nats", "late rise of singular entropy, small models")
    statement = "A head's spectrum can degenerate without a rise of the loss (Kulkarni et al. 2026)."
    return Claim("degeneration_alone", statement, "", "secondary", measured, verdict, why, _beyond(study, verdict))


def _late_anisotropy(study: Study) -> Claim | None:
    statement = "Last-layer anisotropy rises in small models as saturation sets in."
    metric, what = "anisotropy_after_gain", "Last-layer anisotropy"
    return _with_saturation(study, "late_anisotropy", statement, metric, ANISOTROPIC, "", what)


def _rank_costs(study: Study) -> Claim | None:
    series = _last(study, "main").sort_values("rank").groupby(["model.depth", "model.width", "seed"])["loss"]
    series = [losses.to_numpy() for _, losses in series if len(losses) > 1]
    if not series:
        return None
    cost = np.array([losses[0] - losses[-1] for losses in series])
    worst = max(np.diff(losses).max() for losses in series)
    falls = sum(bool((np.diff(losses) < 0).all()) for losses in series)
    verdict = "reproduced" if falls == len(series) else "not reproduced"
    many = f"all {len(series)}" if falls == len(series) else f"{falls} of {len(series)}"
    why = f"The loss falls with every step up in rank in {many} series (a width and a seed)"
    why += "." if worst < 0 else f"; it rises by {worst:.3f} nats at most."
    text = "loss at the least rank above that at the largest; range over widths and seeds"
    measured = Measured(cost.mean(), cost.min(), cost.max(), "nats", text)
    statement = "A head of low rank costs loss, whatever the width of the backbone."
    return Claim("rank_costs", statement, "below rank 1000", "secondary", measured, verdict, why)


def _common_knee(study: Study) -> Claim | None:
    """Knee: the least rank within 1 % of the retrained full head."""
    heads = tables.joined(study.measurements, study.runs, "frozen_head_loss")
    if heads.empty:
        return None
    knees = {}
    for width, curve in heads.groupby("model.width"):
        full = curve.loc[curve["index"].idxmax(), "value"]
        knees[width] = int(curve.loc[curve["value"] <= 1.01 * full, "index"].min())
    width, knee = max(knees.items())
    why = "Within 1 % of the retrained full head from rank " + ", ".join(f"{r} at d = {d}" for d, r in knees.items())
    if len(knees) == 1:
        verdict, why = "not testable at this scale", f"{why}; one width has nothing in common."
    elif knee >= width / 2:
        verdict, why = "not testable at this scale", f"{why}: the width's own limit, not the text's."
    else:
        common = max(knees.values()) <= 1.5 * min(knees.values())
        verdict, why = "reproduced" if common else "not reproduced", f"{why}."
    measured = Measured(knee, min(knees.values()), max(knees.values()), "", "knee of the widest; range over widths")
    statement = "On a frozen backbone the loss is worse below a rank that does not depend on its width."
    return Claim("common_knee", statement, "about 1000", "secondary", measured, verdict, why, _beyond(study, verdict))


def _tail(study: Study) -> list[Claim]:
    rows = study.measurements[study.measurements["run"].str.startswith("synthetic")]
    wide = rows.pivot_table(index=["run", "index"], columns="metric", values="value")
    gap, tail, bound = "head_gap_truncated", "head_tail", "head_gap_bound"
    if not {gap, "head_gap_trained", tail, bound} <= set(wide.columns):
        return []
    slopes = []
    for _, world in wide.groupby("run"):
        for metric in (gap, "head_gap_trained"):
            seen = world[(world[tail] > 1e-3 * world[tail].max()) & (world[metric] > 1e-4)]
            slopes.append(np.polyfit(np.log(seen[tail]), np.log(seen[metric]), 1)[0])
    least, most = min(slopes), max(slopes)
    square = 1.85 <= least and most <= 2.15
    under = int((wide[gap] <= wide[bound] + 1e-5).sum())
    share = (wide[gap] / wide[bound])[wide[bound] > 0].max()
    many = f"all {len(wide)}" if under == len(wide) else f"{under} of {len(wide)}"
    return [
        Claim(
            "gap_follows_tail",
            "The loss gap of a rank-limited head falls with the square of the tail of the ideal head's spectrum.",
            "slope 2; 1 at least", "derived",
            Measured(np.mean(slopes), least, most, "", "log-log slope; range over two spectra, truncated and trained"),
            "reproduced" if square else "not reproduced",
            f"The {len(slopes)} slopes lie between {least:.2f} and {most:.2f}; within 0.15 of 2 is the square.",
        ),
        Claim(
            "gap_below_bound",
            "The gap of the truncated head stays below 2 R sigma_(r+1), with R the largest feature norm.",
            "at every rank", "derived", Measured(share, unit="of the bound", text="largest share of the bound used"),
            "reproduced" if under == len(wide) else "not reproduced",
            f"It does at {many} ranks and spectra.",
        ),
    ]  # fmt: skip


def _weight_decay(study: Study) -> Claim | None:
    """Of the probe: its runs differ in weight decay and learning rate alone."""
    rows = tables.joined(study.measurements, study.runs[study.runs["state"] == "done"], "singular_entropy")
    ends = rows[rows["step"] == rows["train.steps"]]
    probe = ends[ends["part"] == "probe"]
    by_decay = probe.pivot_table(index="train.learning_rate", columns="train.weight_decay", values="value").dropna()
    if len(by_decay.columns) < 2 or by_decay.empty:
        return None
    more = by_decay.iloc[:, 0] - by_decay.iloc[:, -1]
    moved = int((more.abs() > DEGENERATE).sum())
    verdict = "reproduced" if moved == len(more) else "not reproduced"
    why = (
        f"At {moved} of {len(more)} learning rates weight decay moves the last singular entropy by more than "
        f"{DEGENERATE} nats, and at {(more > 0).sum()} the spectrum ends more degenerate without it. One seed."
    )
    measured = _over_runs(more, "nats", "singular entropy without decay less that with it")
    statement = "Weight decay drives the effective rank of the head (Kulkarni et al. 2026)."
    return Claim("weight_decay", statement, "", "secondary", measured, verdict, why)


def _beyond(study: Study, verdict: str) -> str:
    """The command of the next larger scale, for a claim that this one did not reproduce."""
    larger = {"laptop": "workstation", "workstation": "pod"}.get(study.scale)
    return f"jaxsat reproduce saturation --scale {larger}" if larger and verdict != "reproduced" else ""
