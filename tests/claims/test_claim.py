import json
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxsat.claims import (
    VERDICTS,
    Claim,
    Estimate,
    Judged,
    Paper,
    Region,
    above,
    below,
    between,
    headline,
    judge,
    mean_over,
    tally,
    to_json,
    verdict,
)
from jaxsat.config import InputError
from jaxsat.results import NotMeasured, Results

HERE = Paper("here2024", "Here & There", 2024, "On small things", "arXiv:0000.00001")
LATER = Paper("later2026", "Later et al.", 2026, "On large things", "arXiv:0000.00002")
NONE = Results("laptop", pd.DataFrame(), pd.DataFrame())


@st.composite
def estimates(draw: st.DrawFn, least: int = 1) -> Estimate:
    value = draw(st.floats(-10, 10))
    low, high = (value + s * draw(st.one_of(st.floats(0, 5), st.just(math.inf))) for s in (-1, 1))
    return Estimate(value, low, high, "%", "a rise", draw(st.integers(least, 9)))


@st.composite
def regions(draw: st.DrawFn) -> Region:
    a, b = sorted(draw(st.lists(st.floats(-10, 10), min_size=2, max_size=2, unique=True)))
    return draw(st.sampled_from([above(a), below(a), between(a, b)]))


def estimate(low: float, high: float, n: int = 3) -> Estimate:
    value = 0.0 if math.isinf(low) and math.isinf(high) else high if math.isinf(low) else low
    return Estimate(value, low, high, "%", "a rise", n)


def claim(id: str = "rise", paper: Paper = HERE, **fields) -> Claim:
    known = dict(says="It rises.", number="4 %", origin="secondary", estimate=lambda r: estimate(1, 2), holds=above(0))
    return Claim(id=id, paper=paper, **(known | fields))


def judged(verdict: str, paper: Paper = HERE, kind: str = "paper") -> Judged:
    return Judged(claim(paper=paper, kind=kind), verdict, above(0))


@pytest.mark.parametrize(
    "low, high, n, region, expected",
    [
        (1, 2, 3, above(0), "reproduced"),
        (-2, -1, 3, above(0), "not reproduced"),
        (-12, 4, 9, above(0), "undecided"),  # finding D1
        (0, 2, 3, above(0), "undecided"),  # the bound itself is no part of the region
        (0, 0, 3, above(0), "not reproduced"),
        (1, 2, 2, above(0), "undecided"),  # two units decide nothing
        (-2, -1, 2, above(0), "undecided"),
        (-math.inf, math.inf, 9, above(0), "undecided"),
        (1, math.inf, 9, above(0), "reproduced"),
        (-math.inf, -1, 9, below(0), "reproduced"),
        (-math.inf, -1, 9, above(0), "not reproduced"),
        (5, 7, 3, between(4, 12), "reproduced"),
        (2, 7, 3, between(4, 12), "undecided"),
        (2, 13, 3, between(4, 12), "undecided"),
        (13, 20, 3, between(4, 12), "not reproduced"),
    ],
)
def test_verdict(low: float, high: float, n: int, region: Region, expected: str):
    assert verdict(estimate(low, high, n), region) == expected


@given(estimates(), regions(), st.floats(0, 3), st.floats(0, 3))
def test_a_wider_interval_decides_no_more(found: Estimate, region: Region, below: float, above: float):
    wider = Estimate(found.value, found.low - below, found.high + above, found.unit, found.how, found.n)
    assert verdict(wider, region) in {verdict(found, region), "undecided"}


@given(estimates(), regions())
def test_fewer_than_three_units_decide_nothing(found: Estimate, region: Region):
    if found.n < 3:
        assert verdict(found, region) == "undecided"


@given(estimates(least=3), st.floats(-10, 10))
def test_above_and_below_are_opposites(found: Estimate, bound: float):
    opposite = {"reproduced": "not reproduced", "not reproduced": "reproduced", "undecided": "undecided"}
    there, back = verdict(found, above(bound)), verdict(found, below(bound))
    assert back == opposite[there] or bound in (found.low, found.high)


@given(estimates(least=3), regions())
def test_what_is_reproduced_lies_in_the_region(found: Estimate, region: Region):
    match verdict(found, region):
        case "reproduced":
            assert region.low < found.value < region.high
        case "not reproduced":
            assert not region.low < found.value < region.high


@pytest.mark.parametrize(
    "value, low, high, n",
    [(3, 0, 2, 3), (math.nan, 0, 2, 3), (1, math.nan, 2, 3), (math.inf, 0, math.inf, 3), (1, 0, 2, 0)],
)
def test_an_estimate_that_is_none(value: float, low: float, high: float, n: int):
    with pytest.raises(InputError, match="^a rise: "):
        Estimate(value, low, high, "%", "a rise", n)


@pytest.mark.parametrize("low, high", [(-math.inf, math.inf), (1, 1), (2, 1), (math.nan, 1), (0, math.nan)])
def test_a_region_that_asserts_nothing(low: float, high: float):
    with pytest.raises(InputError, match="from a number up to a greater one"):
        Region(low, high)


def test_regions_in_words():
    assert [str(r) for r in (above(0), below(-0.5), between(4, 12))] == ["above 0", "below -0.5", "between 4 and 12"]


def test_needs_come_first():
    """What cannot be tested is not estimated: nothing has been measured when it is asked before training."""

    def never(results: Results) -> Estimate:
        raise AssertionError("asked for an estimate")

    found = judge(claim(needs=lambda r: "three widths; there are two", estimate=never), NONE)
    assert (found.verdict, found.needs) == ("not testable at this scale", "three widths; there are two")
    assert found.estimate is None


def test_what_is_missing_is_not_measured():
    def missing(results: Results) -> Estimate:
        raise NotMeasured("heldout_loss of main")

    found = judge(claim(estimate=missing), NONE)
    assert (found.verdict, found.needs, found.estimate) == ("not measured", "heldout_loss of main", None)
    assert judge(claim(estimate=lambda r: mean_over([], "%", "rises")), NONE).needs == "rises"


def test_the_papers_number_counts_at_its_own_scale():
    eight = claim(at_pod=between(4, 12), estimate=lambda r: estimate(1, 3))
    assert judge(eight, NONE).verdict == "reproduced"
    at_pod = judge(eight, Results("pod", pd.DataFrame(), pd.DataFrame()))
    assert at_pod.verdict == "not reproduced" and at_pod.region == between(4, 12)
    without = judge(claim(), Results("pod", pd.DataFrame(), pd.DataFrame()))
    assert without.region == above(0) and without.verdict == "reproduced"


def test_a_claims_error_names_the_claim():
    with pytest.raises(InputError, match="^claim 'rise': 'width < 64'"):
        judge(claim(estimate=lambda r: r.select(where="width < 64")), NONE)
    with pytest.raises(InputError, match="^claim 'rise': its estimate must be an Estimate with an interval, not 4.0"):
        judge(claim(estimate=lambda r: 4.0), NONE)


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"origin": "secondhand"}, "unknown origin of claim 'rise' 'secondhand'; did you mean 'secondary'"),
        ({"kind": "chek"}, "unknown kind of claim 'rise' 'chek'; did you mean 'check'"),
    ],
)
def test_a_claim_of_unknown_origin_or_kind(fields: dict[str, str], message: str):
    with pytest.raises(InputError, match=message):
        claim(**fields)


def test_counts_are_by_paper_and_checks_are_not_counted():
    found = tally([
        judged("reproduced"), judged("undecided"), judged("reproduced", LATER, "follow-up"),
        judged("reproduced", kind="check"), judged("not measured"),
    ])  # fmt: skip
    assert {paper.id: [counts[v] for v in VERDICTS] for paper, counts in found.items()} == {
        "here2024": [1, 0, 1, 0, 1],
        "later2026": [1, 0, 0, 0, 0],
    }
    assert tally([judged("reproduced", kind="check")]) == {}


@pytest.mark.parametrize(
    "verdicts, expected",
    [
        (["reproduced"], "1 of 1 claim reproduced."),
        (["not reproduced", "reproduced"], "1 of 2 claims reproduced, 1 not reproduced."),
        (["not testable at this scale"], "1 claim not testable at this scale."),
        (["not testable at this scale"] * 4, "4 claims not testable at this scale."),
        (
            ["reproduced"] * 5 + ["not reproduced"] * 2 + ["not testable at this scale"] * 4,
            "5 of 7 claims reproduced, 2 not reproduced; 4 not testable at this scale.",
        ),
        (list(VERDICTS), "1 of 4 claims reproduced, 1 not reproduced, 1 undecided, 1 not measured; 1 not testable at "
         "this scale."),
    ],
)  # fmt: skip
def test_headline(verdicts: list[str], expected: str):
    assert headline([judged(v) for v in verdicts]) == [f"Here & There (2024), arXiv:0000.00001: {expected}"]


def test_a_headline_has_a_sentence_a_paper():
    both = headline([judged("reproduced"), judged("undecided", LATER, "follow-up"), judged("reproduced", kind="check")])
    assert both == [
        "Here & There (2024), arXiv:0000.00001: 1 of 1 claim reproduced.",
        "Later et al. (2026), arXiv:0000.00002: 0 of 1 claim reproduced, 1 undecided.",
    ]
    assert headline([]) == headline([judged("reproduced", kind="check")]) == ["No paper's claim is examined."]


@given(st.lists(st.tuples(st.sampled_from(VERDICTS), st.sampled_from([HERE, LATER])), max_size=12))
def test_a_headline_counts_every_claim_once(drawn: list[tuple[str, Paper]]):
    for sentence, counts in zip(headline([judged(v, p) for v, p in drawn]), tally([judged(v, p) for v, p in drawn])):
        said = sentence.removeprefix(f"{counts}: ")
        tested = sum(v != "not testable at this scale" for v, p in drawn if p == counts)
        assert said.split(" ")[2 if tested else 0] == str(tested or sum(p == counts for _, p in drawn))


def test_claims_as_json():
    """Numbers of numpy, an end without a bound, and a claim without an estimate."""
    found = Estimate(np.float64(4.5), np.float64(1.25), np.inf, "%", "a rise", np.int64(5))
    rise, wide = (
        judge(claim(estimate=lambda r: found), NONE),
        judge(claim("wide", needs=lambda r: "three widths"), NONE),
    )
    assert json.loads(to_json([rise, wide])) == [
        {
            "id": "rise", "paper": "Here & There (2024), arXiv:0000.00001", "kind": "paper", "says": "It rises.",
            "number": "4 %", "origin": "secondary", "verdict": "reproduced", "region": "above 0",
            "estimate": {"value": 4.5, "low": 1.25, "high": None, "unit": "%", "how": "a rise", "n": 5}, "needs": "",
        },
        {
            "id": "wide", "paper": "Here & There (2024), arXiv:0000.00001", "kind": "paper", "says": "It rises.",
            "number": "4 %", "origin": "secondary", "verdict": "not testable at this scale", "region": "above 0",
            "estimate": None, "needs": "three widths",
        },
    ]  # fmt: skip


def ranks_of(widths: tuple[int, ...]) -> Results:
    """Losses that fall by .3 nats a doubling of the rank, give or take a little by width; one seed."""
    runs = pd.DataFrame([
        {"model.width": d, "model.depth": 2, "model.vocab_size": 512, "model.head_rank": r, "seed": 0, "train.steps": 9,
         "state": "done"}
        for d in widths for r in (2, 4, 8)
    ])  # fmt: skip
    runs.index = [f"run{i}" for i in range(len(runs))]
    loss = 5 - (0.3 + runs["model.width"] / 1000) * np.log2(runs["model.head_rank"])
    rows = {"series": runs.index, "step": 9, "tokens": 900, "layer": -1, "index": -1, "metric": "heldout_loss"}
    return Results("laptop", runs, pd.DataFrame(rows | {"value": loss.to_numpy()}), {"main": tuple(runs.index)})


def test_the_pages_own_claim():
    page = (Path(__file__).parents[2] / "docs" / "verdicts.md").read_text()
    names: dict[str, object] = {}
    exec(page.split("```python\n")[1].split("```")[0], names)
    (rank_gains,) = names["CLAIMS"]
    found = judge(rank_gains, ranks_of((16, 32, 64)))
    assert found.verdict == "reproduced" and found.estimate.n == 3
    assert found.estimate.value == pytest.approx(-0.3 - 0.112 / 3)
    few = judge(rank_gains, ranks_of((16, 32)))
    assert (few.verdict, few.needs) == ("not testable at this scale", "three widths; there are 2")
