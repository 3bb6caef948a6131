"""The sweeps are valid, and every verdict follows what is measured: planted tables in, verdicts out."""

import dataclasses
import math

import numpy as np
import pandas as pd
import pytest

from experiments import saturation as S
from jaxsat import laws, model
from jaxsat.config import Run, checkpoint_steps, flatten
from jaxsat.study import SCALES

UNTESTABLE = "not testable at this scale"
COLUMNS = ["run", "step", "tokens", "layer", "index", "metric", "value"]


@dataclasses.dataclass
class Planted:
    """What claims read of a study."""

    runs: pd.DataFrame
    measurements: pd.DataFrame
    by_id: dict[str, Run]
    scale: str

    def plus(self, metric: str, added, runs: pd.Series | None = None) -> "Planted":
        """`added(t)` more of a metric, of the chosen runs, where t is from 0 to 1 at a run's last step."""
        chosen = self.runs.index if runs is None else self.runs.index[runs]
        m = self.measurements.copy()
        rows = m["run"].isin(chosen) & m["metric"].eq(metric)
        t = m["tokens"][rows] / m["run"][rows].map(self.runs["tokens"])
        m.loc[rows, "value"] += added(t)
        return dataclasses.replace(self, measurements=m)

    def set(self, metric: str, value, index: str = "index") -> "Planted":
        """A metric's values replaced by those of `value(run, index)`."""
        m = self.measurements.copy()
        rows = m["metric"].eq(metric)
        m.loc[rows, "value"] = [value(*key) for key in m.loc[rows, ["run", index]].itertuples(index=False)]
        return dataclasses.replace(self, measurements=m)

    def without(self, rows: pd.Series) -> "Planted":
        return dataclasses.replace(self, measurements=self.measurements[~rows])

    def only(self, runs: pd.Series) -> "Planted":
        """The same with fewer runs; what belongs to no run stays."""
        gone = set(self.runs.index[~runs])
        m = self.measurements[~self.measurements["run"].isin(gone)]
        by_id = {id: run for id, run in self.by_id.items() if id not in gone}
        return Planted(self.runs[runs], m, by_id, self.scale)

    def diverged(self, runs: pd.Series) -> "Planted":
        return dataclasses.replace(self, runs=self.runs.assign(state=self.runs["state"].mask(runs, "diverged")))


def late(height: float):
    """Nothing until 70 % of the run, then up: more than three checkpoints of every schedule here."""
    return lambda t: height * np.clip((t - 0.7) / 0.3, 0, 1)


def loss_at(n: float, tokens: float, d: int, r: int) -> float:
    """A law of N and D, E = 2, alpha = 0.3, beta = 0.5, and what a head of lower rank costs."""
    return 2 + 20 * n**-0.3 + 300 * tokens**-0.5 + 2 * (r**-0.5 - d**-0.5)


def history(run: Run) -> list[tuple]:
    """Shaped as what was measured at the laptop scale: early spikes, then nothing that rises."""
    m, full = run.model, model.count_parameters(dataclasses.replace(run.model, head_rank=None)).total
    n_tokens = run.train.steps * run.tokens_per_step
    rng = np.random.default_rng(int(run.id, 16) % 2**32)
    end, noise = loss_at(full, n_tokens, m.width, m.rank), 0.005 * (-1) ** run.seed
    start = math.log(m.vocab_size)
    rows = []
    for step in checkpoint_steps(run.train):
        t = math.log1p(step) / math.log1p(run.train.steps)
        tokens = step * run.tokens_per_step
        spike = math.exp(-((t - 0.5) ** 2) / 0.01)
        values = {
            "heldout_loss": max(end, end + (start - end) * (1 - t) ** 1.3) + noise,
            "singular_entropy": 0.2 + 0.6 * spike + 0.005 * rng.standard_normal() - 0.1 * run.train.weight_decay,
            "anisotropy_before_gain": 0.3 + 0.5 * spike + 0.003 * rng.standard_normal(),
            "anisotropy_after_gain": 0.2 + 0.7 * spike + 0.003 * rng.standard_normal(),
        }
        rows += [(run.id, step, tokens, -1, 0, metric, value) for metric, value in values.items()]
    return rows


def plant(scale: str) -> Planted:
    by_id, rows, table = {}, {}, []
    for sweep in S.sweeps(scale):
        for run in sweep.runs:
            counts = model.count_parameters(run.model)
            by_id[run.id] = run
            rows[run.id] = flatten(run) | {
                "params.total": counts.total,
                "params.nonembedding": counts.nonembedding,
                "params.head": counts.head,
                "tokens": run.train.steps * run.tokens_per_step,
                "state": "done",
                "part": sweep.name,
            }
            table += history(run)
    planted = Planted(pd.DataFrame.from_dict(rows, orient="index"), pd.DataFrame(), by_id, scale)
    for run in S._frozen_backbones(planted):
        d, steps = run.model.width, run.train.steps
        ranks = [r for r in (2, 4, 8, 12, 16, 24, 32, 48, 64, 128, 256, 512, 1024, 2048) if r <= d]
        table += [(run.id, steps, steps, -1, r, "frozen_head_loss", 3 + 2 * (1 - r / d)) for r in ranks]
    for power in S.CONTROL_POWERS:
        sigma = 1.2 * np.arange(1, 17) ** -power
        for r in S.CONTROL_RANKS:
            tail, bound = math.sqrt(sum(sigma[r:] ** 2)), 2 * 6 * sigma[r] if r < 16 else 0.0
            values = {"head_tail": tail, "head_gap_bound": bound}
            values |= {f"head_gap_{how}": 0.45 * tail**2 for how in ("truncated", "trained")}
            table += [(f"synthetic-i^-{power}", 0, 0, -1, r, metric, value) for metric, value in values.items()]
    return dataclasses.replace(planted, measurements=pd.DataFrame(table, columns=COLUMNS))


@pytest.fixture(scope="module")
def laptop() -> Planted:
    return plant("laptop")


@pytest.fixture(scope="module")
def pod() -> Planted:
    return plant("pod")


def narrow(planted: Planted) -> pd.Series:
    return planted.runs["model.width"] == planted.runs["model.width"].min()


def test_sweeps_are_of_what_they_say():
    for scale in SCALES:
        sweeps = {sweep.name: sweep.runs for sweep in S.sweeps(scale)}
        assert set(sweeps) == ({"main"} if scale == "pod" else {"main", "budget", "probe"})
        assert len({run.id for runs in sweeps.values() for run in runs}) == sum(map(len, sweeps.values()))
        assert len({run.train.steps * run.tokens_per_step for run in sweeps["main"]}) == 1, "equal tokens"
        if scale == "pod":
            totals = [model.count_parameters(run.model).total for run in sweeps["main"]]
            assert totals == [14067712, 30494720, 70426624, 162322944, 405334016, 1011781632, 1414647808]
            continue
        ranks = {}
        for run in sweeps["main"]:
            ranks.setdefault((run.model.width, run.seed), set()).add(run.model.rank)
            assert 0.384 == pytest.approx(run.train.learning_rate * run.model.width)
        assert all(max(of) == width for (width, _), of in ranks.items())
        assert all(len(of) >= 3 for (width, seed), of in ranks.items() if seed == 0 or width <= sorted(ranks)[2][0])
        assert len({width for width, _ in ranks}) == 4 and min(sum(w == d for w, _ in ranks) for d, _ in ranks) >= 2
        assert {run.train.steps for run in sweeps["budget"]} < set(range(sweeps["main"][0].train.steps))
        assert {run.model.width for run in sweeps["budget"]} == {width for width, _ in sorted(ranks)[:-1]} - {
            max(width for width, _ in ranks)
        }
        probes = {(run.train.weight_decay, run.train.learning_rate) for run in sweeps["probe"]}
        assert {run.model.head_rank for run in sweeps["probe"]} == {None} and len(probes) == 4


def test_the_docstring_counts_the_runs():
    assert f"laptop: {sum(len(sweep.runs) for sweep in S.sweeps('laptop'))} runs" in S.__doc__


# Saturation: who rises, by how much, after how many tokens.


def test_a_late_rise_of_the_small_alone_is_saturation(laptop):
    claim = S._saturation(laptop.plus("heldout_loss", late(0.1), narrow(laptop)))
    assert claim.verdict == "reproduced" and claim.command == ""
    assert claim.measured.low > 1 and "4 of the 4" in claim.reason and "0 of the 6" in claim.reason


def test_a_rise_of_every_width_is_not(laptop):
    claim = S._saturation(laptop.plus("heldout_loss", late(0.1)))
    assert claim.verdict == "not reproduced" and "6 of the 6" in claim.reason


def test_a_rise_within_seed_noise_is_none(laptop):
    assert S._saturation(laptop.plus("heldout_loss", late(0.005), narrow(laptop))).verdict == UNTESTABLE


def test_no_rise_after_few_tokens_says_nothing(laptop):
    claim = S._saturation(laptop)
    assert claim.verdict == UNTESTABLE and "21,000" in claim.reason
    assert claim.measured.value == 0 and claim.command == "jaxsat reproduce saturation --scale workstation"


def test_no_rise_after_as_many_as_pythia_is_an_answer(laptop, pod):
    many = laptop.runs.assign(**{"params.total": laptop.runs["params.total"] / 300})
    claim = S._saturation(dataclasses.replace(laptop, runs=many))
    assert claim.verdict == "not reproduced" and "21,000" not in claim.reason
    assert S._saturation(pod).verdict == "not reproduced" and S._saturation(pod).command == ""


def test_at_the_papers_sizes_small_is_what_the_paper_calls_small(pod):
    small = pod.runs["params.total"] < 4e8
    assert S._saturation(pod.plus("heldout_loss", late(0.1), small)).verdict == "reproduced"
    assert S._saturation(pod.plus("heldout_loss", late(0.1), ~small)).verdict == "not reproduced"
    assert "no two seeds" in S._saturation(pod).reason


def test_a_diverged_run_does_not_saturate(laptop):
    probe = laptop.runs["part"] == "probe"
    exploded = laptop.plus("heldout_loss", late(3.0), probe).diverged(probe)
    assert S._saturation(exploded).verdict == UNTESTABLE


# What goes with saturation: the spectrum and anisotropy.

TOGETHER = [("_spectrum_with_loss", "singular_entropy", 0.3), ("_late_anisotropy", "anisotropy_after_gain", 0.2)]


@pytest.mark.parametrize("claim, metric, height", TOGETHER)
def test_together_means_in_the_same_runs(laptop, claim, metric, height):
    claim, small = getattr(S, claim), narrow(laptop)
    saturated = laptop.plus("heldout_loss", late(0.1), small)
    both, alone, neither = saturated.plus(metric, late(height), small), laptop.plus(metric, late(height), small), laptop
    assert claim(both).verdict == "reproduced"
    assert claim(saturated).verdict == "not reproduced"
    assert claim(neither).verdict == claim(alone).verdict == UNTESTABLE
    assert "4 of the 4" in claim(alone).reason, "what moved although nothing saturated is said"
    decay = small & (laptop.runs["train.weight_decay"] == 0)
    apart = laptop.plus("heldout_loss", late(0.1), small & ~decay).plus(metric, late(height), decay)
    assert claim(apart).verdict == "not reproduced"
    everywhere = laptop.plus("heldout_loss", late(0.1), small & ~decay).plus(metric, late(height), small)
    assert claim(everywhere).verdict == "not reproduced", "it is as common where nothing saturates"


def test_degeneration_without_a_rise_of_the_loss(laptop):
    small = narrow(laptop)
    degenerate = laptop.plus("singular_entropy", late(0.3), small)
    assert S._degeneration_alone(degenerate).verdict == "reproduced"
    assert S._degeneration_alone(degenerate.plus("heldout_loss", late(0.1), small)).verdict == "not reproduced"
    assert S._degeneration_alone(laptop).verdict == UNTESTABLE


def test_a_late_rise_is_after_the_early_spike(laptop):
    small = laptop.runs[narrow(laptop) & (laptop.runs["part"] == "probe")]
    assert S._late_rise(laptop, "singular_entropy", small).max() < 0.05, "a spike of 0.6 in the first tenth is none"
    risen = laptop.plus("singular_entropy", late(0.3), narrow(laptop))
    assert S._late_rise(risen, "singular_entropy", small).between(0.28, 0.35).all()
    falling = laptop.plus("singular_entropy", lambda t: -0.5 * t)
    assert S._late_rise(falling, "singular_entropy", small).max() < 0.02


# The gap to the law of the larger models.


@pytest.fixture(scope="module")
def law(laptop) -> dict[str, laws.Fit]:
    points = S._ladder(laptop)
    hold, inputs = {"E": 2.0, "B": 300.0, "beta": 0.5}, {"N": points["params.total"], "D": points["tokens"]}
    return {"law": laws.fit(laws.chinchilla, inputs, points["loss"], hold=hold, bootstrap=40)}


@pytest.mark.parametrize("percent, verdict", [(8, "reproduced"), (0, "not reproduced"), (-8, "not reproduced")])
def test_the_gap_has_the_sign_of_what_was_planted(laptop, law, percent, verdict):
    ladder = S._ladder(laptop)
    small = ladder.index[ladder["model.width"] == 8]
    shift = percent / 100 * ladder.loc[small, "loss"].min()
    planted = laptop.plus("heldout_loss", lambda t: shift * (t > 0.5), laptop.runs.index.isin(small))
    final, best = S._gap(planted, law)
    assert (final.id, best.id) == ("gap_final", "gap_best") and final.verdict == best.verdict == verdict
    assert final.measured.value == pytest.approx(percent, abs=0.3)
    assert {8: "above zero", 0: "not exclude zero", -8: "below zero"}[percent] in final.reason


def test_the_gap_is_no_surer_than_the_law_is_of_its_floor(laptop, law):
    extremes = {"E": np.array([1.0, 3.0]), "B": np.array([300.0, 300.0]), "beta": np.array([0.5, 0.5])}
    sure, unsure = (S._gap(laptop, {"law": fit})[0].measured
                    for fit in (law["law"], dataclasses.replace(law["law"], extremes=extremes)))  # fmt: skip
    assert unsure.value == sure.value and unsure.low <= sure.low and unsure.high > sure.high + 0.5


def test_best_and_final_differ_where_the_loss_rises(laptop, law):
    final, best = S._gap(laptop.plus("heldout_loss", late(0.4), narrow(laptop)), law)
    assert final.measured.value > best.measured.value + 2


def test_no_gap_without_three_sizes(laptop, law):
    two = laptop.runs["model.width"] >= 32
    assert S._gap(laptop, {}) == S._gap(laptop.only(two), law) == S._gap(laptop.diverged(~two), law) == []


# Head rank.


def test_one_inversion_of_one_series_is_enough(laptop):
    assert S._rank_costs(laptop).verdict == "reproduced"
    assert "all 6 series" in S._rank_costs(laptop).reason
    worse = (laptop.runs["model.head_rank"] == 4) & (laptop.runs["model.width"] == 16) & (laptop.runs["seed"] == 1)
    claim = S._rank_costs(laptop.plus("heldout_loss", lambda t: 0.5 + 0 * t, worse))
    assert claim.verdict == "not reproduced" and "5 of 6 series" in claim.reason


def knee(at: dict[int, float], planted: Planted) -> Planted:
    width = planted.runs["model.width"]
    return planted.set("frozen_head_loss", lambda run, r: 3 + 0.2 * max(0.0, 1 - r / at[width[run]]))


@pytest.mark.parametrize(
    "at, verdict",
    [
        ({32: 8, 64: 8}, "reproduced"),
        ({32: 8, 64: 12}, "reproduced"),
        ({32: 8, 64: 16}, "not reproduced"),
        ({32: 24, 64: 48}, UNTESTABLE),
    ],
)
def test_a_knee_is_common_when_it_does_not_grow_with_width(laptop, at, verdict):
    claim = S._common_knee(knee(at, laptop))
    assert claim.verdict == verdict
    assert f"{at[32]} at d = 32" in claim.reason and f"{at[64]} at d = 64" in claim.reason


def test_one_width_has_no_common_knee(laptop):
    alone = knee({32: 8, 64: 8}, laptop).only(laptop.runs["model.width"] != 32)
    assert S._common_knee(alone).verdict == UNTESTABLE


# The synthetic language, and weight decay.


def gap_of(slope: float, planted: Planted) -> Planted:
    m = planted.measurements
    tail = m[m["metric"] == "head_tail"].set_index(["run", "index"])["value"]
    for how in ("truncated", "trained"):
        planted = planted.set(f"head_gap_{how}", lambda run, r: 0.45 * tail[run, r] ** slope)
    return planted


@pytest.mark.parametrize("slope, verdict", [(2, "reproduced"), (1, "not reproduced"), (2.5, "not reproduced")])
def test_the_slope_against_the_tail_is_fitted(laptop, slope, verdict):
    follows, _ = S._tail(gap_of(slope, laptop))
    assert follows.verdict == verdict and follows.measured.value == pytest.approx(slope)


def test_a_gap_above_the_bound_is_seen(laptop):
    _, below = S._tail(laptop)
    assert below.verdict == "reproduced" and "all 16" in below.reason and below.measured.value < 1
    sigma_2 = 1.2 * 2**-0.5
    gap = lambda run, r: (run, r) == ("synthetic-i^-0.5", 1) and 12.1 * sigma_2 or 1e-3 * (r < 16)
    _, above = S._tail(laptop.set("head_gap_truncated", gap))
    assert above.verdict == "not reproduced" and "15 of 16" in above.reason
    assert above.measured.value == pytest.approx(12.1 / 12)


def test_weight_decay_moves_the_spectrum_when_it_moves_it_beyond_seeds(laptop):
    assert S._weight_decay(laptop).verdict == "not reproduced"
    without = (laptop.runs["part"] == "probe") & (laptop.runs["train.weight_decay"] == 0)
    assert S._weight_decay(laptop.plus("singular_entropy", late(0.4), without)).verdict == "reproduced"
    one = without & (laptop.runs["train.learning_rate"] == 0.04)
    assert S._weight_decay(laptop.plus("singular_entropy", late(0.4), one)).verdict == "not reproduced"
    half = laptop.only((laptop.runs["part"] != "probe") | without)
    assert S._weight_decay(half) is None, "one weight decay compares with nothing"


# All of it, whatever is missing.


def claims(planted: Planted, fits: dict[str, laws.Fit]) -> dict[str, str]:
    found = S.claims(planted, fits)
    for claim in found:
        assert claim.reason[0].isupper() or claim.reason[0].isdigit() and claim.reason.endswith("."), claim.reason
        assert "nan" not in claim.reason and "nan" not in str(claim.measured), claim
        assert claim.origin != "recalled" or not claim.paper, "a number from memory is not the paper's"
        assert claim.verdict != UNTESTABLE or claim.command or planted.scale == "pod", claim
    return {claim.id: claim.verdict for claim in found}


ALL = ["saturation", "gap_final", "gap_best", "spectral_saturation", "degeneration_alone", "late_anisotropy",
       "rank_costs", "common_knee", "gap_follows_tail", "gap_below_bound", "weight_decay"]  # fmt: skip


def test_every_claim_of_a_whole_sweep(laptop, law):
    assert list(claims(laptop, law)) == ALL
    sections, found = S.report(laptop, law)
    assert [claim.id for claim in found] == ALL
    absent = {figure.name for section in sections for figure in section.figures if not figure.figure}
    assert absent == {"head_spectra"}, "no singular values are planted"


def test_what_is_missing_leaves_its_claims_out(laptop, law):
    m = laptop.measurements
    for metric, gone in {
        "singular_entropy": {"spectral_saturation", "degeneration_alone", "weight_decay"},
        "anisotropy_after_gain": {"late_anisotropy"},
        "frozen_head_loss": {"common_knee"},
        "head_gap_truncated": {"gap_follows_tail", "gap_below_bound"},
        "heldout_loss": set(ALL) - {"common_knee", "gap_follows_tail", "gap_below_bound", "weight_decay"},
    }.items():
        assert set(claims(laptop.without(m["metric"] == metric), law)) == set(ALL) - gone
    assert claims(laptop.without(m["run"] != ""), {}) == {}
    assert claims(laptop.without(m["step"] > 0), {}) == claims(
        laptop.without(~m["run"].str.startswith("synthetic")), {}
    )


def test_half_measured_runs_are_not_judged(laptop, law):
    begun = laptop.without(laptop.measurements["step"] > 300)
    assert not {"saturation", "gap_final", "rank_costs"} & set(claims(begun, {}))


def test_one_seed_and_diverged_runs_do_not_stop_the_report(laptop, pod):
    assert set(claims(laptop.only(laptop.runs["seed"] == 0), {})) == set(ALL) - {"gap_final", "gap_best"}
    wide = laptop.runs["model.width"] == 64
    exploded = laptop.plus("heldout_loss", lambda t: t * math.nan, wide).diverged(wide)
    assert set(claims(exploded, {})) == set(ALL) - {"gap_final", "gap_best"}
    assert set(claims(laptop.diverged(wide | True), {})) == {"common_knee", "gap_follows_tail", "gap_below_bound"}
    assert set(claims(pod, {})) == set(ALL) - {"gap_final", "gap_best", "rank_costs", "weight_decay"}


def test_a_law_needs_more_runs_than_constants(laptop):
    few = laptop.only(laptop.runs["part"].eq("main") & laptop.runs["seed"].eq(0))
    assert S.fits(few) == {}
    sections, _ = S.report(few.without(few.measurements["metric"] != "heldout_loss"), {})
    assert "Too few" in sections[1].text
