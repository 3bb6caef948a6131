"""One page over several studies: what their reports say of each claim, counts a paper, each report's first figure.

Reads what `page.write` wrote, and nothing else: claims.json, and of the page its title and its figures.
"""

import html
import json
import os
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import quote

from markupsafe import Markup

from jaxsat.config import InputError
from jaxsat.disk import in_bucket
from jaxsat.report.templates import GREYS, environment
from jaxsat.verdicts import Told, read, tally

_MARK = '<meta name="jaxsat-index" content="claims">'
_TITLE = re.compile(r"<title>([^<]*)</title>")
_FIGURE = re.compile(r'<figcaption>([^<]*)<span class="files">.*?href="figures/([a-z0-9_-]+)\.png"')


@dataclass(frozen=True)
class Study:
    """A report. `name`: <experiment>-<scale>, or where it lies if others are called so too. `figure`: file and caption
    of the first that its page draws."""

    folder: Path
    name: str
    title: str
    claims: list[Told]
    figure: tuple[str, str] | None


def write(dirs: Sequence[str], to: str = "index.html") -> Path:
    """Writes the page over the reports of `dirs`, in that order: output directories of studies, or single reports. Its
    links are relative to it.

    Raises InputError when a directory has no report or one that is cut, and when `to` is no place for the page or holds
    something else. An earlier index is replaced, whole.
    """
    if not dirs:
        raise InputError("of which studies? give output directories, such as runs/saturation")
    path = Path(to)
    if path.is_dir():
        raise InputError(f"--to {to} is a directory: give a file in it, such as {path / 'index.html'}")
    if not path.parent.is_dir():
        raise InputError(f"--to {to}: no directory {path.parent}")
    if path.exists() and _MARK.encode() not in path.read_bytes():
        raise InputError(f"{to} exists and is no index of jaxsat: choose another name, --to FILE")
    page = _render(_studies(dirs), path.parent.resolve())
    new = path.with_name(f".{path.name}.new")
    try:
        new.write_bytes(page.encode())
        new.replace(path)
    except OSError as e:
        raise InputError(f"cannot write {to}: {e.strerror or e}; give another place, --to FILE") from None
    return path


def _studies(dirs: Sequence[str]) -> list[Study]:
    found: dict[Path, Study] = {}
    for given in dirs:
        folder = Path(given)
        if in_bucket(given):
            raise InputError(f"{given}: an index links to files beside it; copy its folder reports/ here first")
        if not folder.is_dir():
            raise InputError(f"no directory {given}: give output directories of studies, such as runs/saturation")
        alone = (folder / "claims.json").exists()
        reports = [folder] if alone else sorted(p.parent for p in folder.glob("reports/[!.]*/claims.json"))
        if not reports:
            raise InputError(f"{given} has no reports yet; `{_command(folder)}` makes one")
        for report in reports:
            again = "jaxsat report" if alone else _command(folder, report.name, "report")
            found.setdefault(report.resolve(), _study(report, f"remove its folder, and `{again}` makes it again"))
    names = [study.name for study in found.values()]
    return [replace(s, name=str(s.folder)) if names.count(s.name) > 1 else s for s in found.values()]


def _study(folder: Path, todo: str) -> Study:
    claims, page = read(folder / "claims.json", todo), folder / "index.html"
    if not page.is_file():
        raise InputError(f"{folder} has no page index.html: {todo}")
    text, name = page.read_bytes().decode(errors="replace"), folder.resolve().name
    title, drawn = _TITLE.search(text), _FIGURE.search(text)
    figure = (f"figures/{drawn[2]}.png", html.unescape(drawn[1]).strip()) if drawn else None
    if figure and not (folder / figure[0]).exists():
        figure = None
    return Study(folder, name, html.unescape(title[1]) if title else name, claims, figure)


def _command(folder: Path, name: str = "", stage: str = "reproduce") -> str:
    """What makes the report `name` of an output directory, or any."""
    try:
        known = json.loads((folder / "sweep.json").read_bytes())["experiments"]
        command = (known[name] if name else next(iter(known.values())))["command"]
    except (OSError, ValueError, LookupError, TypeError, StopIteration):
        command = "jaxsat reproduce NAME|FILE"
    return f"{command.replace('reproduce', stage, 1)} --out {shlex.quote(str(folder))}"


def _render(studies: Sequence[Study], beside: Path) -> str:
    """The page, for a file in the folder `beside`."""
    judged = [(study, claim) for study in studies for claim in study.claims]
    met = list(dict.fromkeys(claim.id for _, claim in judged))
    by_paper: dict[str, list[tuple[Study, Told]]] = {}
    for study, claim in sorted(judged, key=lambda each: met.index(each[1].id)):
        by_paper.setdefault("" if claim.kind == "check" else claim.paper, []).append((study, claim))
    counts = [
        (paper, study, each[paper])
        for paper in by_paper
        for study in studies
        for each in [tally((claim.paper, claim.kind, claim.verdict) for claim in study.claims)]
        if paper in each
    ]

    def link(study: Study, file: str) -> str:
        return quote(Path(os.path.relpath(study.folder.resolve() / file, beside)).as_posix())

    checks = by_paper.pop("", [])
    return (
        environment()
        .get_template("index.html")
        .render(
            mark=Markup(_MARK), studies=studies, counts=counts, papers=by_paper, checks=checks, link=link, dark=GREYS
        )
    )
