from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from jaxsat.laws.law import Law
from jaxsat.report import Chart, Section, standard
from jaxsat.report.figures import RAMP
from jaxsat.results import NotMeasured, Results


def item(section: Section, name: str):
    return next(i for i in section.items if i.name == name)


def data(section: Section, name: str, results: Results) -> pd.DataFrame:
    return item(section, name).data(results)


def mean(results: Results, metric: str, rule: str) -> np.ndarray:
    rows = results.rows(metric, part="main").query(rule)
    return rows[rows["step"] > 0].groupby("tokens")["value"].mean().to_numpy()


def test_loss_has_a_panel_a_size_and_a_line_a_rank(results):
    figure = item(standard.loss("main"), "loss_against_tokens").draw(results)
    assert [ax.get_title("left") for ax in figure.axes] == ["d = 8", "d = 16", "d = 32", "d = 64"]
    shown = {line.get_label(): line.get_xydata() for line in figure.axes[1].lines}
    assert set(shown) == {f"r = {r}" for r in (2, 4, 8, 16)}
    assert shown["r = 4"][:, 1] == pytest.approx(mean(results, "heldout_loss", "`model.width` == 16 and rank == 4"))


def test_rise_is_measured_from_the_lowest_so_far(results):
    m = results.measurements
    rows = results.rows("heldout_loss", part="main").query("rank == 8 and `model.width` == 8 and seed == 0")
    run = rows["series"].iloc[0]
    late = m["series"].eq(run) & m["metric"].eq("heldout_loss") & m["step"].ge(1250)
    low = m.loc[m["series"].eq(run) & m["metric"].eq("heldout_loss") & ~late, "value"].min()
    raised = replace(results, measurements=m.assign(value=m["value"].mask(late, low + 0.1)))
    rows = data(standard.loss("main"), "rise_above_minimum", raised)
    curve = rows[rows["series"] == run].sort_values("step")["value"].to_numpy()
    assert curve[-2:] == pytest.approx([0.1, 0.1]) and curve[:-2] == pytest.approx(0, abs=0.02)
    assert (rows.loc[rows["series"] != run, "value"] < 0.02).all()


def test_spectra_start_at_one_and_thin_out_wide_heads():
    rows = [("a", s, 1024 * s, -1, i, "singular_value", 3.0 / (i + 1)) for s in (0, 1, 2) for i in range(2048)]
    measured = pd.DataFrame(rows, columns=["series", "step", "tokens", "layer", "index", "metric", "value"])
    found = data(standard.head(), "head_spectra", Results("laptop", pd.DataFrame(), measured))
    first = found[found["tokens"] == 0]
    assert len(first) <= 128 and first["index"].iloc[0] == 1 and first["value"].iloc[0] == 1
    assert (first["index"].iloc[-1], first["value"].iloc[-1]) == (2048, pytest.approx(1 / 2048))
    assert set(found["tokens"]) == {0, 1024, 2048}


def test_entropy_is_over_log_r(results):
    rows = data(standard.head("main"), "degeneration", results)
    one = rows[rows["size"].eq("d = 8") & rows["metric"].eq("singular_entropy")]
    expected = mean(results, "singular_entropy", "`model.width` == 8 and rank == 8") / np.log(8)
    assert one.groupby("tokens")["value"].mean().to_numpy() == pytest.approx(expected)


def test_loss_against_rank_shows_joint_and_frozen_heads(results):
    (ax,) = item(standard.head("main"), "loss_against_rank").draw(results).axes
    shown = {line.get_label(): line.get_xydata() for line in ax.lines}
    joint, frozen = shown["d = 64, held-out loss"], shown["d = 64, loss of heads retrained on the frozen backbone"]
    assert joint[:, 0].tolist() == [4, 8, 16, 32, 64] and frozen[:, 0].tolist() == [2, 4, 8, 16, 32, 64]
    assert (np.diff(joint[:, 1]) < 0).all() and "d = 8, loss of heads retrained on the frozen backbone" not in shown
    assert {text.get_text() for text in ax.texts} == {f"d = {d}" for d in (8, 16, 32, 64)}


def test_loss_against_rank_needs_ranks(results):
    with pytest.raises(NotMeasured, match="several ranks"):
        item(standard.head("probe"), "loss_against_rank").draw(results)


def test_anisotropy_runs_from_the_embedding_to_after_the_gain(results):
    (ax,) = item(standard.representations("main"), "anisotropy_by_layer").draw(results).axes
    line = next(line for line in ax.lines if line.get_label() == "d = 32").get_xydata()
    ends = results.last("anisotropy_after_gain", part="main").query("`model.width` == 32 and rank == 32")["value"]
    assert line[:, 0].tolist() == [0, 1, 2, 3] and line[-1, 1] == pytest.approx(ends.mean())


def test_a_size_has_one_colour_in_every_figure(results):
    found = [i for s in standard.sections() for i in s.items if isinstance(i, Chart) and i.colour == "size"]
    for chart in (replace(chart, part="main") for chart in found):
        lines = [line for ax in chart.draw(results).axes for line in ax.lines]
        colours = {line.get_label().partition(",")[0]: line.get_color() for line in lines if "d = " in line.get_label()}
        assert len(set(colours.values())) == len(colours) and colours in (
            {}, {"d = 8": "#0d0887", "d = 16": RAMP[5], "d = 32": RAMP[9], "d = 64": "#f2844b"},
        ), chart.name  # fmt: skip


@pytest.mark.parametrize("part", ["budget", ()])
def test_every_item_is_there_for_any_part_or_says_what_is_not(results, part):
    for section in (standard.loss(part), standard.head(part), standard.representations(part)):
        for each in section.items:
            try:
                shown = each.draw(results).axes if hasattr(each, "draw") else each.frame(results)
            except NotMeasured as e:
                assert "several ranks" in str(e)
            else:
                assert len(shown)


def test_sections_of_results_without_transformers_say_what_is_not_measured():
    rows = [("ode", s, s, -1, 0, "error", 1.0 / s) for s in (1, 2)]
    measured = pd.DataFrame(rows, columns=["series", "step", "tokens", "layer", "index", "metric", "value"])
    found = Results("laptop", pd.DataFrame(index=pd.Index([], dtype="str")), measured)
    for each in (i for section in standard.sections() for i in section.items):
        with pytest.raises(NotMeasured):
            each.draw(found) if hasattr(each, "draw") else each.frame(found)


def test_a_law_is_said_in_words(fitted, law):
    section = standard.scaling({"L(N, D)": law, "later": law})
    text = section.text(fitted)
    assert "L(N, D) = E + A/N^alpha + B/D^beta, fitted to 18 rows" in text and "Held: E = 1.9, B = 3000" in text
    rows = section.items[0].data(fitted)
    assert "the 2 rows of the largest model.width" in text and len(rows) == 20
    gap = rows.loc[~rows["in_fit"], "gap_percent"].mean()
    assert f"their mean gap +{gap:.4g} %" in text and "by a bootstrap over rows" in text
    assert "later: not fitted" in text
    with pytest.raises(NotMeasured, match="later"):
        section.items[1].draw(fitted)
    assert item(section, "law_residuals").frame(fitted).equals(rows) and {"size", "model.width", "N", "D"} <= {*rows}


def test_what_the_data_do_not_identify_is_said(results, law):
    # Of one budget: nothing tells E from B / D^beta.
    loose = Law(lambda r: law.rows(r).query("D == D.max()"), hold={"alpha": 0.3}, held_out="model.width")
    found = replace(results, laws={"L": loose.fit(loose.rows(results))})
    section = standard.scaling({"L": loose})
    names = found.laws["L"].unidentified
    assert names and f"The data do not identify {', '.join(names)}." in section.text(found)
    grouped = standard.scaling({"L": replace(loose, groups="model.width")})
    assert "by a bootstrap over model.width" in grouped.text(found)
    table = item(section, "law_constants").frame(found).set_index("constant")
    assert (table["status"] == "unidentified").any()
    assert not ((table["low"] == 0) & (table["status"] != "held")).any()  # no bound, not a bound of zero
