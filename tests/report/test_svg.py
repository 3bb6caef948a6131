from xml.etree import ElementTree

import numpy as np
import pytest
from matplotlib.figure import Figure

from jaxsat.report import standard, svg
from jaxsat.report.figures import DARK, NAMES, styled


@styled
def drawing(label: str = "a <b> & c", title: str = "") -> Figure:
    """A line, a band that is clipped, a marker, a dash, mathematics and a fixed colour's name in a label."""
    figure = Figure(figsize=(4, 3))
    ax = figure.subplots()
    x = np.array([1.0, 2.0, 4.0])
    ax.plot(x, x**2, "o", color=NAMES[0], label=label)
    ax.plot(x, x, linestyle=(0, (5, 1.5)), color=NAMES[1], label="dashed")
    ax.plot(x, x, label="_not named")
    ax.fill_between(x, x, x**2, color=NAMES[0], alpha=0.2, linewidth=0)
    ax.set_title(title)
    return figure


@pytest.fixture(scope="module")
def root():
    return ElementTree.fromstring(svg.inline(drawing(), "one", "Label & <more>"))


def references(root) -> set[str]:
    found = {e.get("href") for e in root.iter() if e.get("href")}
    return {r.removeprefix("#") for r in found} | {
        e.get("clip-path").removeprefix("url(#").removesuffix(")") for e in root.iter() if e.get("clip-path")
    }


def test_lines_carry_their_names_and_values(root):
    lines = {e.get("data-label"): e for e in root.iter() if e.get("data-label")}
    assert set(lines) == {"a <b> & c", "dashed"}
    line = lines["a <b> & c"]
    assert (line.get("data-x"), line.get("data-y")) == ("1 2 4", "1 4 16")
    assert len(line.findall(".//use")) == 3  # a mark a value: where the pointer finds it
    assert lines["dashed"].find("path").get("d").count("L") == 2  # a vertex a value


def test_ids_are_the_figures_own_and_references_resolve(root):
    ids = [e.get("id") for e in root.iter() if e.get("id")]
    assert len(ids) == len(set(ids)) and set(ids) == references(root)
    assert ids and all(id.startswith("one-") for id in ids)


def test_colours_and_fonts_are_the_pages(root):
    styles = [e.get("style", "") for e in root.iter()]
    assert any(f"stroke: var(--{NAMES[0][1:]})" in style for style in styles)
    assert not any(colour in style for colour in DARK for style in styles)
    texts = list(root.iter("text"))
    assert texts and all("var(--sans)" in e.get("style") and "DejaVu" not in e.get("style") for e in texts)


def test_it_stands_in_a_page(root):
    assert root.tag == "svg" and root.get("role") == "img" and root.get("aria-label") == "Label & <more>"
    tags = {e.tag for e in root.iter()}
    assert not tags & {"metadata", "style"} and not any("{" in tag or ":" in tag for tag in tags)
    assert "width" not in root.attrib and root.get("viewBox").startswith("0 0 ")


@pytest.mark.parametrize("text", ["#0072b2", 'href="#x" url(#y)', 'id="line0"', "font-family: DejaVu; fill: #0072b2"])
def test_text_that_looks_like_markup_stays_text(text):
    """A name of a line or a title is never taken for a colour, an id or a reference."""
    root = ElementTree.fromstring(svg.inline(drawing(label=text, title=text), "one", text))
    assert root.get("aria-label") == text and text in {e.get("data-label") for e in root.iter()}
    assert text in {e.text for e in root.iter("text")}


def test_the_same_chart_gives_the_same_text(results):
    chart = standard.loss("main").items[1]
    first, second = (svg.inline(chart.draw(results), "a", "b") for _ in range(2))
    assert first == second


def test_formats_have_no_dates():
    for kind, start in {"png": b"\x89PNG", "pdf": b"%PDF", "svg": b"<?xml"}.items():
        bytes_ = svg.render(drawing(), kind)
        assert bytes_.startswith(start) and bytes_ == svg.render(drawing(), kind) and b"CreationDate" not in bytes_
