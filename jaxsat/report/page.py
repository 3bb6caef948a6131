"""The report on disk: one self-contained HTML page, and beside it every figure, table and claim as a file.

    OUT/index.html, OUT/claims.json, OUT/figures/NAME.{pdf,png,csv}, OUT/tables/NAME.csv

The same results give the same bytes (with the same matplotlib): no dates, fixed ids.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import pandas as pd
from etils import epath
from markupsafe import Markup, escape

from jaxsat.claims import Judged, headline, tally, to_json
from jaxsat.config import InputError
from jaxsat.disk import note_folder
from jaxsat.report import templates, words
from jaxsat.report.figures import DARK
from jaxsat.report.section import Section, Table
from jaxsat.report.svg import inline, render, settle
from jaxsat.results import NotMeasured, Results

T = TypeVar("T")
_SOURCES = '<meta name="jaxsat-sources" content="'


def write(
    folders: Sequence[epath.PathLike],
    title: str,
    intro: str,
    sections: Sequence[Section],
    judged: Sequence[Judged],
    provenance: Mapping[str, str],
    results: Results,
    *,
    command: str = "",
    larger: Mapping[str, str] | None = None,
    notices: Sequence[str] = (),
    sources: str = "",
) -> None:
    """Writes the report of `results` into each of `folders`, replacing an earlier one there.

    command: what measures more of this scale. larger: by claim, what runs a scale that has what it needs. Both stand
    beside the verdicts that ask for them. notices: what went wrong quietly, at the top. sources: a hash of all that the
    report is made of, which `sources_of` reads back.

    Everything is rendered once, before anything is written, and then put in its place by a rename, so a report is whole
    or absent. Raises InputError when a folder holds something else than a report or cannot be written, on two items of
    one name and on a name that is no file name. What was not measured is said on the page, sections of
    which nothing was in a list at its end.
    """
    folders = [epath.Path(folder) for folder in folders]
    for out in folders:
        if out.exists() and not (out / "claims.json").exists() and (not out.is_dir() or any(out.iterdir())):
            raise InputError(f"{out} exists and holds no report: give an empty or a new directory")
    check_names(sections)
    texts = {"command": command, "larger": larger or {}, "notices": notices, "sources": sources}
    files = _files(title, intro, sections, judged, provenance, results, **texts)
    for out in folders:
        try:
            _put(out, files)
        except OSError as e:
            raise InputError(
                f"cannot write the report to {out}: {e.strerror or e}; give another place, --to FOLDER"
            ) from None


def sources_of(page: epath.PathLike) -> str | None:
    """The `sources` that a page states; None when there is no page, or it states none."""
    page = epath.Path(page)
    if not page.exists():
        return None
    return page.read_text().partition(_SOURCES)[2].partition('"')[0] or None


def _put(out: epath.Path, files: Mapping[str, bytes]) -> None:
    new, old = out.parent / f".{out.name}.new", out.parent / f".{out.name}.old"
    for leftover in (new, old):
        if leftover.exists():
            leftover.rmtree()
    note_folder(new, files)
    for path, content in files.items():
        target = new / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)
    if out.exists():
        out.rename(old)
    new.rename(out)
    if old.exists():
        old.rmtree()


def _files(title, intro, sections, judged, provenance, results, **texts) -> dict[str, bytes]:
    """Relative path -> content of every file of the report."""
    files = {"claims.json": to_json(judged).encode()}
    say = lambda text: _measured(lambda: text(results)) if callable(text) else text
    contents = {item.name: _content(item, results, files) for section in sections for item in section.items}
    why = lambda item: text if type(text := contents[item.name]) is str else ""
    absent = {s.heading: dict.fromkeys(map(why, s.items)) for s in sections if s.items and all(map(why, s.items))}
    shown = [{"heading": s.heading, "text": say(s.text), "items": s.items} for s in sections if s.heading not in absent]
    environment = templates.environment()
    environment.filters |= {"rows": words.rows, "heading": heading, "paragraphs": paragraphs}
    kinds = {kind: [j for j in judged if j.claim.kind == kind] for kind in ("paper", "follow-up", "check")}
    page = environment.get_template("page.html").render(
        title=title, intro=intro, sections=shown, kinds=kinds, provenance=provenance, headline=headline(judged),
        tally=tally(judged), contents=contents, absent=absent, dark=DARK, files=files, Markup=Markup,
        is_number=pd.api.types.is_numeric_dtype, meta=Markup(_SOURCES), **texts,
    )  # fmt: skip
    files["index.html"] = page.encode()
    if results.laws:
        laws = {name: fit.document() for name, fit in results.laws.items()}
        files["laws.json"] = (json.dumps(laws, indent=1, allow_nan=False) + "\n").encode()
    return files


def _content(item, results: Results, files: dict[str, bytes]) -> Markup | pd.DataFrame | str:
    """What stands on the page for a chart, drawing or table: SVG, a table, or why there is none. Adds its files."""
    if isinstance(item, Table):
        frame = _measured(lambda: item.frame(results))
        if not isinstance(frame, pd.DataFrame | str):
            raise InputError(f"table {item.name!r}: its function returned {frame!r:.60}, not a DataFrame")
        if isinstance(frame, pd.DataFrame):
            frame = _with_index(frame)
            files[f"tables/{item.name}.csv"] = _csv(frame)
            return frame if len(frame) else "Not measured: it has no rows."
        return frame
    figure = _measured(lambda: item.draw(results))
    if isinstance(figure, str):
        return figure
    settle(figure)
    drawn = Markup(inline(figure, item.name, item.caption))
    for kind in ("pdf", "png"):
        files[f"figures/{item.name}.{kind}"] = render(figure, kind)
    if item.data is not None:
        files[f"figures/{item.name}.csv"] = _csv(_with_index(item.data(results)))
    return drawn


def _measured(make: Callable[[], T]) -> T | str:
    try:
        return make()
    except NotMeasured as e:
        return f"Not measured: {e}."


def heading(name: object) -> Markup:
    """A column's name that may break at its dots and underscores, so that long keys do not widen a table."""
    return Markup(re.sub(r"(?<=[._])", "<wbr>", str(escape(str(name)))))


def paragraphs(text: str) -> list[str]:
    return [p for p in re.split(r"\n\s*\n", text.strip()) if p]


def check_names(sections: Sequence[Section]) -> None:
    """Raises InputError on two items of one name, and on a name that is no file name."""
    seen = set()
    for section in sections:
        for item in section.items:
            if not re.fullmatch(r"[a-z][a-z0-9_-]*", item.name):
                raise InputError(f"section {section.heading!r}: {item.name!r} must be a-z, 0-9, - and _ only")
            if item.name in seen:
                raise InputError(f"section {section.heading!r}: {item.name!r} is there twice; give one another name")
            seen.add(item.name)


def _csv(frame: pd.DataFrame) -> bytes:
    return frame.to_csv(index=False, lineterminator="\n").encode()


def _with_index(frame: pd.DataFrame) -> pd.DataFrame:
    """A named index is a column; a bare one is only a count of rows."""
    return frame.reset_index() if any(frame.index.names) else frame
