import dataclasses
import json
import re
from pathlib import Path

import pandas as pd
import pytest
from etils import epath
from matplotlib.figure import Figure

from jaxsat.claims import Claim, Estimate, Judged, above
from jaxsat.config import InputError
from jaxsat.report import Chart, Drawing, Section, Table, index, page, standard, tables
from tests.report.pages import EMPTY, JUDGED, OTHER, Page, claim

PROVENANCE = {"jaxsat": "0.1.0", "corpus": "sha256 0f3a & more"}
COMMANDS = {
    "command": "jaxsat reproduce x",
    "larger": dict.fromkeys(["untested", "between"], "jaxsat reproduce x --scale pod"),
}


def files(folder: Path) -> set[str]:
    return {str(p.relative_to(folder)) for p in Path(folder).rglob("*") if p.is_file()}


def sections() -> list[Section]:
    rank, spectra = standard.head("main").items[:2]
    losses = lambda r: tables.final_losses(r, "main")
    nothing = Drawing("law", "The law.", lambda r: r.law("L(N, D)"), losses)
    return [
        Section("Rank", rank, text="First.\n\nSecond, of `main`."),
        Section("Spectra <1>", spectra, text=lambda r: f"{len(r.runs)} runs."),
        Section("Absent", nothing, Chart("exact_match"), Table("none", "Empty.", lambda r: pd.DataFrame({"x": []}))),
        Section("Numbers", Table("final", "Final losses.", losses), text=lambda r: r.law("text").form.name),
    ]


def write(folders, results=EMPTY, sections=(), title="Title", **more):
    page.write(folders, title, "One.\n\nTwo, by `jaxsat`.", sections, JUDGED, PROVENANCE, results, **COMMANDS, **more)
    return folders[0] / "index.html"


@pytest.fixture(scope="module")
def written(results, tmp_path_factory):
    out = tmp_path_factory.mktemp("run")
    notices = ["run 3fa diverged at step 120 <b>", "trained with two versions of jax"]
    return write([out / "reports" / "x-laptop", out / "report"], results, sections(), notices=notices, sources="abc123")


@pytest.fixture(scope="module")
def parsed(written):
    return Page(written.read_text())


def test_every_file_is_there_in_every_folder(written):
    names = ("loss_against_rank", "head_spectra")
    drawn = {f"figures/{name}.{kind}" for name in names for kind in ("pdf", "png", "csv")}
    expected = drawn | {".xxh3", "index.html", "claims.json", "tables/final.csv", "tables/none.csv"}
    other = written.parents[2] / "report"
    assert files(written.parent) == files(other) == expected
    assert all((other / name).read_bytes() == (written.parent / name).read_bytes() for name in expected)
    assert [p.name for p in written.parents[1].iterdir()] == ["x-laptop"]


def test_the_page_loads_nothing_and_its_links_lead_somewhere(written, parsed):
    assert [load for load in parsed.loads if not load.startswith("data:")] == []
    assert not re.search(r"https?://|@import|url\((?!#)", written.read_text())
    for link in parsed.links:
        assert link[1:] in parsed.ids if link.startswith("#") else (written.parent / link).exists()
    assert parsed.open == [] and len(written.read_bytes()) < 3_000_000


def test_ids_are_unique_and_references_resolve(parsed):
    assert len(parsed.ids) == len(set(parsed.ids)) and parsed.references
    assert set(parsed.references) <= set(parsed.ids)


def test_verdicts_are_counted_by_paper_and_checks_are_not(parsed):
    top = parsed.text.partition("Provenance")[0]  # the last of the links in the head
    for said in ("✓ reproduced", "✗ not reproduced", "~ undecided", "○ not testable at this scale", "– not measured"):
        assert f"1{said}" in top
    assert top.count("✓ reproduced") == 2 and "Other et al. (2026)" in top  # one of each paper, none of the check
    assert "They are not counted" in parsed.text.partition("Checks")[2]


def test_each_claim_shows_what_decides(written, parsed):
    text = parsed.text
    assert "The loss <goes> up by more than 0.2 %: up. Godey et al. (2024), arXiv:2404.07647" in text
    assert "1.2 [0.4, 2.1] % rise of the loss over runs; n = 12" in text
    assert "Reproduced if the whole interval lies above 0.2 %." in text
    assert "1 [no bound, 2.3] %" in text and "as public summaries of the paper give it" in text
    assert "no run has seen 21,000 tokens a parameter: jaxsat plan To test it: jaxsat reproduce x --scale" in text
    assert "Missing: document_loss of probe To measure it: jaxsat reproduce x" in text
    order = [text.index(f": {id}.") for id in ("up", "unmeasured", "later", "theorem")]
    assert order == sorted(order)
    back = json.loads((written.parent / "claims.json").read_text())
    assert [c["verdict"] for c in back] == [j.verdict for j in JUDGED] and back[2]["estimate"]["low"] is None


def test_what_was_not_measured_is_said_in_one_line(parsed, results):
    text = parsed.text
    for reason in ("the law 'L(N, D)'", "the law 'text'", "exact_match", "it has no rows"):
        assert f"Not measured: {reason}." in text
    assert text.rindex("Absent:") > text.rindex("Final losses"), "a section of which nothing was measured comes last"
    assert f"Spectra <1> {len(results.runs)} runs." in text


def test_notices_stand_at_the_top(parsed):
    top = parsed.text.partition("Claims")[0]
    assert "run 3fa diverged at step 120 <b> trained with two versions of jax" in top


def test_every_name_is_escaped(tmp_path):
    """A run, a corpus, a claim or a machine may be called anything; so may the folder of a study."""

    def evil(place: str) -> str:
        return f"{place}\"'><evil onload=x>&{place}</title></script>`{place}`"

    def draw(results):
        figure = Figure()
        axes = figure.subplots()
        axes.plot([1, 2], label=evil("label").replace("`", ""))
        axes.set_xlabel(evil("axis"))
        axes.legend()
        return figure

    frame = pd.DataFrame({evil("column"): [evil("cell")]}, index=pd.Index([evil("row")], name=evil("index")))
    items = Drawing("drawn", evil("caption"), draw), Table("table", evil("table"), lambda r: frame)
    paper = dataclasses.replace(OTHER, authors=evil("authors"), where=evil("where"))
    estimate = Estimate(1.0, 0.5, 1.5, evil("unit"), evil("how"), 3)
    one = Claim(evil("claim"), evil("says"), paper, evil("number"), "full", lambda r: estimate, above(0))
    judged = [Judged(one, "undecided", above(0), estimate), Judged(one, "not measured", above(0), needs=evil("needs"))]
    out = tmp_path / evil("folder").replace("/", "") / "reports" / "x-laptop"
    page.write([out], evil("title"), evil("intro"), [Section(evil("heading"), *items, text=evil("text"))], judged,
               {evil("key"): evil("value")}, EMPTY, notices=[evil("notice")], command=evil("command"),
               larger={one.id: evil("larger")}, sources="abc")  # fmt: skip
    for written in (out / "index.html", index.write([str(out)], tmp_path / "index.html")):
        parsed = Page(written.read_text())
        assert parsed.open == [] and not parsed.names & {"evil", "onload"}, written
        for place in ("title", "says", "number", "needs", "unit", "caption", "where"):
            assert f"{place}\"'><evil onload=x>&{place}" in parsed.text, place
    assert Page((out / "index.html").read_text()).text.count("<evil onload=x>") > 20


def test_no_colour_of_a_drawing_is_fixed(written):
    for drawing in written.read_text().split("<svg ")[1:]:
        styles = [part.partition('"')[0] for part in drawing.partition("</svg>")[0].split('style="')[1:]]
        assert len(styles) > 50 and not any("#" in style for style in styles)


def test_tables_come_back_from_disk(written, results):
    losses = tables.final_losses(results, "main")
    back = pd.read_csv(written.parent / "tables" / "final.csv", index_col="series")
    assert back["loss"].tolist() == losses["loss"].tolist() and list(back.columns) == list(losses.columns)


def test_the_same_results_give_the_same_bytes(written, results, tmp_path):
    again = write([tmp_path / "report"], results, sections(), sources="abc123")
    for name in files(again.parent) - {"index.html", ".xxh3"}:  # which has no notices here
        assert (again.parent / name).read_bytes() == (written.parent / name).read_bytes(), name
    assert again.read_text().partition("<main>")[2] == written.read_text().partition("<main>")[2]


def test_a_page_states_its_sources(written, tmp_path):
    assert page.sources_of(written) == "abc123"
    assert page.sources_of(tmp_path / "index.html") is None
    assert page.sources_of(write([tmp_path / "report"])) is None


def test_a_second_report_replaces_the_first(tmp_path):
    out = tmp_path / "report"
    write([out], sections=[Section("A", Table("old", "", lambda r: pd.DataFrame({"x": [1]})))], title="First")
    index = write([out], title="Second")
    assert "Second" in index.read_text() and not (out / "tables").exists()
    assert [p.name for p in tmp_path.iterdir()] == ["report"]


def test_what_a_killed_write_left_is_cleared(tmp_path):
    write([tmp_path / "report"], title="First")
    for name in (".report.new", ".report.old"):
        (tmp_path / name / "figures").mkdir(parents=True)
    assert "Second" in write([tmp_path / "report"], title="Second").read_text()
    assert [p.name for p in tmp_path.iterdir()] == ["report"]


def test_a_failure_leaves_the_earlier_report_whole(tmp_path):
    write([tmp_path / "report"], title="First")
    with pytest.raises(ZeroDivisionError):
        write([tmp_path / "report"], sections=[Section("A", Table("t", "", lambda r: 1 / 0))], title="Second")
    assert "First" in (tmp_path / "report" / "index.html").read_text() and (tmp_path / "report/claims.json").exists()


def test_somebody_elses_folder_is_not_touched(tmp_path):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "thesis.tex").write_text("mine")
    with pytest.raises(InputError, match="thesis exists and holds no report"):
        write([tmp_path / "report", tmp_path / "thesis"])
    assert files(tmp_path) == {"thesis/thesis.tex"}  # nor is the other written


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="file/report: .*; give another place"):
        write([tmp_path / "file" / "report"])
    with pytest.raises(InputError, match="holds no report"):
        write([tmp_path / "file"])


@pytest.mark.parametrize("names, said", [(("a", "a"), "twice"), (("../a",), "a-z"), (("A b",), "a-z")])
def test_names_are_file_names_and_unique(names, said, tmp_path):
    section = Section("Mine", *(Table(name, "", lambda r: pd.DataFrame({"x": [1]})) for name in names))
    with pytest.raises(InputError, match=f"section 'Mine': .*{said}"):
        write([tmp_path / "report"], sections=[section])


def test_a_page_of_no_claims_and_no_sections(tmp_path):
    page.write([epath.Path(tmp_path) / "report"], "Nothing", "", [], [], {}, EMPTY)
    parsed = Page((tmp_path / "report" / "index.html").read_text())
    assert "Claims" not in parsed.text and parsed.open == []
    assert json.loads((tmp_path / "report" / "claims.json").read_text()) == []


def test_a_verdict_needs_no_command(tmp_path):
    one = [Judged(claim("a"), "not testable at this scale", above(0), needs="more tokens")]
    page.write([tmp_path / "report"], "T", "", [], one, {}, EMPTY)
    text = Page((tmp_path / "report" / "index.html").read_text()).text
    assert "more tokens" in text and "To test it" not in text
