"""What a report shows, as values that an experiment lists: sections of charts, drawings and tables."""

from collections.abc import Callable
from dataclasses import dataclass

import pandas as pd
from matplotlib.figure import Figure

from jaxsat.report.chart import Chart
from jaxsat.results import Results


@dataclass(frozen=True)
class Drawing:
    """A figure that no `Chart` can say. `draw` may raise NotMeasured, and the page says so. `data`: what it draws,
    written beside it as CSV."""

    name: str
    caption: str
    draw: Callable[[Results], Figure]
    data: Callable[[Results], pd.DataFrame] | None = None


@dataclass(frozen=True)
class Table:
    """`frame` may raise NotMeasured, and the page says so."""

    name: str
    caption: str
    frame: Callable[[Results], pd.DataFrame]


@dataclass(frozen=True, init=False)
class Section:
    """A heading, `text` (paragraphs with an empty line between them, or a function of the results that gives them),
    then charts, drawings and tables in the order given."""

    heading: str
    items: tuple[Chart | Drawing | Table, ...]
    text: str | Callable[[Results], str]

    def __init__(self, heading: str, *items: Chart | Drawing | Table, text: str | Callable[[Results], str] = ""):
        for name, value in (("heading", heading), ("items", items), ("text", text)):
            object.__setattr__(self, name, value)
