"""How figures look, and the figure of a law. The object API of matplotlib only, under a style of our own, so no global
state of matplotlib is read or left behind."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator
from scipy.optimize import isotonic_regression

from jaxsat.report.numbers import si
from jaxsat.report.templates import GREYS, GRID, INK, MUTED, PAPER
from jaxsat.report.words import label

if TYPE_CHECKING:
    from jaxsat.laws import Fit


def _ramp(*ends: str) -> tuple[str, ...]:
    """These colours and those half way between neighbours."""
    rgb = np.array([to_rgb(color) for color in ends])
    places = np.linspace(0, len(ends) - 1, 2 * len(ends) - 1)
    return tuple(to_hex(each) for each in np.stack([np.interp(places, range(len(ends)), c) for c in rgb.T], axis=1))


# Light colour -> its partner on a dark page. The ramp is matplotlib's plasma without its pale (light) or black (dark)
# end; the names' first three are Okabe and Ito's blue, vermillion and green. Both keep their order for every common
# colour blindness.
RAMP = _ramp("#0d0887", "#41049d", "#6a00a8", "#8f0da4", "#b12a90", "#cb4679", "#e16462", "#f2844b")
NAMES = ("#0072b2", "#d55e00", "#009e73", "#a6761d", "#b0508e", "#3f3f8f", "#7a7f1a")
DARK = {
    **GREYS,
    **dict(
        zip(
            RAMP,
            _ramp("#8f7cf0", "#ab5fe0", "#c34fc0", "#d9559d", "#e8677a", "#f48948", "#fca835", "#f4dd27"),
            strict=True,
        )
    ),
    **dict(zip(NAMES, "#56b4e9 #f08a4b #35c79b #d9a441 #e08bc2 #9a9af0 #c4c94f".split(), strict=True)),
}
WIDTH = 5.4  # inches: the width of a phone in points, so that 10 pt text is 10 px there
DASHES = ("solid", (0, (5, 1.5)), (0, (3, 1.5, 1, 1.5)), (0, (2, 1.5)), (0, (1, 1.5)), (0, (1, 3)))
STYLE = {
    "font.family": "DejaVu Sans",
    "font.size": 10,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.xmargin": 0.02,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.facecolor": "none",
    "figure.facecolor": "none",
    "figure.constrained_layout.use": True,
    "grid.color": GRID,
    "grid.linewidth": 0.7,
    "text.color": INK,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "lines.linewidth": 1.8,
    "lines.markersize": 5,
    "path.simplify": False,  # a vertex a point: the page reads the values back from the path
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "jaxsat",
    "pdf.fonttype": 42,
}
styled = matplotlib.rc_context(STYLE)


@styled
def fitted(fit: "Fit", rows: pd.DataFrame) -> Figure:
    """A law and the rows it was fitted to, and below them what it leaves: in per cent of a law of log losses.

    rows: the law's inputs, its output, `predicted`, `low`, `high`, and `in_fit`, which is False where a row was held
    out (all True when there is no such column). Against the input of a law of one input, or of two of which the second
    takes at most four values, one curve each; the interval of the curve of the largest is a band. Another law of
    several inputs has no curve: its rows are against those predicted, with the interval of the law at each as a bar.
    """
    figure = Figure(figsize=(WIDTH, 5.4))
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=(2, 1))
    inputs, output = fit.form.inputs, fit.form.output
    left = (lambda y, best: 100 * (y / best - 1)) if fit.scale == "log" else (lambda y, best: y - best)
    of_one = len(inputs) == 1 or (len(inputs) == 2 and rows[inputs[1]].nunique() <= 4)
    groups = {"": rows}
    if of_one and len(inputs) == 2:
        groups = {D: rows[rows[inputs[1]] == D] for D in sorted(rows[inputs[1]].unique(), reverse=True)}
    x = rows[inputs[0]] if of_one else rows["predicted"]
    log = of_one and x.max() > 10 * x.min()
    line = (np.geomspace if log else np.linspace)(x.min() / (1.3 if log else 1), x.max() * (1.3 if log else 1), 64)
    held = ~rows.get("in_fit", pd.Series(True, index=rows.index)).astype(bool)
    for ax, shown in ((top, lambda y, best: y), (bottom, left)):
        band = None
        for i, (D, group) in enumerate(groups.items()):
            color, name = NAMES[i], f"{inputs[1]} = {si(D)}" if D else ""
            for out in sorted(set(held[group.index])):
                those = group[held[group.index] == out]
                marks = {"marker": "D", "markerfacecolor": PAPER} if out else {"marker": "o", "alpha": 0.8}
                text = ", ".join(filter(None, (name, "held out" if out else "rows")))
                y = shown(those[output], those["predicted"])
                ax.plot(those[x.name], y, linestyle="none", color=color, label=text, markersize=4, **marks)
            if of_one:
                best, *ends = fit.predict(**{inputs[0]: line} | ({inputs[1]: np.full_like(line, D)} if D else {}))
                band = band or [shown(end, best) for end in ends]
                if ax is top:
                    ax.plot(line, best, color=color, linewidth=1.4, linestyle=DASHES[i], label=name or "law")
        if ax is bottom or not of_one:
            ends = line[[0, -1]]
            ax.plot(ends, shown(ends, ends), color=MUTED if of_one else NAMES[1], linewidth=1.2, label="law")
        low, high = ax.get_ylim()  # of rows and law: an unbounded interval must not set the view
        room = 0.3 * (high - low) if ax is bottom else 0.05 * (high - low)
        ax.set_ylim(low - room, high + room)
        style = {"color": NAMES[0] if of_one else NAMES[1], "alpha": 0.2, "zorder": 1}
        if of_one:
            ax.fill_between(line, *np.clip(band, *ax.get_ylim()), linewidth=0, **style)
        else:
            bars = (np.clip(shown(rows[end], rows["predicted"]), *ax.get_ylim()) for end in ("low", "high"))
            ax.vlines(x, *bars, linewidth=2 if len(rows) < 300 else 0.5, **style)
    if log:
        log_ticks(bottom, x.min(), x.max())
    kinds = {"held out of the fit": {"marker": "D", "markerfacecolor": PAPER}} if held.any() else {}
    kinds = {"in the fit": {"marker": "o"}} | kinds
    keys = [Line2D([], [], color=MUTED, linestyle="none", markersize=4, label=k, **kind) for k, kind in kinds.items()]
    keys.append(Line2D([], [], color=style["color"], alpha=0.3, linewidth=6, label=f"{100 * fit.level:g} % interval"))
    top.legend(handles=keys)
    top.set_ylabel(label("heldout_loss") if output == "loss" else label(output))
    what = {"N": "parameters N", "D": "training tokens D"}.get(inputs[0], label(inputs[0]))
    bottom.set(xlabel=what if of_one else f"{output} by the law")
    bottom.set_ylabel("gap to the law (%)" if fit.scale == "log" else "residual")
    if len(groups) > 1:
        name_ends({top: {curve: curve.get_label() for curve in top.lines if curve.get_linestyle() != "None"}})
    figure.align_ylabels([top, bottom])
    return figure


def grid(n: int, columns: int, sharex: bool = True) -> tuple[Figure, list[Axes]]:
    """Panels: of one thing, side by side; of several, one below the other."""
    lines = -(-n // columns)
    figure = Figure(figsize=(WIDTH, 3.7 if n == 1 else 2.6 * lines + 0.3 if columns > 1 else 2 * lines + 0.6))
    axes = figure.subplots(lines, columns, sharex=sharex, sharey=columns > 1, squeeze=False).ravel()
    for ax in axes[n:]:
        ax.remove()
    return figure, list(axes[:n])


def name_ends(names: Mapping[Axes, Mapping[Line2D, str]]) -> None:
    """Each line's name at its right end, moved apart as little as needed (least squares) where ends crowd."""
    style = {"textcoords": "offset points", "fontsize": 9, "va": "center", "annotation_clip": False}
    texts = {
        ax: [ax.annotate(text, k.get_xydata()[-1], (5, 0), color=k.get_color(), **style) for k, text in shown.items()]
        for ax, shown in names.items()
    }
    figure = next(iter(names)).figure
    figure.draw_without_rendering()  # the layout makes room for the names; only then are heights known
    for ax, shown in names.items():
        point, height = figure.dpi / 72, 11 * figure.dpi / 72
        ends = np.array([ax.transData.transform(line.get_xydata()[-1])[1] for line in shown])
        order, apart = np.lexsort((-np.arange(len(ends)), ends)), np.arange(len(ends)) * height
        box, last = ax.get_window_extent(), apart[-1] if len(apart) else 0
        free = isotonic_regression(ends[order] - apart).x if len(ends) else ends
        moved = np.clip(free, box.y0 + height / 2, max(box.y1 - last, box.y0 + height / 2)) + apart
        for k, place in zip(order, moved, strict=True):
            texts[ax][k].set_position((5, (place - ends[k]) / point))


def key_above(figure: Figure, key: Mapping[str, Line2D], n: int) -> None:
    """One key of all panels, above them (below, it would cover the name of their x), in as many columns as there is
    room for. It says of how many, `n`, it has fewer."""
    columns = max(1, min(len(key), int(72 * WIDTH / (32 + 5.5 * max(map(len, key))))))
    title = f"{len(key)} of {n}, in order" if len(key) < n else None
    figure.set_figheight(figure.get_figheight() + 0.2 * (-(-len(key) // columns) + bool(title)))
    figure.legend(key.values(), key.keys(), loc="outside upper center", ncols=columns, handlelength=1.6, title=title)


def log_ticks(ax: Axes, low: float, high: float, which: str = "x") -> None:
    """A logarithmic axis for values from `low` to `high`: plain numbers with k, M, B at the decades, or at 1, 2, 5
    where it spans fewer than two."""
    axis = ax.xaxis if which == "x" else ax.yaxis
    ax.set(**{f"{which}scale": "log"})
    axis.set_major_locator(LogLocator(subs=(1,) if high / low > 100 else (1, 2, 5), numticks=12))
    axis.set_major_formatter(FuncFormatter(lambda value, _: si(value)))
    axis.set_minor_formatter(NullFormatter())


def doubling_ticks(ax: Axes, values: np.ndarray) -> None:
    """Of widths, ranks and other whole numbers: the powers of two nearest to the values."""
    powers = 2 ** np.unique(np.log2(values).round().astype(int))
    ax.set_xscale("log", base=2)
    ax.set_xticks(powers if len(powers) < 9 else powers[::2])
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    ax.xaxis.set_minor_locator(NullLocator())
