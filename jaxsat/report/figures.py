"""One function a figure: tidy tables (and law fits) in, a matplotlib Figure out, or None where nothing was measured.

The object API only, under a style of our own, so no global state of matplotlib is read or left behind.
Colour is the model's size, from small (dark) to large (light); bands are the range over seeds; r = d is the solid line.
"""

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator
from scipy.optimize import isotonic_regression

from jaxsat.report.tables import gaps, joined, predict

if TYPE_CHECKING:
    from jaxsat.laws import Fit

# Light colour -> its partner on a dark page. The ramp is matplotlib's plasma without its pale (light) or black (dark)
# end; the pair is Okabe and Ito's blue and vermillion. Both keep their order for every common colour blindness.
INK, MUTED, GRID, PAPER = "#1b1e24", "#5f6672", "#e3e5e9", "#fefefe"
RAMP = ("#0d0887", "#41049d", "#6a00a8", "#8f0da4", "#b12a90", "#cb4679", "#e16462", "#f2844b")
PAIR = ("#0072b2", "#d55e00", "#009e73", "#a6761d")
DARK = {
    **{INK: "#e8eaee", MUTED: "#a2a9b5", GRID: "#343943", PAPER: "#16181d"},
    **dict(zip(RAMP, "#8f7cf0 #ab5fe0 #c34fc0 #d9559d #e8677a #f48948 #fca835 #f4dd27".split(), strict=True)),
    **dict(zip(PAIR, "#56b4e9 #f08a4b #35c79b #d9a441".split(), strict=True)),
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
def loss_against_tokens(measurements: pd.DataFrame, runs: pd.DataFrame) -> Figure | None:
    """Held-out loss (nats/token) against training tokens: a panel a size where head ranks differ, else one panel."""
    rows = _trained(joined(measurements, runs, "heldout_loss"))
    if rows.empty:
        return None
    colors = _colors(rows)
    by_rank = (rows.groupby("size")["rank"].nunique() > 1).any()
    figure, axes = _grid(list(colors) if by_rank else [""], colors)
    for ax, size in zip(axes, list(colors) if by_rank else [""], strict=True):
        for (s, rank), line in rows[rows["size"].eq(size) | (not by_rank)].groupby(["size", "rank"], sort=False):
            order = sorted(rows.loc[rows["size"] == s, "rank"].unique(), reverse=True).index(rank)
            label = f"r = {rank}" if by_rank else s
            style = {"linestyle": DASHES[order % len(DASHES)], "linewidth": 1.2 if order else 2}
            _line(ax, line, "tokens", label, colors[s], **style)
        _tokens_axis(ax)
    _label_ends(axes)
    _name_axes(figure, axes, "training tokens", "held-out loss (nats/token)")
    return figure


@styled
def rise_above_minimum(measurements: pd.DataFrame, runs: pd.DataFrame) -> Figure | None:
    """Saturation seen directly: held-out loss (nats/token) above the run's own lowest value so far. Zero: no rise."""
    rows = _trained(joined(measurements, runs, "heldout_loss"))
    rows = rows[rows.groupby("run")["tokens"].transform("size") > 1]
    if rows.empty:
        return None
    rows = _largest_rank(rows.assign(value=rows["value"] - rows.groupby("run")["value"].cummin()))
    figure, (ax,) = _grid([""])
    for size, line in rows.groupby("size", sort=False):
        _line(ax, line, "tokens", size, _colors(rows)[size])
    ax.set_ylim(bottom=0, top=max(0.05, ax.get_ylim()[1]))
    if rows["value"].max() == 0:
        ax.set_title("no run ever rose above its own minimum", color=MUTED)
    _tokens_axis(ax)
    _label_ends([ax])
    _name_axes(figure, [ax], "training tokens", "loss above its own minimum (nats/token)")
    return figure


@styled
def law(
    fit: "Fit | None", points: pd.DataFrame, held_out: Collection[str] = (), params: str = "params.total"
) -> Figure | None:
    """A law with its band beside the final losses it was and was not fitted to, and below them the gap in percent.

    `points` are those of `tables.final_losses`, `held_out` the runs the fit has not seen, `params` the N of the fit.
    A curve a number of training tokens, the most tokens drawn solid and with the fit's interval.
    """
    if fit is None or points.empty:
        return None
    table = gaps(fit, points, held_out, params)
    budgets = sorted(table["tokens"].unique(), reverse=True)
    N = np.geomspace(table[params].min() / 1.3, table[params].max() * 1.3, 64)
    figure = Figure(figsize=(WIDTH, 5.4))
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=(2, 1))
    for i, D in enumerate(budgets[: 4 if "D" in fit.form.inputs else 1]):
        curve = predict(fit, N, np.full_like(N, D)).value
        top.plot(N, curve, color=PAIR[i], linestyle=DASHES[i], label=f"D = {_si(D)}", linewidth=1.4)
    top.set_xscale("log")
    for (D, in_fit), group in table.groupby(["tokens", "in_fit"]):
        color = PAIR[budgets.index(D) % len(PAIR)]
        marker = {"marker": "o" if in_fit else "D", "markerfacecolor": color if in_fit else PAPER, "color": color}
        label = f"{_si(D)} tokens, " + ("in the fit" if in_fit else "held out of the fit")
        top.plot(group[params], group["loss"], linestyle="none", label=label, **marker)
        bottom.plot(group[params], group["gap_percent"], linestyle="none", label=label, **marker)
    bottom.axhline(0, color=MUTED, linewidth=1)
    best, *edges = predict(fit, N, np.full_like(N, budgets[0]))
    for ax, band, room in ((top, edges, 0.05), (bottom, [100 * (edge / best - 1) for edge in edges], 0.5)):
        low, high = ax.get_ylim()  # of the curves and points: an unbounded band must not set the view
        low, high = low - room * (high - low), high + room * (high - low)
        ax.fill_between(N, *np.clip(band, low, high), color=PAIR[0], alpha=0.18, linewidth=0)
        ax.set_ylim(low, high)
    _log_ticks(bottom)
    shapes = {"in the fit": {"marker": "o"}, "held out of it": {"marker": "D", "markerfacecolor": PAPER}}
    shapes = {name: shape for name, shape in shapes.items() if (name == "in the fit") in set(table["in_fit"])}
    top.legend(handles=[Line2D([], [], color=MUTED, linestyle="none", label=k, **shape) for k, shape in shapes.items()])
    top.set_ylabel("held-out loss (nats/token)")
    bottom.set(ylabel="gap to the law (%)", xlabel=f"parameters N ({params.removeprefix('params.')})")
    _label_ends([top], skip="fit")
    return figure


@styled
def fitted(fit: "Fit", rows: pd.DataFrame) -> Figure:
    """A law and the rows it was fitted to (its inputs, loss, predicted, low, high), and below them the residuals.

    Against the input of a law of one input, with the interval of the curve as a band. A law of several has no curve:
    losses are then against those predicted, with the interval of the law at each row as a bar.
    """
    figure = Figure(figsize=(WIDTH, 5.4))
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=(2, 1))
    one, output = len(fit.form.inputs) == 1, fit.form.output
    of = (lambda y, best: 100 * (y / best - 1)) if fit.scale == "log" else (lambda y, best: y - best)
    x, label = (rows[fit.form.inputs[0]], fit.form.inputs[0]) if one else (rows["predicted"], f"{output} by the law")
    panels = (top, lambda y, best: y), (bottom, of)
    for ax, shown in panels:
        ax.plot(x, shown(rows[output], rows["predicted"]), "o", color=PAIR[0], markersize=4, alpha=0.7, label="rows")
        if one:
            log = x.max() > 10 * x.min()
            line = (np.geomspace if log else np.linspace)(x.min(), x.max(), 64)
            best, *band = fit.predict(**{fit.form.inputs[0]: line})
            ax.set_xscale("log" if log else "linear")
        else:
            line = best = np.array([x.min(), x.max()])
        ax.plot(line, shown(best, best), color=PAIR[1], linewidth=1.4, label="law")
        view = ax.get_ylim()  # of rows and law: an unbounded interval must not set it
        style = {"color": PAIR[1], "alpha": 0.25, "zorder": 1, "label": f"{100 * fit.level:g} % interval"}
        if one:
            ax.fill_between(line, *(shown(end, best) for end in band), linewidth=0, **style)
        else:
            bars = (shown(rows[end], rows["predicted"]) for end in ("low", "high"))
            ax.vlines(x, *bars, linewidth=2 if len(rows) < 300 else 0.5, **style)
        ax.set_ylim(view)
    if one and log:
        _log_ticks(bottom)
    top.legend()
    top.set(ylabel=output, title=f"{fit.form.name}: {len(rows)} rows")
    bottom.set(xlabel=label, ylabel="residual (%)" if fit.scale == "log" else "residual")
    figure.align_ylabels([top, bottom])
    return figure


@styled
def head_spectra(measurements: pd.DataFrame, runs: pd.DataFrame) -> Figure | None:
    """Singular values of the head over the largest, sigma_i / sigma_1 against i, along training: paler is earlier.

    A panel a size, the largest head rank of each, the mean over seeds; at most 128 indices a spectrum.
    """
    rows = _largest_rank(joined(measurements, runs, "singular_value"))
    if rows.empty:
        return None
    top = rows.groupby(["run", "step"])["value"].transform("max")
    rows = rows.assign(value=rows["value"] / top, i=rows["index"] + 1)
    keep = np.unique(np.geomspace(1, rows["i"].max(), 128).round().astype(int))
    rows = rows[rows["i"].isin(keep) & (rows["value"] > 0)]
    colors = _colors(rows)
    figure, axes = _grid(list(colors), colors, sharex=False)
    for ax, size in zip(axes, colors, strict=True):
        panel = rows[rows["size"] == size]
        tokens = sorted(panel["tokens"].unique())
        for n, D in enumerate(tokens):
            alpha = 0.25 + 0.75 * n / max(1, len(tokens) - 1)
            mean = panel[panel["tokens"] == D].groupby("i")["value"].mean()
            ax.plot(mean.index, mean, color=colors[size], alpha=alpha, linewidth=1.2, label=f"{_si(D)} tokens")
        ax.set_xscale("log", base=2)
        ax.xaxis.set_major_formatter(FuncFormatter(lambda i, _: f"{i:g}"))
        ax.set_yscale("log")
        _log_ticks(ax, "y")
        key = [ax.lines[n] for n in sorted({0, len(tokens) // 2, len(tokens) - 1})]
        ax.legend(handles=key, loc="lower left", handlelength=1.2, borderaxespad=0.1)
    _name_axes(figure, axes, "index i of the singular value", "σᵢ / σ₁ of the head")
    return figure


@styled
def degeneration(measurements: pd.DataFrame, runs: pd.DataFrame) -> Figure | None:
    """Loss, singular entropy of the head and last-layer anisotropy on one tokens axis, for each size's largest rank.

    Singular entropy over log r: 0 flat, 1 rank one. Anisotropy before the final norm's gain solid, after it dashed.
    """
    metrics = ("heldout_loss", "singular_entropy", "anisotropy_before_gain", "anisotropy_after_gain")
    rows = _largest_rank(_trained(joined(measurements, runs, *metrics)))
    if not rows["metric"].isin(metrics[1:]).any():
        return None
    entropy = rows["metric"].eq("singular_entropy") & (rows["rank"] > 1)
    rows = rows.assign(value=rows["value"].where(~entropy, rows["value"] / np.log(rows["rank"].where(entropy, 2))))
    colors = _colors(rows)
    panels = [
        ("held-out loss\n(nats/token)", metrics[:1]),
        ("singular entropy\n/ log r", metrics[1:2]),
        ("last-layer\nanisotropy", metrics[2:]),
    ]
    panels = [(name, shown) for name, shown in panels if rows["metric"].isin(shown).any()]
    figure = Figure(figsize=(WIDTH, 0.6 + 2 * len(panels)))
    axes = figure.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0]
    for ax, (name, shown) in zip(axes, panels, strict=True):
        for (metric, size), line in rows[rows["metric"].isin(shown)].groupby(["metric", "size"], sort=False):
            dashed = metric == "anisotropy_after_gain"
            label = f"{size}, after gain" if dashed else size
            _line(ax, line, "tokens", label, colors[size], linestyle=DASHES[int(dashed)])
        ax.set_ylabel(name)
        _tokens_axis(ax)
    _label_ends(axes, skip="after gain")
    figure.align_ylabels(axes)
    if len(shown) == 2:
        _key(axes[-1], {"before the final norm's gain": DASHES[0], "after it": DASHES[1]})
    axes[-1].set_xlabel("training tokens")
    return figure


@styled
def loss_against_rank(measurements: pd.DataFrame, runs: pd.DataFrame) -> Figure | None:
    """Final held-out loss (nats/token) against head rank, a line a size: trained jointly solid, and dashed the heads
    retrained on each run's last frozen backbone."""
    rows = _last(joined(measurements, runs, "heldout_loss", "frozen_head_loss"))
    frozen = rows["metric"].eq("frozen_head_loss")
    rows = rows.assign(r=rows["index"].where(frozen, rows["rank"]))
    if rows["r"].nunique() < 2:
        return None
    colors = _colors(rows)
    figure, (ax,) = _grid([""])
    for (metric, size), line in rows.groupby(["metric", "size"], sort=False):
        joint = metric == "heldout_loss"
        label = size if joint else f"{size}, frozen backbone"
        style = {"linestyle": DASHES[not joint], "marker": "o", "markerfacecolor": colors[size] if joint else PAPER}
        _line(ax, line, "r", label, colors[size], **style)
    ax.set_xscale("log", base=2)
    powers = 2 ** np.unique(np.log2(rows["r"]).round().astype(int))
    ax.set_xticks(powers if len(powers) < 9 else powers[::2])
    ax.xaxis.set_major_formatter(FuncFormatter(lambda r, _: f"{r:g}"))
    ax.xaxis.set_minor_locator(NullLocator())
    _label_ends([ax], skip="frozen")
    if frozen.any():
        _key(ax, {"trained with its backbone": DASHES[0], "retrained on the frozen backbone": DASHES[1]})
    _name_axes(figure, [ax], "rank r of the head", "held-out loss (nats/token)")
    return figure


@styled
def anisotropy_by_layer(measurements: pd.DataFrame, runs: pd.DataFrame) -> Figure | None:
    """Mean pairwise cosine at the last checkpoint, from the embedding through every block to after the final gain."""
    rows = _largest_rank(_last(joined(measurements, runs, "anisotropy", "anisotropy_after_gain")))
    if rows.empty:
        return None
    after = rows["metric"].eq("anisotropy_after_gain")
    rows = rows.assign(x=rows["layer"].where(~after, rows["model.depth"] + 1))
    colors = _colors(rows)
    figure, (ax,) = _grid([""])
    for size, line in rows.groupby("size", sort=False):
        _line(ax, line, "x", size, colors[size], marker="o")
    depth, places = rows["model.depth"].max(), sorted(rows["x"].unique())
    if len(places) <= 8 and rows["model.depth"].nunique() == 1:
        names = {0: "embedding", 1: "block 1", depth + 1: "after the\nfinal gain"}
        ax.set_xticks(places, [names.get(x, str(x)) for x in places])
    elif after.any():
        ax.set_title("0: embedding; the last point: after the final gain", color=MUTED)
    _label_ends([ax])
    _name_axes(figure, [ax], "layer", "anisotropy (mean pairwise cosine)")
    return figure


@styled
def weight_decay_probe(measurements: pd.DataFrame, runs: pd.DataFrame) -> Figure | None:
    """Singular entropy of the head (nats) and held-out loss against tokens: colour weight decay, dash learning rate."""
    rows = _trained(joined(measurements, runs, "singular_entropy", "heldout_loss"))
    if not rows["metric"].eq("singular_entropy").any():
        return None
    decays, rates = (sorted(rows[key].unique()) for key in ("train.weight_decay", "train.learning_rate"))
    figure = Figure(figsize=(WIDTH, 4.8))
    axes = figure.subplots(2, 1, sharex=True)
    panels = {"singular_entropy": "singular entropy (nats)", "heldout_loss": "held-out loss (nats/token)"}
    for ax, (metric, name) in zip(axes, panels.items(), strict=True):
        groups = rows[rows["metric"] == metric].groupby(["train.weight_decay", "train.learning_rate"])
        for (wd, lr), line in groups:
            color, dash = PAIR[decays.index(wd) % len(PAIR)], DASHES[(len(rates) - 1 - rates.index(lr)) % len(DASHES)]
            _line(ax, line, "tokens", f"decay {wd:g}, lr {lr:g}", color, linestyle=dash)
        ax.set_ylabel(name)
        _tokens_axis(ax)
    _label_ends(axes)
    axes[-1].set_xlabel("training tokens")
    figure.align_ylabels(axes)
    return figure


@styled
def synthetic_control(measurements: pd.DataFrame) -> Figure | None:
    """The language whose answer is known: loss gap (nats) of rank-limited heads against the tail of the ideal head's
    spectrum, sqrt(sum of sigma_i^2, i > r), with a guide of slope 2. Filled: truncated SVD; hollow: trained."""
    rows = measurements[measurements["run"].str.startswith("synthetic")]
    wide = rows.pivot_table(index=["run", "index"], columns="metric", values="value")
    gap_names = [name for name in ("head_gap_truncated", "head_gap_trained") if name in wide]
    if "head_tail" not in wide or not gap_names:
        return None
    wide = wide[wide["head_tail"] > 1e-6].reset_index()
    figure, (ax,) = _grid([""])
    ax.set(xscale="log", yscale="log")
    for color, (run, points) in zip(PAIR * len(wide), wide.groupby("run"), strict=False):
        for name in gap_names:
            shown = points[points[name] > 0].sort_values("head_tail")
            kind = name.removeprefix("head_gap_")
            face = color if kind == "truncated" else PAPER
            label = f"{run.removeprefix('synthetic-')}, {kind}"
            ax.plot(shown["head_tail"], shown[name], "o", color=color, markerfacecolor=face, markersize=6, label=label)
    x = np.geomspace(wide["head_tail"].min(), wide["head_tail"].max(), 2)
    first = wide[gap_names[0]].where(wide[gap_names[0]] > 0)
    guide = np.exp((np.log(first) - 2 * np.log(wide["head_tail"])).mean()) * x**2
    ax.plot(x, guide, color=MUTED, linewidth=1, zorder=1)
    ax.annotate("slope 2", (x[0], guide[0]), (12, 2), textcoords="offset points", color=MUTED)
    ax.legend(loc="upper left")
    _log_ticks(ax)
    _log_ticks(ax, "y")
    _name_axes(figure, [ax], "tail of the ideal head's spectrum beyond rank r", "loss above the true entropy (nats)")
    return figure


def _trained(rows: pd.DataFrame) -> pd.DataFrame:
    """Without step 0, which a log axis has no place for."""
    return rows[rows["tokens"] > 0]


def _last(rows: pd.DataFrame) -> pd.DataFrame:
    return rows[rows["step"] == rows.groupby(["run", "metric"])["step"].transform("max")]


def _largest_rank(rows: pd.DataFrame) -> pd.DataFrame:
    return rows[rows["rank"] == rows.groupby("size")["rank"].transform("max")]


def _colors(rows: pd.DataFrame) -> dict[str, str]:
    """A colour a size, in the order of `joined`, spread over the whole ramp."""
    sizes = rows["size"].unique()
    places = np.linspace(0, len(RAMP) - 1, len(sizes)).round().astype(int)
    return {size: RAMP[i] for size, i in zip(sizes, places, strict=True)}


def _grid(panels: list[str], colors: dict[str, str] | None = None, sharex: bool = True) -> tuple[Figure, list[Axes]]:
    """One panel, or two a row; each titled in its own colour."""
    n = len(panels)
    rows, columns = -(-n // 2), min(n, 2)
    figure = Figure(figsize=(WIDTH, 3.7 if n == 1 else 2.6 * rows + 0.3))
    axes = figure.subplots(rows, columns, sharex=sharex, sharey=True, squeeze=False).ravel()
    for ax in axes[n:]:
        ax.remove()
    for ax, name in zip(axes, panels, strict=False):
        if name:
            ax.set_title(name, color=(colors or {}).get(name, INK), fontweight="bold")
    return figure, list(axes[:n])


def _line(ax: Axes, rows: pd.DataFrame, x: str, label: str, color: str, **style: object) -> None:
    """The mean over seeds as a line, their range as a band."""
    seeds = rows.groupby(x)["value"].agg(["mean", "min", "max"])
    if (seeds["max"] > seeds["min"]).any():
        ax.fill_between(seeds.index, seeds["min"], seeds["max"], color=color, alpha=0.18, linewidth=0)
    ax.plot(seeds.index, seeds["mean"], label=label, color=color, **style)


def _label_ends(axes: Sequence[Axes], skip: str = "\0") -> None:
    """Each line's name at its right end, moved apart as little as needed (least squares) where ends crowd."""
    lines = [[line for line in ax.lines if skip not in line.get_label()] for ax in axes]
    figure = axes[0].figure
    style = {"textcoords": "offset points", "fontsize": 9, "va": "center", "annotation_clip": False}
    names = [
        [ax.annotate(k.get_label(), k.get_xydata()[-1], (5, 0), color=k.get_color(), **style) for k in shown]
        for ax, shown in zip(axes, lines, strict=True)
    ]
    figure.draw_without_rendering()  # the layout makes room for the names; only then are heights known
    for ax, shown, texts in zip(axes, lines, names, strict=True):
        point, height = figure.dpi / 72, 11 * figure.dpi / 72
        ends = np.array([ax.transData.transform(line.get_xydata()[-1])[1] for line in shown])
        order, apart = np.lexsort((-np.arange(len(ends)), ends)), np.arange(len(ends)) * height
        box, last = ax.get_window_extent(), apart[-1] if len(apart) else 0
        free = isotonic_regression(ends[order] - apart).x if len(ends) else ends
        moved = np.clip(free, box.y0 + height / 2, max(box.y1 - last, box.y0 + height / 2)) + apart
        for k, place in zip(order, moved, strict=True):
            texts[k].set_position((5, (place - ends[k]) / point))


def _key(ax: Axes, names: dict[str, object]) -> None:
    """What a dash means, in ink, where it covers least."""
    handles = [Line2D([], [], color=MUTED, linestyle=dash, label=name) for name, dash in names.items()]
    ax.legend(handles=handles, loc="best")


def _tokens_axis(ax: Axes) -> None:
    ax.set_xscale("log")
    _log_ticks(ax)


def _log_ticks(ax: Axes, which: str = "x") -> None:
    """Plain numbers with k, M, B at the decades, or at 1, 2, 5 where the axis spans fewer than two."""
    axis = ax.xaxis if which == "x" else ax.yaxis
    low, high = axis.get_view_interval()
    axis.set_major_locator(LogLocator(subs=(1,) if high / low > 100 else (1, 2, 5), numticks=12))
    axis.set_major_formatter(FuncFormatter(lambda value, _: _si(value)))
    axis.set_minor_formatter(NullFormatter())


def _name_axes(figure: Figure, axes: list[Axes], x: str, y: str) -> None:
    """Names the axes once: on the panel, or on the figure when it has several."""
    if len(axes) == 1:
        axes[0].set(xlabel=x, ylabel=y)
    else:
        figure.supxlabel(x, fontsize=10)
        figure.supylabel(y, fontsize=10)


def _si(value: float) -> str:
    for scale, suffix in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= scale:
            return f"{value / scale:.3g}{suffix}"
    return f"{value:.3g}"
