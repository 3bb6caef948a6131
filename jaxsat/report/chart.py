"""A chart as a value: what is against what, and what tells the lines apart."""

import re
from collections.abc import Callable, Sequence
from dataclasses import KW_ONLY, dataclass
from itertools import zip_longest
from typing import Literal, get_args

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from jaxsat.config import InputError, nearest, unknown
from jaxsat.report import figures
from jaxsat.report.figures import DASHES, INK, MUTED, PAPER
from jaxsat.report.tables import at_end, differing, settings, with_sizes
from jaxsat.report.words import called, label
from jaxsat.results import NotMeasured, Results, satisfying

PLACES = ["tokens", "step", "layer", "index"]  # of a value in its own series; every other column is the series' own
TIME = ("tokens", "step")
LOG = {"singular_value", "head_tail", "head_gap_truncated", "head_gap_trained"}  # as y
SIZES = ("size", "model.width", "model.depth", "params.total", "params.nonembedding", "params.head")
# Names at the ends of a panel's lines, twice as many where it is alone, and their letters. Beyond, a key has the
# colours: in each panel, or of more than INSIDE above all of them, and of more than can be told apart SOME.
MOST_NAMES, LONGEST, INSIDE, SOME = 10, 26, 6, 8
POINTS = {"linestyle": "none", "marker": "o"}
At = Literal["", "every", "last"]


@dataclass(frozen=True)
class Chart:
    """`y`, a metric, against `x`, a line a `colour` (by default the model's size, unless that is what x is).

    y: of several metrics each has a panel, one below the other; those of a tuple within share one:
    ["heldout_loss", ("anisotropy_before_gain", "anisotropy_after_gain")] with dash="metric".
    x, colour, panel, dash: a column of `Results.rows`: a dotted key, "size", "rank", "series", "metric", "seed",
    "tokens", "step", "layer", "index". x may be another metric too, of the same series, step, layer and index: points,
    joined in order of training when every checkpoint is shown. Series that are no runs have their name as their size.
    at: "every" checkpoint, or the "last" of each series whose training has ended; by default every one against tokens
    and steps, else the last. where: a rule in the words of pandas' `query` on those columns, dotted keys between
    backticks. transform: of the rows that are left, before `at`.

    A line is the mean over `band` (their range is the band around it) and over nothing else: whatever else differs
    between the rows of a line parts it into several, which are named by that. A panel for each value of `panel`, unless
    each would hold one line. Numbers and sizes are coloured from the least (dark) to the largest (light); the largest
    number of `dash` is solid.

    x_label, y_label: of known metrics and keys there is a default; y_label: of each panel where there are several.
    log: the axes that are logarithmic, which have no place for zero: "", "x", "y" or "xy"; by default x where it spans
    a factor of 8, and y of singular values. slope: of a guide through the middle of the points, on logarithmic axes.

    Raises InputError for a column that does not exist, and NotMeasured where there are no rows, or x is neither a
    column nor a metric that was measured.
    """

    y: str | Sequence[str | Sequence[str]]
    x: str = "tokens"
    colour: str = ""
    _: KW_ONLY
    name: str = ""
    caption: str = ""
    part: str | Sequence[str] = ()
    where: str = ""
    panel: str | None = None
    dash: str | None = None
    at: At = ""
    band: str = "seed"
    transform: Callable[[pd.DataFrame], pd.DataFrame] | None = None
    x_label: str = ""
    y_label: str | Sequence[str] = ""
    log: str | None = None
    slope: float | None = None

    def __post_init__(self) -> None:
        if self.at not in get_args(At):
            raise unknown(f"at of chart {self.y!r}", self.at, get_args(At)[1:])
        if self.panel and len(self._groups) > 1:
            raise InputError(f"chart {self.y!r}: each metric has a panel, so there is no `panel` besides: two charts")
        if not self.colour:
            object.__setattr__(self, "colour", "metric" if self.x in SIZES else "size")
        if not self.name:
            name = f"{'_'.join(self._metrics)}_against_{self.x}"
            object.__setattr__(self, "name", re.sub("[^a-z0-9_-]", "_", name.lower()))

    @property
    def _groups(self) -> list[tuple[str, ...]]:
        """The metrics of each panel."""
        each = (self.y,) if isinstance(self.y, str) else self.y
        return [(group,) if isinstance(group, str) else tuple(group) for group in each]

    @property
    def _metrics(self) -> list[str]:
        return [metric for group in self._groups for metric in group]

    @property
    def _at(self) -> str:
        return self.at or ("every" if self.x in TIME else "last")

    def data(self, results: Results) -> pd.DataFrame:
        """The rows that are drawn: what tells them apart, x and value."""
        rows = self._rows(results)
        told = ["series", "metric", self.panel, self.colour, self.dash, *self._parts(rows, results), self.band]
        return rows[[*dict.fromkeys(c for c in (*told, *PLACES, self.x) if c in rows), "value"]]

    @figures.styled
    def draw(self, results: Results) -> Figure:
        rows = self._rows(results)
        parts, colours = self._parts(rows, results), _colours(rows, self.colour)
        panels = self._panels(rows, parts)
        shown = list(panels.values()) or [rows[rows["metric"].isin(group)] for group in self._groups]
        figure, axes = figures.grid(len(shown), columns=min(2, len(panels) or 1), sharex=self.x != "index")
        for ax, value in zip(axes, panels, strict=False):
            colour = colours[value] if self.panel == self.colour else INK
            ax.set_title(called(self.panel, value), color=colour, fontweight="bold")
        names, keys = {}, {}
        for ax, panel in zip(axes, shown, strict=True):
            names[ax], keys[ax] = self._lines(ax, panel, parts, colours, results)
        points = self._points(results)
        longest = max((len(name) for lines in names.values() for name in lines.values()), default=0)
        many = max(map(len, names.values())) > MOST_NAMES * (2 if len(shown) == 1 else 1)
        if points or many or longest > LONGEST / (2 if len(panels) > 1 else 1):
            style, above = POINTS if points else {}, len(colours) > INSIDE and self.colour != self.panel
            for ax, panel in zip(axes, shown, strict=True):
                keys[ax] = ({} if above else self._colour_key(panel, colours, style)) | keys[ax]
            if above:
                figures.key_above(figure, self._colour_key(rows, colours, style), len(colours))
            names = {ax: {} for ax in axes}
        for ax, key in keys.items():
            if key:
                ax.legend(key.values(), key.keys(), loc="best", handlelength=1.6, borderaxespad=0.1)
        self._name_axes(figure, axes, bool(panels))
        figures.name_ends(names)
        return figure

    def _rows(self, results: Results) -> pd.DataFrame:
        """The rows to draw, with x as a column; of what tells them apart nothing is missing, but "none"."""
        rows = with_sizes(results.rows(*self._metrics, part=self.part))
        if self.x not in rows:
            self._check_x(rows, results)
            other = results.rows(self.x, part=self.part).rename(columns={"value": self.x})
            rows = rows.merge(other[["series", *PLACES, self.x]], on=["series", *PLACES])
        if self.where:
            try:
                rows = satisfying(rows, self.where)
            except InputError as e:
                raise InputError(f"chart {self.name}: {e}") from None
        if self.transform:
            rows = self.transform(rows)
        if self._at == "last":
            rows = at_end(rows)
        for column in ("x", "colour", "panel", "dash", "band"):
            name = getattr(self, column)
            if name and name not in rows and (column, name) != ("band", "seed"):
                raise unknown(f"{column} of chart {self.name}", name, rows)
        rows = rows.assign(source=rows["series"].where(~rows["series"].isin(results.runs.index)))
        rows = rows[rows[self.x].notna() | (rows["source"].isna() & (self.x in settings(results)))]
        if self._log_x or (self._log_x is None and self.x in TIME):
            rows = rows[rows[self.x] > 0]
        if self._log_y:
            rows = rows[rows["value"] > 0]
        if rows.empty:
            said = ", ".join(self._metrics) + (" at the end of a run" if self._at == "last" else "")
            raise NotMeasured(said + (f" where {self.where}" if self.where else ""))
        for column in {*settings(results), self.panel, self.colour, self.dash} & {*rows}:
            if rows[column].isna().any():
                rows[column] = rows[column].astype(object).where(rows[column].notna(), "none")
        return rows

    def _check_x(self, rows: pd.DataFrame, results: Results) -> None:
        """Of an x that is no column: a metric, which may be measured yet. Raises NotMeasured with the nearest name that
        there is, and InputError where it begins as the dotted keys of columns do."""
        metrics = {*results.measurements["metric"]}
        if self.x in metrics:
            return
        section = self.x.partition(".")[0] + "."
        if any(column.startswith(section) for column in rows):
            raise unknown(f"x of chart {self.name}", self.x, rows)
        near = nearest(self.x, {*rows, *metrics})
        raise NotMeasured(f"{self.x}, which is no column either" + (f" (did you mean {near!r}?)" if near else ""))

    def _of_metric(self, results: Results) -> bool:
        return self.x not in PLACES and bool(results.measurements["metric"].eq(self.x).any())

    def _points(self, results: Results) -> bool:
        return self._at == "last" and self._of_metric(results)

    @property
    def _log_x(self) -> bool | None:
        """None: as the values are."""
        return (True if self.slope is not None else None) if self.log is None else "x" in self.log

    @property
    def _log_y(self) -> bool:
        if self.log is not None:
            return "y" in self.log
        return self.slope is not None or bool(LOG & {metric.rpartition(".")[2] for metric in self._metrics})

    def _parts(self, rows: pd.DataFrame, results: Results) -> list[str]:
        """What a line's mean would otherwise be over without a word: the columns, besides the band's, that differ
        between its rows (at one x, where x is the series' own)."""
        if self._points(results):
            return []  # no mean is taken
        metric = self._of_metric(results)
        own = self.x not in PLACES and not metric
        keys = ["metric", self.panel, self.colour, self.dash, self.x if own else None]
        skipped = {self.x} | (set(TIME) if metric or self.x in TIME else set()) | (set() if metric else {self.band})
        columns = [c for c in (*settings(results), "layer", "index", "tokens") if c not in skipped]
        return differing(rows, list(dict.fromkeys(key for key in keys if key)), columns)

    def _panels(self, rows: pd.DataFrame, parts: list[str]) -> dict[object, pd.DataFrame]:
        """Rows by value of `panel`; none where the lines share one."""
        if not self.panel:
            return {}
        panels = dict(iter(rows.groupby(self.panel, sort=False)))
        keys = [key for key in (self.colour, self.dash, *parts) if key]
        alone = all(len(panel[keys].drop_duplicates()) == 1 for panel in panels.values())
        return {} if alone and self.panel == self.colour else panels

    def _lines(
        self, ax: Axes, rows: pd.DataFrame, parts: list[str], colours: dict[object, str], results: Results
    ) -> tuple[dict[Line2D, str], dict[str, Line2D]]:
        """Draws the lines of one panel; returns the names that are to stand at ends, each at one of its lines, and what
        the dashes mean."""
        if rows.empty:
            ax.text(0.5, 0.5, "not measured", transform=ax.transAxes, ha="center", color=MUTED)
            return {}, {}
        differs = lambda column, keys: rows.groupby(keys, sort=False)[column].nunique().max() > 1
        dash = self.dash if self.dash and differs(self.dash, self.colour) else None
        keys = [self.colour, dash] if dash else [self.colour]
        keys = list(dict.fromkeys([*keys, *(part for part in parts if differs(part, keys))]))
        tells = [key for key in keys if rows[key].nunique() > 1] or [self.colour]
        order = _order(rows[dash], largest_first=True) if dash else [None]
        if dash == "metric":
            order = [metric for metric in self._metrics if metric in order]
        rows = self._placed(ax, rows)
        groups = [(dict(zip(keys, values, strict=True)), line) for values, line in rows.groupby(keys, sort=False)]
        names: dict[Line2D, str] = {}
        for told, line in sorted(groups, key=lambda group: order.index(group[0].get(dash))):
            n = order.index(told.get(dash))
            drawn = self._line(ax, line, colours[told[self.colour]], n, self._of_metric(results))
            drawn.set_label(", ".join(called(key, told[key]) for key in tells))
            name = ", ".join(called(key, told[key]) for key in tells if key != dash or len(tells) == 1)
            if name not in names.values():
                names[drawn] = name
        key = {}
        if dash and len(tells) > 1:
            style = [{"linestyle": DASHES[i % len(DASHES)]} for i in range(len(order))]
            if self._points(results):
                style = [POINTS | {"markerfacecolor": PAPER if i else MUTED} for i in range(len(order))]
            key = {called(dash, v): Line2D([], [], color=MUTED, **each) for v, each in zip(order, style, strict=True)}
        if self.slope is not None:
            self._guide(ax, rows)
        return names, key

    def _colour_key(self, rows: pd.DataFrame, colours: dict[object, str], style: dict) -> dict[str, Line2D]:
        """The colours of these rows, or some of very many; none where titles say them."""
        values = [value for value in colours if rows[self.colour].eq(value).any()]
        if self.colour == self.panel:
            return {}
        n = len(values)
        few = values if n <= len(figures.RAMP) else [values[round(i)] for i in np.linspace(0, n - 1, SOME)]
        return {called(self.colour, value): Line2D([], [], color=colours[value], **style) for value in few}

    def _placed(self, ax: Axes, rows: pd.DataFrame) -> pd.DataFrame:
        """Sets the axes' scales and ticks. Where x is no number its values have places in a row."""
        if not pd.api.types.is_numeric_dtype(rows[self.x]) or pd.api.types.is_bool_dtype(rows[self.x]):
            values = _order(rows[self.x])
            ax.set_xticks(range(len(values)), [called(self.x, value) for value in values])
            return rows.assign(x=rows[self.x].map(values.index))
        x = rows[self.x]
        log = x.min() > 0 and x.max() >= 8 * x.min() if self._log_x is None else self._log_x
        whole, few = (x % 1 == 0).all() and x.max() < 1e5 and self.x not in TIME, x.nunique() <= 8
        if log and whole:
            figures.doubling_ticks(ax, x.unique())
        elif log:
            figures.log_ticks(ax, x.min(), x.max())
        elif whole and few:
            ax.set_xticks(sorted(x.unique()))
        if self._log_y:
            figures.log_ticks(ax, rows["value"].min(), rows["value"].max(), "y")
        return rows.assign(x=x)

    def _line(self, ax: Axes, rows: pd.DataFrame, colour: str, dash: int, of_metric: bool) -> Line2D:
        """The mean over the band's values as a line, and their range as a band. Metrics against each other: points."""
        style = {"color": colour, "linestyle": DASHES[dash % len(DASHES)], "linewidth": 1.2 if dash else 1.8}
        marked = {"marker": "o", "markerfacecolor": PAPER if dash else colour}
        if of_metric:
            joined = {} if self._at == "every" and len(rows) > 1 else marked | POINTS
            shown = rows.sort_values("step", kind="stable")
            return ax.plot(shown["x"], shown["value"], **style | joined)[0]
        over = rows.groupby("x")["value"].agg(["mean", "min", "max"])
        if (over["max"] > over["min"]).any():
            ax.fill_between(over.index, over["min"], over["max"], color=colour, alpha=0.18, linewidth=0)
        if len(over) == 1 or (self.x not in (*TIME, "index") and len(over) <= 16):
            style |= marked
        return ax.plot(over.index, over["mean"], **style)[0]

    def _guide(self, ax: Axes, rows: pd.DataFrame) -> None:
        x = np.array([rows["x"].min(), rows["x"].max()])
        y = np.exp((np.log(rows["value"]) - self.slope * np.log(rows["x"])).mean()) * x**self.slope
        ax.plot(x, y, color=MUTED, linewidth=1, zorder=1)
        style = {"textcoords": "offset points", "color": MUTED}
        ax.annotate(f"slope {self.slope:g}", (x[0], y[0]), (12, 2), **style)

    def _name_axes(self, figure: Figure, axes: list[Axes], by_panel: bool) -> None:
        x_name = self.x_label or label(self.x)
        given = [self.y_label] if isinstance(self.y_label, str) else self.y_label
        y_names = [name or label(group[0]) for name, group in zip_longest(given, self._groups)]
        if by_panel:
            figure.supxlabel(x_name, fontsize=10)
            figure.supylabel(y_names[0], fontsize=10)
            return
        axes[-1].set_xlabel(x_name)
        for ax, name in zip(axes, y_names, strict=True):
            ax.set_ylabel(name.replace(" (", "\n(") if len(axes) > 1 else name)
        figure.align_ylabels(axes)


def _order(values: pd.Series, largest_first: bool = False) -> list:
    """Distinct values: numbers by size, then names by alphabet, but sizes of models as met, which is in order."""
    found = list(dict.fromkeys(values))
    numbers = [v for v in found if isinstance(v, int | float | np.number) and not isinstance(v, bool)]
    others = [v for v in found if v not in numbers]
    if values.name != "size":
        others.sort(key=lambda v: (v == "none", str(v)))
    return sorted(numbers, reverse=largest_first) + others


def _colours(rows: pd.DataFrame, column: str) -> dict[object, str]:
    """Of numbers and of sizes, spread over the whole ramp; of a few names, colours that are far apart."""
    values = _order(rows[column])
    names = all(isinstance(v, str | bool | tuple) for v in values) and (
        column != "size" or rows["size"].eq(rows["series"]).all()
    )
    if names and len(values) <= len(figures.NAMES):
        return dict(zip(values, figures.NAMES, strict=False))
    places = np.linspace(0, len(figures.RAMP) - 1, len(values)).round().astype(int)
    return {value: figures.RAMP[i] for value, i in zip(values, places, strict=True)}
