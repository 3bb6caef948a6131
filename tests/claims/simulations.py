"""How often each estimator's verdict is wrong: planted data with and without the effect, at the sizes and noises of the
scales. `python -m tests.claims.simulations` prints the table of docs/verdicts.md.

Noise as measured at the laptop scale: two seeds differ by .014 nats, .35 % of the loss (median); checkpoints of one run
jitter by .1 to .2 %. Assumed: documents differ by 10 % in loss, by 1 % in how it moves, and by 1 % at each checkpoint.
"""

import dataclasses
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np
import pandas as pd
from etils import epath

from jaxsat import experiment, laws
from jaxsat.claims import (
    Claim,
    Estimate,
    Region,
    above,
    association,
    below,
    between,
    contrast,
    explained,
    knee,
    late_level,
    late_rise,
    mean_over,
    share,
    slope,
    verdict,
)
from jaxsat.config import Run, checkpoint_steps
from jaxsat.directory import Directory, runs_table
from jaxsat.results import Results

DOCUMENTS = 50
POD = np.array([0, *2 ** np.arange(10), *range(1000, 143_001, 1000)], float)  # steps of 154 checkpoints
LAPTOP = np.array([0, *2 ** np.arange(9), *range(312, 7500, 312), 7500], float)  # of the probe's 35


@dataclass(frozen=True)
class Setting:
    """`draw(rng, truth)` makes data whose truth is planted and estimates it; the claim `region` is false of `null` and
    true of `effect`."""

    estimator: str
    data: str
    region: Region
    null: float
    effect: float
    draw: Callable[[np.random.Generator, float], Estimate]
    cost: int = 1  # its draws are fewer by this

    def shares(self, truth: float, repeats: int) -> Counter[str]:
        """Verdict -> share of `repeats` draws, fewer where they are costly."""
        rng = np.random.default_rng([SETTINGS.index(self), int(truth == self.effect)])
        verdicts = Counter(verdict(self.draw(rng, truth), self.region) for _ in range(repeats // self.cost))
        return Counter({name: n / verdicts.total() for name, n in verdicts.items()})


def jitter(rng: np.random.Generator, n: int, correlation: float = 0.0) -> np.ndarray:
    """Standard normal, of neighbours with that correlation."""
    values = rng.standard_normal(n)
    for i in range(1, n):
        values[i] = correlation * values[i - 1] + np.sqrt(1 - correlation**2) * values[i]
    return values


def curve(steps_C: np.ndarray, rise: float, falls: float = 0.0) -> np.ndarray:
    """1 after a steep start; `falls` above that for a power law that still falls; `rise` more from the middle on, which
    ends before the last tenth, as the paper's curves do."""
    x_C = np.maximum(steps_C / steps_C[-1], 1e-4)
    return 1 + np.exp(-60 * x_C) + falls * (x_C**-0.5 - 1) + rise * np.clip((x_C - 0.5) / 0.35, 0, 1)


def nats(
    rng: np.random.Generator,
    steps_C: np.ndarray,
    percent: float,
    *,
    noise: float = 0.2,
    correlation: float = 0.0,
    falls: float = 0.0,
    spikes: float = 0.0,
) -> np.ndarray:
    """Loss of each document at each checkpoint: a curve that rises by `percent`, jitter (per cent) that all documents
    share, spikes of 1 % at that share of checkpoints, and documents that differ, wander, and are noisy."""
    n, m = len(steps_C), DOCUMENTS
    shared_C = curve(steps_C, percent / 100, falls) + noise / 100 * jitter(rng, n, correlation)
    shared_C += 0.01 * (rng.random(n) < spikes)
    wander_CxM = 0.01 / np.sqrt(n) * rng.standard_normal((n, m)).cumsum(axis=0)
    own_CxM = 0.1 * rng.standard_normal((1, m)) + wander_CxM + 0.01 * rng.standard_normal((n, m))
    return 3.0 * (shared_C[:, None] + own_CxM)


def rise(steps_C: np.ndarray, **options: float):
    return lambda rng, percent: late_rise(nats(rng, steps_C, percent, **options), steps_C)


def rises(steps_C: np.ndarray, runs: int, spread: float = 0.5):
    """Of several runs, which rise by `percent` give or take that share of it."""

    def draw(rng: np.random.Generator, percent: float) -> Estimate:
        each = percent * (1 + spread * rng.standard_normal(runs))
        return mean_over([late_rise(nats(rng, steps_C, p), steps_C).value for p in each], "%", "late rise")

    return draw


def entropies(steps_C: np.ndarray, runs: int):
    """Singular entropy: it spikes, settles at .2 nats, and rises by `end` give or take a half; it jitters by .02."""

    def draw(rng: np.random.Generator, end: float) -> Estimate:
        ends = end * (1 + 0.5 * rng.standard_normal(runs))
        values = [0.2 * curve(steps_C, e / 0.2) + 0.02 * jitter(rng, len(steps_C)) for e in ends]
        return mean_over([late_level(v, steps_C) for v in values], "nats", "late rise")

    return draw


# The rules of experiments/saturation.py, over its own runs and their checkpoints.
Plant = Callable[[np.random.Generator, float, pd.Series], tuple[np.ndarray, np.ndarray]]


@cache
def planned(scale: str) -> tuple[Results, dict[str, Run], dict[str, Claim]]:
    """Results without measurements, runs and claims."""
    e = experiment.load("saturation", scale)
    runs = runs_table(Directory(epath.Path("nowhere"), runs=e.runs), e.parts)
    return Results(scale, runs, pd.DataFrame(), e.parts), e.runs, {claim.id: claim for claim in e.claims}


def claim(id: str, scale: str, plant: Plant, part: str = "main", where: str = "", **options: float):
    """The estimate of a claim. plant(rng, truth, parameters of each run): the late rises of their losses (per cent) and
    of their singular entropies (nats). options: of `nats`."""

    def draw(rng: np.random.Generator, truth: float) -> Estimate:
        results, runs, claims = planned(scale)
        frames = []
        sizes = results.select(part, where)["params.total"]
        for series, percent, end in zip(sizes.index, *plant(rng, truth, sizes)):
            steps_C = np.array(checkpoint_steps(runs[series].train))
            entropy_C = 0.2 * curve(steps_C, end / 0.2) + 0.02 * jitter(rng, len(steps_C))
            metrics = {
                "document_loss": nats(rng, steps_C, percent, **options),
                "singular_entropy": entropy_C[:, None],
            }
            metrics["heldout_loss"] = metrics["document_loss"].mean(axis=1, keepdims=True)
            for metric, values_CxM in metrics.items():
                m, fixed = values_CxM.shape[1], {"series": series, "layer": -1, "metric": metric}
                columns = {"tokens": steps_C.repeat(m), "index": np.tile(range(m), len(steps_C))}
                frames.append(pd.DataFrame(fixed | columns | {"value": values_CxM.ravel()}))
        return claims[id].estimate(dataclasses.replace(results, measurements=pd.concat(frames, ignore_index=True)))

    return draw


def about(rng: np.random.Generator, mean: np.ndarray, spread: float = 0.5) -> np.ndarray:
    """Runs differ by that share of what they do."""
    return mean * (1 + spread * rng.standard_normal(len(mean)))


def of_size(small: bool) -> Plant:
    """The losses of small models, or of larger ones, rise; those of the others fall by 1 %."""

    def plant(rng: np.random.Generator, percent: float, sizes: pd.Series) -> tuple[np.ndarray, np.ndarray]:
        return about(rng, np.where((sizes < 4e8) == small, percent, -1)), np.zeros(len(sizes))

    return plant


def settings(rng: np.random.Generator, of_settings: float) -> Estimate:
    """Two numbers of 54 runs at 3 x 3 x 3 settings, together run by run (0), or by settings alone (1)."""
    levels_54x3 = np.indices((3, 3, 3, 2)).reshape(4, -1)[:3].T
    driven = rng.standard_normal((3, 3))[range(3), levels_54x3].sum(axis=1)
    shared, own = (1 - of_settings) * rng.standard_normal(54), rng.standard_normal((2, 54))
    x, y = of_settings * driven + shared + own * (0.5 + 0.5 * of_settings)
    controls = pd.get_dummies(pd.DataFrame(levels_54x3.astype(str)), drop_first=True, dtype=float)
    return explained(pd.Series(x), pd.Series(y), controls, "simulated")


def hits(n: int):
    return lambda rng, share_of: share(rng.random(n) < share_of, "simulated")


def in_step(rng: np.random.Generator, share: float, sizes: pd.Series) -> tuple[np.ndarray, np.ndarray]:
    """The losses of the small rise by 4 %; entropy rises with them (1), or as much in runs of any size (0)."""
    rises = about(rng, 4.0 * (sizes < 4e8).to_numpy())
    return rises, 0.075 * (rises if share else rng.permutation(rises))


def entropy_first(rng: np.random.Generator, percent: float, sizes: pd.Series) -> tuple[np.ndarray, np.ndarray]:
    """The entropies of the small rise by .3 nats, and their losses by `percent` in step."""
    ends = about(rng, 0.3 * (sizes < 4e8).to_numpy())
    return ends / 0.3 * percent, ends


def degenerating(percent: float | None = None, end: float | None = None) -> Plant:
    """Losses rise by `percent`, and entropies by `end` nats give or take a quarter: what is None is planted."""

    def plant(rng: np.random.Generator, truth: float, sizes: pd.Series) -> tuple[np.ndarray, np.ndarray]:
        means = [np.full(len(sizes), truth if mean is None else mean) for mean in (percent, end)]
        return means[0], about(rng, means[1], 0.25)

    return plant


def correlated(runs: int):
    def draw(rng: np.random.Generator, rho: float) -> Estimate:
        x, other = rng.standard_normal((2, runs))
        return association(x, rho * x + np.sqrt(1 - rho**2) * other, "x with y")

    return draw


def confounded(runs: int):
    """Both follow the learning rate and the weight decay, as in Kulkarni et al. (2026), besides what is planted."""

    def draw(rng: np.random.Generator, rho: float) -> Estimate:
        settings = pd.DataFrame(rng.integers(0, 3, (runs, 2)), columns=["rate", "decay"])
        x, other = rng.standard_normal((2, runs))
        common = 1.2 * settings.sum(axis=1).to_numpy()
        y = rho * x + np.sqrt(1 - rho**2) * other
        return association(common + x, common + y, "x with y", settings)

    return draw


def paired(pairs: int, noise: float):
    def draw(rng: np.random.Generator, truth: float) -> Estimate:
        a, b = (pd.Series(noise / np.sqrt(2) * rng.standard_normal(pairs)) for _ in range(2))
        return contrast(a + truth, b, "nats", "a less b")

    return draw


def small_and_large(small: int, large: int):
    """Late rises (per cent) of the small, which differ, and of the large, which do not rise."""

    def draw(rng: np.random.Generator, percent: float) -> Estimate:
        a = percent + (0.15 + 0.4 * percent) * rng.standard_normal(small)
        b = 0.15 * rng.standard_normal(large)
        index = [f"large-{i}" for i in range(large)]
        return contrast(pd.Series(a), pd.Series(b, index), "%", "small less large")

    return draw


def ranks(widths: int, seeds: int, noise: float):
    """Losses of heads of rank 4 to 64: `each` nats a doubling, to which every width adds its own, .02 or a quarter. The
    seeds of a width share that, so the width is the group."""

    def draw(rng: np.random.Generator, each: float) -> Estimate:
        own_W = (0.02 + abs(each) / 4) * rng.standard_normal(widths)
        width, _, x = (i.ravel() for i in np.meshgrid(range(widths), range(seeds), np.arange(2.0, 7.0), indexing="ij"))
        loss = 3 + (each + own_W[width]) * x + noise * rng.standard_normal(len(x))
        return slope(x, loss, "nats", "loss a doubling of the rank", width)

    return draw


def knees(widths: tuple[int, ...], common: float):
    """Knees of frozen backbones by width: at `common`, or at half the width; `power` of the width between them. The
    losses have noise of .1 %."""

    def draw(rng: np.random.Generator, power: float) -> Estimate:
        found = []
        for width in widths:
            true = common * (width / (2 * common)) ** power
            grid = 2.0 ** np.arange(1, np.log2(width) + 1)
            losses = 3 * (1 + 0.01 * (grid / true) ** -1.5 + 0.001 * rng.standard_normal(len(grid)))
            found.append(knee(grid, losses))
        return slope(np.log2(widths), np.log2(found), "", "knee by width, in doublings")

    return draw


def gap(when: str, noise: float = 0.003):
    """The Pythia sizes on the law of Godey et al. (2024), but the small ones above it: by `percent` at the checkpoint
    `when`, which is twice as much at the end ("final") as at the best."""
    sizes = np.array([14067712, 30494720, 70426624, 162322944, 405334016, 1011781632, 1414647808], float)

    def draw(rng: np.random.Generator, percent: float) -> Estimate:
        x_C = np.arange(1, 16) / 15
        above_C = percent / (200 if when == "final" else 100) * (1 + np.clip((x_C - 0.4) / 0.4, 0, 1))
        curves = []
        for i, n in enumerate(sizes):
            law_C = 1.69 + 119.09 * n**-0.246 + 410.7 * (3e11 * x_C) ** -0.28
            loss_C = law_C * (1 + above_C * (i < 4) + noise * rng.standard_normal())
            one_C, other_C = loss_C * (1 + 0.001 * rng.standard_normal((2, len(x_C))))
            rows = {"series": f"run{i}", "N": n, "D": 3e11 * x_C, "loss": one_C, "chosen_by": other_C}
            curves.append(pd.DataFrame(rows))
        found = getattr(laws.gaps(pd.concat(curves), fitted_from=4e8, misfit=noise, bootstrap=300), when)
        return Estimate(found.value, found.low, found.high, "%", "gap to the law", 4)

    return draw


PROBE = "probe", "`train.weight_decay` == 0"
SETTINGS = (
    Setting("late_rise", "laptop: one run, 35 checkpoints, jitter .1 %", above(0), 0, 4, rise(LAPTOP, noise=0.1)),
    Setting("late_rise", "laptop: jitter .15 %", above(0), 0, 4, rise(LAPTOP, noise=0.15)),
    Setting("late_rise", "laptop: jitter .2 %", above(0), 0, 4, rise(LAPTOP)),
    Setting("late_rise", "laptop: jitter .2 %, a rise of 1 %", above(0), 0, 1, rise(LAPTOP)),
    Setting("late_rise", "laptop: jitter of neighbours correlated by .5", above(0), 0, 4,
            rise(LAPTOP, correlation=0.5)),
    Setting("late_rise", "laptop: still falling", above(0), 0, 8, rise(LAPTOP, falls=0.03)),
    Setting("late_rise", "pod: one run, 154 checkpoints, jitter .2 %", above(0), 0, 4, rise(POD)),
    Setting("late_rise", "pod: a rise of 1 %", above(0), 0, 1, rise(POD)),
    Setting("late_rise", "pod: jitter of neighbours correlated by .8", above(0), 0, 4, rise(POD, correlation=0.8)),
    Setting("late_rise", "pod: spikes of 1 % at 5 % of checkpoints", above(0), 0, 4, rise(POD, spikes=0.05)),
    Setting("late_rise", "pod: still falling", above(0), 0, 8, rise(POD, falls=0.03)),
    Setting("mean_over late_rise", "laptop: 4 runs, rises differ by a half", above(0), 0, 4, rises(LAPTOP, 4)),
    Setting("mean_over late_rise", "pod: 4 small runs, rises differ by a half", above(0), 0, 4, rises(POD, 4)),
    Setting("mean_over late_level", "laptop: 4 runs, jitter .02 nats", above(0), 0, 0.4, entropies(LAPTOP, 4)),
    Setting("mean_over late_level", "pod: 4 runs, jitter .02 nats", above(0), 0, 0.4, entropies(POD, 4)),
    Setting("contrast, Welch", "pod: rises of 4 small and 3 large runs", above(0), 0, 4, small_and_large(4, 3)),
    Setting("contrast, paired", "laptop: weight decay, 4 pairs that differ by .1", above(0), 0, 0.3, paired(4, 0.1)),
    Setting("contrast, paired", "workstation: 6 pairs", above(0), 0, 0.3, paired(6, 0.1)),
    Setting("association", "pod: 7 runs", above(0), 0, 0.9, correlated(7)),
    Setting("association", "laptop: 20 runs", above(0), 0, 0.7, correlated(20)),
    Setting("association, controlled", "laptop: 20 runs, confounded", above(0), 0, 0.7, confounded(20)),
    Setting("association, controlled", "108 runs, confounded", above(0), 0, 0.7, confounded(108)),
    Setting("slope, groups", "laptop: 4 widths of 3 seeds", below(0), 0, -0.3, ranks(4, 3, 0.015)),
    Setting("slope, groups", "pod: 7 widths of one seed", below(0), 0, -0.3, ranks(7, 1, 0.015)),
    Setting("slope of knees", "workstation: 4 widths, 64 to 512", between(-0.5, 0.5), 1, 0,
            knees((64, 128, 256, 512), 16)),
    Setting("slope of knees", "pod: 3 widths, 1024 to 4096", between(-0.5, 0.5), 1, 0, knees((1024, 2048, 4096), 400)),
    Setting("gaps, final", "pod: 4 small runs, 3 large, seeds .3 %", above(0), 0, 8, gap("final"), cost=10),
    Setting("gaps, final", "pod: the paper's 8 % give or take 5", between(3, 13), 0, 8, gap("final"), cost=10),
    Setting("gaps, best", "pod: 4 small runs, 3 large, seeds .3 %", above(0), 0, 4, gap("best"), cost=10),
    Setting("gaps, best", "pod: the paper's 4 % give or take 4", between(0, 8), 0, 4, gap("best"), cost=10),
    Setting("explained", "54 runs at 27 settings", above(0), 0, 1, settings, cost=5),
    Setting("share", "4 runs", above(0.5), 0.5, 0.95, hits(4)),
    Setting("share", "3 runs, which all do, but one in ten", below(0.5), 0.9, 0.05, hits(3)),
    Setting("claim saturation", "pod: 4 small runs rise, 3 large fall by 1 %", above(0.5), 0, 4,
            claim("saturation", "pod", of_size(small=True)), cost=5),
    Setting("claim larger_do_not", "pod: 3 large rise, 4 small fall by 1 %", below(0.5), 4, 0,
            claim("larger_do_not", "pod", of_size(small=False)), cost=5),
    Setting("claim spectral_saturation", "pod: losses of 4 rise, entropies of any 4 or in step", above(0), 0, 1,
            claim("spectral_saturation", "pod", in_step), cost=5),
    Setting("claim spectral_saturation", "pod: entropies of 4 rise, losses of none or in step", above(0), 0, 4,
            claim("spectral_saturation", "pod", entropy_first), cost=5),
    Setting("claim degeneration_alone", "laptop: 4 runs, losses still fall", above(0.1), 0.1, 0.4,
            claim("degeneration_alone", "laptop", degenerating(percent=0), *PROBE, noise=0.15, falls=0.03), cost=5),
    Setting("claim degeneration_alone", "laptop: entropies rise by .4, losses by .5 % or stay", above(0.1), 0.5, 0,
            claim("degeneration_alone", "laptop", degenerating(end=0.4), *PROBE, noise=0.15), cost=5),
)  # fmt: skip


def table(repeats: int = 1000) -> str:
    """In Markdown: shares in per cent."""
    lines = [
        "| estimator | data | asserts | null | reproduced | undecided | effect | not reproduced | undecided |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for each in SETTINGS:
        none, some = (each.shares(truth, repeats) for truth in (each.null, each.effect))
        cells = [each.estimator, each.data, str(each.region), f"{each.null:g}", none["reproduced"], none["undecided"]]
        cells += [f"{each.effect:g}", some["not reproduced"], some["undecided"]]
        lines.append("| " + " | ".join(c if isinstance(c, str) else f"{100 * c:.1f}" for c in cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(table())
