"""What pages share: style, colours of text and paper, signs of verdicts."""

from pathlib import Path

import jinja2
from markupsafe import Markup

from jaxsat.report import numbers
from jaxsat.verdicts import ORIGINS, VERDICTS

FONTS = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"
INK, MUTED, GRID, PAPER = "#1b1e24", "#5f6672", "#e3e5e9", "#fefefe"
GREYS = {INK: "#e8eaee", MUTED: "#a2a9b5", GRID: "#343943", PAPER: "#16181d"}  # light -> its partner on a dark page
SIGNS = dict(zip(VERDICTS, "✓✗~○–", strict=True))
STYLES = dict(zip(VERDICTS, ("yes", "no", "open", "open", "open"), strict=True))


def environment() -> jinja2.Environment:
    """Of the templates beside this file, which escape what they are given."""
    made = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {"prose": prose, "estimate": numbers.estimate, "number": numbers.number}
    made.globals |= {"fonts": FONTS, "signs": SIGNS, "styles": STYLES, "origins": ORIGINS}
    return made


def prose(text: str) -> Markup:
    """Plain text, with `commands` between backticks."""
    parts = str(text).split("`")
    return Markup("").join(Markup("<code>%s</code>") % part if i % 2 else part for i, part in enumerate(parts))
