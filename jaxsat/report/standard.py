"""Sections that any experiment may list; `sections` are those of one that lists none."""

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from jaxsat.report import figures, numbers, tables
from jaxsat.report.chart import Chart
from jaxsat.report.section import Drawing, Section, Table
from jaxsat.results import NotMeasured, Results

if TYPE_CHECKING:
    from jaxsat.laws import Fit
    from jaxsat.laws.law import Law

Part = str | tuple[str, ...]  # names of parts; () is all runs


def sections(laws: Mapping[str, "Law"] | None = None) -> list[Section]:
    return [loss(), *([scaling(laws)] if laws else []), head(), representations()]


def loss(part: Part = ()) -> Section:
    return Section(
        "Loss",
        Chart(
            "heldout_loss", panel="size", dash="rank", part=part, name="loss_against_tokens",
            caption="Held-out loss against training tokens; the band is the range over seeds.",
        ),
        Chart(
            "heldout_loss", part=part, transform=lambda rows: _above_minimum(largest_rank(rows)),
            name="rise_above_minimum", y_label="loss above its own minimum (nats/token)",
            caption="Saturation as it would show itself: how far each run stands above its own lowest loss so far. "
            "Where all lines are flat at zero, none ever rose.",
        ),
        Table("final_losses_by_rank", "Loss at the end of training, by size and head rank; ± the range over seeds.",
              partial(tables.over_seeds, part=part)),
        Table("final_losses", "Every series at its last checkpoint.", partial(tables.final_losses, part=part)),
        text="Held-out loss in nats per token, on the same fixed slice of documents that no run has trained on.",
    )  # fmt: skip


def lambada() -> Section:
    return Section(
        "Pythia, as published",
        Chart(
            "lambada_perplexity", colour="series", log="xy", y_label="perplexity on LAMBADA", name="published_lambada",
            where="metric == 'lambada_perplexity'",
            caption="Zero-shot perplexity on LAMBADA along the training of Pythia models: an outcome of others.",
        ),
        text="From github.com/EleutherAI/pythia, evals/pythia-v1 (Apache-2.0): nothing here is evaluated by us.",
    )  # fmt: skip


def head(part: Part = ()) -> Section:
    return Section(
        "The output head",
        Chart(
            [("heldout_loss", "frozen_head_loss", "frozen_head_truncated_loss")], x="rank", dash="metric", part=part,
            transform=_rank_of_frozen_heads, name="loss_against_rank",
            caption="Loss against the rank of the output head: trained jointly (solid), and on the frozen backbone of "
            "the full-rank model heads retrained at that rank (dashed) and its own truncated to it (dotted).",
        ),
        Chart(
            "singular_value", x="index", colour="tokens", panel="size", part=part, at="every", name="head_spectra",
            transform=lambda rows: _over_largest(largest_rank(rows)),
            x_label="index i of the singular value", y_label="σᵢ / σ₁ of the head",
            caption="Singular values of the head over the largest one, along training; lighter is later.",
        ),
        Chart(
            ["heldout_loss", "singular_entropy", ("anisotropy_before_gain", "anisotropy_after_gain")], dash="metric",
            part=part, transform=lambda rows: _over_log_rank(largest_rank(rows)), name="degeneration",
            y_label=["", "singular entropy / log r", "last-layer anisotropy"],
            caption="Loss, singular entropy over log r, and last-layer anisotropy of each size's largest head.",
        ),
        text="Singular entropy is the divergence of the normalised singular values from uniform: 0 is flat, log r is "
        "rank one, and up is worse. Below: loss, singular entropy and anisotropy on one axis of tokens, so that what "
        "moves together can be seen to.",
    )  # fmt: skip


def representations(part: Part = ()) -> Section:
    return Section(
        "Anisotropy",
        Chart(
            [("anisotropy", "anisotropy_after_gain")], x="layer", part=part, name="anisotropy_by_layer",
            transform=lambda rows: _after_the_last(largest_rank(rows)),
            x_label="layer (0: the embedding; the last: after the final norm's gain)",
            caption="Anisotropy at the end of training, from the embedding to after the final norm's gain.",
        ),
        text="Mean cosine between the representations of different positions, exactly, over the first 8192 held-out "
        "tokens.",
    )  # fmt: skip


def scaling(laws: Mapping[str, "Law"]) -> Section:
    """Of each law of an experiment: its figure, its constants, how well it fits and tells what was held out of it."""
    names = {law: "law" if i == 0 else f"law_{i}" for i, law in enumerate(laws)}
    fitted = lambda results: {name: results.laws[name] for name in laws if name in results.laws}
    rows = lambda results: {name: residuals(laws[name], name, results) for name in fitted(results)}
    return Section(
        "Scaling laws" if len(laws) > 1 else "Scaling law",
        *(
            Drawing(
                file, f"{name}: the law, its interval, and below them by how much each row lies above it.",
                partial(_draw_law, law=laws[name], name=name), partial(residuals, laws[name], name),
            )
            for name, file in names.items()
        ),
        Table("law_constants", "Constants and their intervals.", lambda results: _constants(fitted(results))),
        Table("law_fits", "Root mean square errors of the rows that a law was fitted to and of those held out, the "
              "mean gap of these, and how many of them lie in the interval of a new row.",
              lambda results: tables.quality(fitted(results), rows(results))),
        *(
            Table(f"{file}_residuals", f"{name}: every row, fitted or held out.", partial(residuals, laws[name], name))
            for name, file in names.items()
        ),
        text=lambda results: "\n\n".join(_said(name, law, results) for name, law in laws.items()),
    )  # fmt: skip


def residuals(law: "Law", name: str, results: Results) -> pd.DataFrame:
    """`tables.residuals` of a law by its name. Raises NotMeasured when it was not fitted."""
    return tables.residuals(law, results.law(name), results)


def _draw_law(results: Results, law: "Law", name: str) -> Figure:
    return figures.fitted(results.law(name), residuals(law, name, results))


def _constants(fits: Mapping[str, "Fit"]) -> pd.DataFrame:
    """With an end that is no bound as infinite: zero, below a positive constant, is none."""
    table = tables.constants(fits)
    unbounded = table["low"].eq(0) & table["status"].ne("held")
    return table.assign(low=table["low"].mask(unbounded, -np.inf))


def _said(name: str, law: "Law", results: Results) -> str:
    """A law in words."""
    if name not in results.laws:
        return f"{name}: not fitted; {results.not_fitted.get(name, 'nothing was')}."
    fit, rows = results.laws[name], residuals(law, name, results)
    unit, column = ("%", "gap_percent") if fit.scale == "log" else (fit.form.output, "gap")
    gap, held = rows[column], ~rows["in_fit"]
    rms, mean = (lambda x: f"{np.sqrt((x**2).mean()):.2g} {unit}"), (lambda x: f"{numbers.signed(x.mean())} {unit}")
    said = [f"{name}: {fit.form.formula}, fitted to {fit.rows} rows; root mean square residual {rms(gap[~held])}."]
    if law.hold:
        said.append("Held: " + ", ".join(f"{key} = {value:g}" for key, value in law.hold.items()) + ".")
    if held.any():
        inside = int(rows.loc[held, "inside_new"].sum())
        said.append(
            f"Held out of the fit are the {held.sum()} rows of the largest {law.held_out}: their error is "
            f"{rms(gap[held])}, their mean gap {mean(gap[held])}, and {inside} lie inside the interval of a new row."
        )
    said.append(f"Intervals are {100 * fit.level:g} %, by a bootstrap over {law.groups or 'rows'}, widened to all that "
                "the data do not reject.")  # fmt: skip
    if fit.unidentified:
        said.append(f"The data do not identify {', '.join(fit.unidentified)}.")
    if not fit.converged:
        said.append("NOT CONVERGED: the constants may not be the optimum.")
    return " ".join(said)


# Transforms of a chart's rows.


def largest_rank(rows: pd.DataFrame) -> pd.DataFrame:
    """Of each size the runs whose head has its largest rank, and what has no head rank."""
    if "rank" not in rows:
        return rows
    return rows[rows["rank"].isna() | (rows["rank"] == rows.groupby("size")["rank"].transform("max"))]


def _above_minimum(rows: pd.DataFrame) -> pd.DataFrame:
    rows = rows.sort_values("step", kind="stable")
    rows = rows.assign(value=rows["value"] - rows.groupby("series")["value"].cummin()).sort_index()
    return rows[rows.groupby("series")["step"].transform("nunique") > 1]


def _rank_of_frozen_heads(rows: pd.DataFrame) -> pd.DataFrame:
    """Whose index is their rank."""
    if "rank" not in rows:
        raise NotMeasured("heads of several ranks")
    rows = rows.assign(rank=rows["rank"].where(rows["metric"] == "heldout_loss", rows["index"]))
    if rows["rank"].nunique() < 2:
        raise NotMeasured("heads of several ranks")
    return rows.assign(index=0)


def _over_largest(rows: pd.DataFrame) -> pd.DataFrame:
    """At most 128 indices of a spectrum, counted from 1, at 16 checkpoints."""
    rows = rows.assign(value=rows["value"] / rows.groupby(["series", "step"])["value"].transform("max"))
    rows = rows.assign(index=rows["index"] + 1)
    tokens = np.sort(rows["tokens"].unique())
    kept = tokens[np.unique(np.linspace(0, len(tokens) - 1, 16).round().astype(int))]
    indices = np.geomspace(1, rows["index"].max(), 128).round().astype(int)
    return rows[rows["index"].isin(indices) & rows["tokens"].isin(kept)]


def _over_log_rank(rows: pd.DataFrame) -> pd.DataFrame:
    """Singular entropy over its largest value, log r: 0 flat, 1 rank one."""
    of_head = rows["metric"].eq("singular_entropy") & (rows["rank"] > 1)
    return rows.assign(value=rows["value"].where(~of_head, rows["value"] / np.log(rows["rank"].where(of_head, 2))))


def _after_the_last(rows: pd.DataFrame) -> pd.DataFrame:
    last = rows["metric"].eq("anisotropy_after_gain")
    return rows.assign(layer=rows["layer"].where(~last, rows["model.depth"] + 1), metric="anisotropy")
