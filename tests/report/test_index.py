"""A page over two studies, each a report of its own, as `page.write` writes it."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from matplotlib.figure import Figure

from jaxsat.config import InputError
from jaxsat.report import Drawing, Section, index, page
from jaxsat.verdicts import VERDICTS
from tests.report.pages import EMPTY, GODEY, JUDGED, OTHER, Page


def drawing(name: str) -> Drawing:
    return Drawing(name, f"Caption of <{name}>.", lambda r: Figure())


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two output directories: one of two reports with the claims of test_page, one without claims."""
    monkeypatch.chdir(tmp_path)
    absent = Drawing("absent", "Not there.", lambda r: r.law("L"))
    for folder, title, items, judged in (
        ("one #1/reports/a-laptop", "Ranks & sizes", [absent, drawing("loss"), drawing("spectra")], JUDGED),
        ("one #1/reports/a-pod", "Ranks & sizes", [], JUDGED[1:2]),
        ("two/reports/b-laptop", "Depths", [drawing("depth")], []),
    ):
        page.write([Path(folder)], title, "", [Section("S", *items)], judged, {}, EMPTY)
    sweep = {"experiments": {"b-laptop": {"command": "jaxsat reproduce b.py"}}}
    (tmp_path / "two" / "sweep.json").write_text(json.dumps(sweep))
    return tmp_path


def links_of(written: Path) -> list[str]:
    parsed = Page(written.read_text())
    return [*parsed.links, *(load for load in parsed.loads if not load.startswith("data:"))]


@pytest.mark.parametrize("to", ["index.html", "pages/all of it.html", "two/index.html"])
def test_every_link_leads_to_a_file_and_a_place_in_it(home, to):
    (home / "pages").mkdir()
    written = index.write(["one #1", "two"], to)
    seen = set()
    for link in links_of(written):
        parts = urlsplit(link)
        target = written.parent / unquote(parts.path) if parts.path else written
        assert not parts.scheme and not parts.path.startswith("/") and target.is_file(), link
        if parts.fragment:
            assert unquote(parts.fragment) in Page(target.read_text()).ids
        seen.add((target.resolve().relative_to(home).as_posix(), parts.fragment))
    for name in ("a-laptop", "a-pod"):
        assert (f"one #1/reports/{name}/index.html", "claim-down") in seen
    assert ("one #1/reports/a-laptop/index.html", "claim-theorem") in seen
    assert {file for file, _ in seen if "figures" in file} == {
        "one #1/reports/a-laptop/figures/loss.png",
        "two/reports/b-laptop/figures/depth.png",
    }


def test_a_row_a_claim_has_what_its_report_has(home):
    parsed = Page(index.write(["one #1"]).read_text())
    text = parsed.text
    assert parsed.open == [] and len(parsed.ids) == len(set(parsed.ids))
    assert "The loss <goes> up by more than 0.2 %: up. 8 % as public summaries of the paper give it" in text
    assert "1.2 [0.4, 2.1] % n = 12 ✓ reproduced a-laptop" in text
    assert "1 [no bound, 2.3] % n = 12 ~ undecided a-laptop" in text
    assert "– ○ not testable at this scale no run has seen 21,000 tokens a parameter: jaxsat plan a-laptop" in text
    assert "– – not measured Missing: document_loss of probe a-laptop" in text
    assert text.count("−1.2 [−1.5, −0.3] %") == 2  # at both scales, one below the other
    between = text.partition("−1.2 [−1.5, −0.3] %")[2].partition("−1.2 [−1.5, −0.3] %")[0]
    assert "a-laptop The loss <goes> up by more than 0.2 %: down." in between and "1.2 [0.4" not in between


def test_counts_are_by_paper_and_study_and_checks_stand_apart(home):
    written = index.write(["one #1", "two"])
    text = Page(written.read_text()).text
    head, _, rest = text.partition("Studies")
    assert "What 3 studies found of the claims of 2 papers" in head
    assert f"{GODEY} a-laptop 1 1 1 1 1 a-pod 0 1 0 0 0 {OTHER} a-laptop 1 0 0 0 0" in head
    assert [v for v in VERDICTS if v in head] == list(VERDICTS)
    claims, _, checks = rest.partition("Checks")
    assert ": theorem." not in claims and "They are not counted" in checks and ": theorem." in checks
    assert str(GODEY) in checks
    assert "b-laptop; no claims" in claims


def test_figures_are_the_first_that_each_page_draws(home):
    text = index.write(["one #1", "two"]).read_text()
    assert "Caption of &lt;loss&gt;." in text and "Caption of &lt;depth&gt;." in text
    assert "Not there" not in text and "Caption of &lt;spectra&gt;" not in text and "Ranks &amp; sizes" in text
    shutil.rmtree(home / "two/reports/b-laptop/figures")
    assert "depth.png" not in index.write(["two"]).read_text()


def test_an_index_is_made_again_to_the_same_bytes(home):
    first = index.write(["one #1", "two"]).read_bytes()
    assert index.write(["one #1", "two", "one #1"]).read_bytes() == first  # a study is there once
    assert index.write(["two"]).read_bytes() != first
    assert {p.name for p in home.iterdir()} == {"index.html", "one #1", "two"}


def test_a_single_report_may_be_given(home):
    text = Page(index.write(["one #1/reports/a-pod"]).read_text()).text
    assert "What 1 study found of the claims of 1 paper." in text and "a-pod 0 1 0 0 0" in text


def test_studies_of_one_name_are_told_apart(home):
    shutil.copytree("two", "copy")
    text = Page(index.write(["two", "copy"]).read_text()).text
    assert "two/reports/b-laptop" in text and "copy/reports/b-laptop" in text


def test_what_is_being_written_is_no_report(home):
    shutil.copytree("two/reports/b-laptop", "two/reports/.b-laptop.new")
    assert "What 1 study found" in Page(index.write(["two"]).read_text()).text


@pytest.mark.parametrize(
    "dirs, to, said",
    [
        ([], "index.html", "give output directories, such as runs/saturation"),
        (["nowhere"], "index.html", "no directory nowhere"),
        (["empty"], "index.html", "empty has no reports yet; `jaxsat reproduce NAME|FILE --out empty` makes one"),
        (["begun it"], "index.html", "begun it has no reports yet; `jaxsat reproduce b.py --out 'begun it'` makes one"),
        (["gs://bucket/x"], "index.html", "gs://bucket/x: an index links to files beside it"),
        (["two"], "thesis.html", "thesis.html exists and is no index of jaxsat: choose another name, --to FILE"),
        (["two"], "two/reports/b-laptop/index.html", "is no index of jaxsat"),
        (["two"], "two", "--to two is a directory: give a file in it, such as two/index.html"),
        (["two"], "none/x.html", "--to none/x.html: no directory none"),
    ],
)
def test_wrong_input_is_one_line_and_touches_nothing(home, dirs, to, said):
    (home / "empty").mkdir()
    (home / "begun it").mkdir()
    shutil.copy("two/sweep.json", "begun it/sweep.json")
    (home / "thesis.html").write_text("<p>mine</p>")
    before = {p: p.is_file() and p.read_bytes() for p in home.rglob("*")}
    with pytest.raises(InputError) as e:
        index.write(dirs, to)
    assert said in str(e.value) and "\n" not in str(e.value)
    assert {p: p.is_file() and p.read_bytes() for p in home.rglob("*")} == before


def test_a_spoilt_report_is_named_with_what_makes_it_again(home):
    report = home / "two/reports/b-laptop"
    index.write(["two"])
    before = (home / "index.html").read_bytes()
    again = ": remove its folder, and `jaxsat report b.py --out two` makes it again"
    for text, said in (("[{", "is not claims of a report"), ("{}", "is not claims of a report .*must be a list")):
        (report / "claims.json").write_text(text)
        with pytest.raises(InputError, match=f"two/reports/b-laptop/claims.json {said}.*{again}"):
            index.write(["two"])
    (report / "claims.json").write_text("[]")
    (report / "index.html").unlink()
    for put in (lambda: None, (report / "index.html").mkdir):
        put()
        with pytest.raises(InputError, match=f"two/reports/b-laptop has no page index.html{again}"):
            index.write(["two"])
    assert (home / "index.html").read_bytes() == before


def test_the_command_loads_no_training_and_no_tables(home):
    program = "import sys; from jaxsat.cli import main; assert main(sys.argv[1:]) == 0; print(*sys.modules)"
    argv = [sys.executable, "-c", program, "index", "one #1", "two"]
    root = Path(__file__).parents[2]
    said = subprocess.run(argv, capture_output=True, text=True, check=True, env={"PYTHONPATH": str(root)}).stdout
    assert said.splitlines()[0] == "index.html" and (home / "index.html").exists()
    assert not {"jax", "numpy", "pandas", "scipy", "matplotlib"} & set(said.split())
