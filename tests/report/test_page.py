import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from etils import epath
from jaxsat.report.claims import VERDICTS, Claim, from_json, over_seeds

from jaxsat.config import InputError
from jaxsat.report import figures as F
from jaxsat.report import page
from jaxsat.report.tables import final_losses

CLAIMS = [
    Claim(origin, "Stated with <b>marks</b>", "8 %", origin, over_seeds([0.1, 0.2], "%"), verdict, "So.", "jaxsat x")
    for origin, verdict in zip(("secondary", "recalled", "derived"), VERDICTS, strict=True)
]
CONTENT = ("Saturation <1>", "One.\n\nTwo.")
PROVENANCE = {"jaxsat": "0.1.0", "corpus": "sha256 0f3a & more", "wall time": "9 min"}


class Page(HTMLParser):
    """What a page loads, links to and says, and whether its tags close in order."""

    VOID = {"meta", "link", "img", "br", "wbr"}

    def __init__(self, text: str):
        super().__init__()
        self.loads, self.links, self.ids, self.text, self.open = [], [], [], "", []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        loading = ("src", "srcset", "data", "poster") if tag not in ("a",) else ()
        self.loads += [attrs[k] for k in loading if k in attrs] + ([attrs["href"]] if tag == "link" else [])
        self.loads += [v for k, v in attrs.items() if k in ("href", "xlink:href") and tag in ("use", "image")]
        self.links += [attrs["href"]] if tag == "a" else []
        self.ids += [attrs["id"]] if "id" in attrs else []
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if not self.open or self.open[-1] not in ("style", "script"):
            self.text += data


def files(folder: epath.Path) -> set[str]:
    return {str(p.relative_to(folder)) for p in Path(folder).rglob("*") if p.is_file()}


def sections(measurements, runs):
    main = runs[runs["part"] == "main"]
    losses = final_losses(measurements, main)
    drawn = F.loss_against_rank(measurements, main)
    return [
        page.Section("Rank", "First.\n\nSecond.", [page.Figure("rank", "Loss against rank & more.", drawn, losses)]),
        page.Section("Spectra", figures=[page.Figure("spectra", "Spectra.", F.head_spectra(measurements, main))]),
        page.Section(
            "Absent", "", [page.Figure("law", "The law.", None)], [page.Table("none", "Empty.", pd.DataFrame())]
        ),
        page.Section("Numbers", tables=[page.Table("final", "Final losses.", losses)]),
    ]


@pytest.fixture(scope="module")
def written(tables, tmp_path_factory):
    out = epath.Path(tmp_path_factory.mktemp("run")) / "report"
    return page.write(out, *CONTENT, sections(*tables), CLAIMS, PROVENANCE)


@pytest.fixture(scope="module")
def parsed(written):
    return Page(written.read_text())


def test_every_file_is_there(written):
    drawn = {f"figures/{name}.{kind}" for name in ("rank", "spectra") for kind in ("pdf", "png")}
    assert files(written.parent) == drawn | {
        "index.html",
        "claims.json",
        "figures/rank.csv",
        "tables/final.csv",
        "tables/none.csv",
    }
    assert written.name == "index.html" and [p.name for p in written.parent.parent.iterdir()] == ["report"]


def test_the_page_loads_nothing_and_its_links_lead_somewhere(written, parsed):
    assert [load for load in parsed.loads if not load.startswith(("#", "data:"))] == []
    assert not re.search(r"https?://|@import|url\((?!#)", written.read_text().replace("http://www.w3.org", ""))
    for link in parsed.links:
        assert link[1:] in parsed.ids if link.startswith("#") else (written.parent / link).exists()
    assert parsed.open == [] and len(written.read_bytes()) < 3_000_000


def test_ids_are_unique_and_references_resolve(written, parsed):
    assert len(parsed.ids) == len(set(parsed.ids))
    for reference in re.findall(r'url\(#([^)]+)\)|href="#([^"]+)"', written.read_text()):
        assert "".join(reference) in parsed.ids


def test_the_page_says_what_was_found(parsed):
    text = " ".join(parsed.text.split())
    assert "1 of the 2 claims that this scale can test was reproduced; 1 more needs a larger one." in text
    assert "Saturation <1>" in text and "Stated with <b>marks</b>" in text and "sha256 0f3a & more" in text
    assert "0.15 [0.10, 0.20] %" in text and "range of 2 seeds" in text
    assert text.count("Nothing was measured for this") == 2
    assert "recalled from memory; not checked in any source" in text and "σᵢ / σ₁ of the head" in text


def test_charts_carry_their_values_and_no_fixed_colour(written):
    html = written.read_text()
    line = re.search(r'data-label="d = 64" data-x="([^"]*)" data-y="([^"]*)"', html)
    assert line[1] == "4 8 16 32 64" and len(line[2].split()) == 5
    for drawing in re.findall(r"<svg.*?</svg>", html, re.DOTALL):
        assert not re.search(r"#[0-9a-f]{6}", drawing), "a colour that dark mode cannot change"


def test_paths_have_a_vertex_a_value(written):
    group = r'<g data-label="\d[^"]* tokens" data-x="([^"]*)".*?<path d="([^"]*)"'
    groups = re.findall(group, written.read_text(), re.DOTALL)
    assert len(groups) == 4 * 15  # sizes, checkpoints
    for values, path in groups:
        assert len(re.findall(r"[ML] ", path)) == len(values.split())


def test_claims_and_tables_come_back_from_disk(written, tables):
    assert from_json((written.parent / "claims.json").read_text()) == CLAIMS
    measurements, runs = tables
    losses = final_losses(measurements, runs[runs["part"] == "main"])
    back = pd.read_csv(str(written.parent / "tables" / "final.csv"), index_col="run")
    assert back["loss"].tolist() == losses["loss"].tolist() and list(back.columns) == list(losses.columns)


def test_the_same_tables_give_the_same_bytes(written, tables, tmp_path):
    again = page.write(epath.Path(tmp_path) / "report", *CONTENT, sections(*tables), CLAIMS, PROVENANCE)
    assert {name: (again.parent / name).read_bytes() for name in files(again.parent)} == {
        name: (written.parent / name).read_bytes() for name in files(written.parent)
    }


def test_a_second_report_replaces_the_first(tmp_path):
    out = epath.Path(tmp_path) / "report"
    page.write(out, "First", "", [page.Section("A", tables=[page.Table("old", "", pd.DataFrame({"x": [1]}))])], [], {})
    index = page.write(out, "Second", "", [], [], {})
    assert "Second" in index.read_text() and not (out / "tables").exists()
    assert [p.name for p in out.parent.iterdir()] == ["report"]


def test_a_failure_leaves_the_earlier_report_whole(tmp_path):
    out = epath.Path(tmp_path) / "report"
    page.write(out, "First", "", [], [], {})
    with pytest.raises(AttributeError):
        page.write(out, "Second", "", [page.Section("A", tables=[page.Table("t", "", None)])], [], {})
    assert "First" in (out / "index.html").read_text() and (out / "claims.json").exists()


def test_somebody_elses_directory_is_not_touched(tmp_path):
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(InputError, match="holds no report"):
        page.write(epath.Path(tmp_path), "Title", "", [], [], {})
    assert (tmp_path / "thesis.tex").read_text() == "mine"


@pytest.mark.parametrize("names", [("a", "a"), ("../a",), ("A b",)])
def test_names_are_file_names_and_unique(names, tmp_path):
    tables = [page.Table(name, "", pd.DataFrame({"x": [1]})) for name in names]
    with pytest.raises(InputError, match="names must be unique"):
        page.write(epath.Path(tmp_path) / "report", "Title", "", [page.Section("A", tables=tables)], [], {})


@pytest.mark.parametrize(
    "values, texts",
    [
        ([True, False], ["yes", "no"]),
        ([1540096, 8], ["1,540,096", "8"]),
        ([4.75, 4.7481, np.nan], ["4.750", "4.748", "–"]),
        ([-0.07768, 0.3723, 0.0], ["−0.0777", "0.3723", "0.0000"]),
        ([0.048, 0.006], ["0.048", "0.006"]),
        ([9125.4, 0.4932], ["9,125", "0.4932"]),
        ([0.5, np.inf], ["0.5", "∞"]),
        (["done", None], ["done", "–"]),
        ([0.25, "none"], ["0.25", "none"]),
    ],
)
def test_cells_of_a_column_line_up(values, texts):
    assert page.cells(pd.Series(values)) == texts
