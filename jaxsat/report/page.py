"""The report on disk: one self-contained HTML page, and beside it every figure, table and claim as a file.

    OUT/index.html, OUT/claims.json, OUT/figures/NAME.{pdf,png,csv}, OUT/tables/NAME.csv

The same tables give the same bytes (with the same matplotlib): no dates, fixed ids.
"""

import io
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

import jinja2
import matplotlib
import matplotlib.figure
import numpy as np
import pandas as pd
from etils import epath
from markupsafe import Markup
from matplotlib.lines import Line2D

from jaxsat.config import InputError
from jaxsat.report.claims import ORIGINS, Claim, headline, number, tally, to_json
from jaxsat.report.figures import DARK, PAPER, STYLE

FONTS = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"


@dataclass(frozen=True)
class Figure:
    """`figure` None: the page says that nothing was measured for it. `data`: what it draws, written as CSV."""

    name: str
    caption: str
    figure: matplotlib.figure.Figure | None
    data: pd.DataFrame | None = None


@dataclass(frozen=True)
class Table:
    name: str
    caption: str
    frame: pd.DataFrame


@dataclass(frozen=True)
class Section:
    """`text`: plain paragraphs, an empty line between them."""

    heading: str
    text: str = ""
    figures: Sequence[Figure] = ()
    tables: Sequence[Table] = ()


def write(
    out: epath.Path,
    title: str,
    intro: str,
    sections: Sequence[Section],
    claims: Sequence[Claim],
    provenance: Mapping[str, str],
) -> epath.Path:
    """Writes the whole report to the directory `out`, replacing an earlier one, and returns the path of its page.

    Everything is rendered beside `out` and then put in its place by a rename, so a report is whole or absent.
    Raises InputError when `out` holds something else than a report, and on names that repeat or cannot be file names.
    """
    out = epath.Path(out)
    _check_names(sections)
    if out.exists() and any(out.iterdir()) and not (out / "claims.json").exists():
        raise InputError(f"{out} exists and holds no report: give an empty or a new directory")
    new, old = out.parent / f".{out.name}.new", out.parent / f".{out.name}.old"
    for leftover in (new, old):
        if leftover.exists():
            leftover.rmtree()
    for path, content in _files(title, intro, sections, claims, provenance).items():
        target = new / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)
    if out.exists():
        out.rename(old)
    new.rename(out)
    if old.exists():
        old.rmtree()
    return out / "index.html"


def svg(figure: matplotlib.figure.Figure, name: str, label: str) -> str:
    """The figure as inline SVG: selectable text, colours that follow the page's light or dark, ids of its own.

    Every labelled line becomes a group with its name and its values (data-label, data-x, data-y), which the page's
    script shows under the pointer.
    """
    with matplotlib.rc_context(STYLE):
        figure.draw_without_rendering()
        figure.set_layout_engine("none")  # settled: every format shows the same drawing
        values = {}
        for line in figure.findobj(Line2D):
            if line.axes and len(line.get_xdata()) and line in line.axes.lines and not line.get_label().startswith("_"):
                gid = f"line{len(values)}"
                line.set_gid(gid)
                values[gid] = (line.get_label(), *line.get_xydata().T)
        text = render(figure, "svg").decode()
    text = re.sub(r"^.*?(?=<svg )|\s*<metadata>.*?</metadata>|<!--.*?-->", "", text, flags=re.DOTALL)
    box = re.search(r'viewBox="[^"]*"', text)[0]
    text = f'<svg {box} role="img" aria-label="{escape(label)}">' + text.partition(">")[2]
    text = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", text)
    text = re.sub("|".join(DARK), lambda color: f"var(--{color[0][1:]})", text)
    text = re.sub(r"(font: [^;\"]*?)'DejaVu Sans'[^;\"]*", r"\1var(--sans)", text)
    for gid, (line, x, y) in values.items():
        points = f'data-label="{escape(line)}" data-x="{_numbers(x)}" data-y="{_numbers(y)}"'
        text = text.replace(f'<g id="{name}-{gid}">', f"<g {points}>")
    return re.sub(r'<g id="[^"]*">', "<g>", re.sub(r"\n\s*", "\n", text))


def _files(title, intro, sections, claims, provenance) -> dict[str, bytes]:
    """Relative path -> content of every file of the report."""
    files = {"claims.json": to_json(claims).encode()}
    drawings = {}
    for figure in (figure for section in sections for figure in section.figures):
        if figure.figure is None:
            continue
        drawings[figure.name] = svg(figure.figure, figure.name, figure.caption)
        with matplotlib.rc_context(STYLE):
            for kind in ("pdf", "png"):
                files[f"figures/{figure.name}.{kind}"] = render(figure.figure, kind)
        if figure.data is not None:
            files[f"figures/{figure.name}.csv"] = _csv(figure.data)
    for table in (table for section in sections for table in section.tables):
        files[f"tables/{table.name}.csv"] = _csv(table.frame)
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(rows=rows, heading=heading, paragraphs=paragraphs)
    page = environment.get_template("page.html").render(
        title=title, intro=intro, sections=sections, claims=claims, provenance=provenance, headline=headline(claims),
        tally=tally(claims), origins=ORIGINS, drawings=drawings, dark=DARK, fonts=FONTS, files=files,
        is_number=pd.api.types.is_numeric_dtype, with_index=_with_index,
    )  # fmt: skip
    files["index.html"] = page.encode()
    return files


def cells(column: pd.Series) -> list[str]:
    """A table's column for people: numbers of like size share their decimals, so that their points line up."""
    values = column.tolist()
    texts = [_cell(v) for v in values]
    sizes = [abs(v) for v in values if np.isfinite(v) and v] if pd.api.types.is_float_dtype(column) else []
    if not sizes or max(sizes) >= 1e4 or max(sizes) > 1e3 * min(sizes):
        return texts
    needed = max(len(text.partition(".")[2]) for text in texts)
    decimals = max(0, min(needed, 3 - math.floor(math.log10(max(sizes)))))
    lined_up = [f"{v:.{decimals}f}".replace("-", "−") for v in values]
    return [new if np.isfinite(v) else old for v, new, old in zip(values, lined_up, texts, strict=True)]


def rows(frame: pd.DataFrame) -> list[tuple[str, ...]]:
    return list(zip(*(cells(frame[name]) for name in frame), strict=True))


def _cell(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int | float):
        return number(value)
    return "–" if value is None or value is pd.NA else str(value)


def heading(name: object) -> Markup:
    """A column's name that may break at its dots and underscores, so that long keys do not widen a table."""
    return Markup(re.sub(r"(?<=[._])", "<wbr>", escape(str(name))))


def paragraphs(text: str) -> list[str]:
    return [p for p in re.split(r"\n\s*\n", text.strip()) if p]


def _check_names(sections: Sequence[Section]) -> None:
    names = Counter(item.name for section in sections for item in (*section.figures, *section.tables))
    for name, count in names.items():
        if not re.fullmatch(r"[a-z][a-z0-9_-]*", name) or count > 1:
            raise InputError(f"figure or table {name!r}: names must be unique, and a-z, 0-9, - and _ only")


def render(figure: matplotlib.figure.Figure, kind: str) -> bytes:
    """Bytes without a date; on white, except for SVG, which takes the page's background."""
    dates = {"svg": {"Date": None}, "pdf": {"CreationDate": None}, "png": {}}
    buffer = io.BytesIO()
    paper = "none" if kind == "svg" else PAPER
    figure.savefig(buffer, format=kind, dpi=200, facecolor=paper, metadata=dates[kind])
    return buffer.getvalue()


def _csv(frame: pd.DataFrame) -> bytes:
    return _with_index(frame).to_csv(index=False, lineterminator="\n").encode()


def _with_index(frame: pd.DataFrame) -> pd.DataFrame:
    """A named index is a column; a bare one is only a count of rows."""
    return frame.reset_index() if any(frame.index.names) else frame


def _numbers(values: np.ndarray) -> str:
    return " ".join(f"{value:.5g}" for value in values)
