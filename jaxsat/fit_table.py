"""`jaxsat fit TABLE`: a law fitted to the rows of a file, and what is said of it."""

import math
import os
import runpy
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from jaxsat import tables
from jaxsat.config import InputError, unknown
from jaxsat.fit_options import Options

if TYPE_CHECKING:
    from jaxsat.laws import Choice, Fit, Form, Gaps, HeldOut


_SHOWN = 20  # rows held out


@dataclass(frozen=True, eq=False)
class Found:
    law: "Fit"
    rows: pd.DataFrame  # a row that was fitted a row: its inputs, what was fitted, predicted, low, high
    left_out: dict[str, int]  # rule -> rows
    copies: int  # rows of the table that are equal to an earlier one; they are fitted too
    predictions: list[dict[str, Any]]  # a point a dict: its inputs, value, low, high
    held_out: "HeldOut | None"
    choice: "Choice | None"
    gaps: "Gaps | None" = None

    def document(self) -> dict[str, Any]:
        """`Fit.document`; `left_out`, `held_out`, `choice` and `gaps` where asked for, `copies` where there are."""
        document = self.law.document() | {"predictions": self.predictions}
        if self.left_out:
            document["left_out"] = self.left_out
        if self.copies:
            document["copies"] = self.copies
        if self.held_out:
            rows, error, coverage = len(self.held_out.rows), self.held_out.error_percent, self.held_out.coverage
            document["held_out"] = {"rows": rows, "error_percent": error, "coverage": coverage}
        if self.gaps:
            ends = {when: getattr(self.gaps, when)._asdict() for when in ("final", "best")}
            document["gaps"] = ends | {"runs": self.gaps.series.to_dict("records")}
        if self.choice:
            finite = self.choice.table.astype(object).where(self.choice.table != np.inf, None)  # AICc of too few rows
            document["choice"] = {"winner": self.choice.winner, "forms": finite.to_dict("records")}
        return document


def fit_table(path: str, options: Options) -> Found:
    """Reads, fits, predicts and draws. Raises InputError: whatever is wrong with the table, its columns or the options.

    Everything is checked before anything is fitted.
    """
    _start()
    from jaxsat import laws

    if options.figure:
        _check_figure(Path(options.figure))
    table, left_out = tables.where(tables.read(path), options.where)
    if options.gaps is not None:
        return _gaps(table, left_out, options)
    if options.run is not None:
        raise InputError("--run tells runs apart for --gaps N; --group is what a fit resamples")
    form, rivals, families = _form(options.form), [_form(name) for name in options.compare], []
    if (options.family is None) != (not options.own):
        raise InputError("--family and --own go together, such as --family suite --own E")
    if options.family is not None:
        if rivals:
            raise InputError("--compare takes forms without families: leave out --family")
        families = sorted(tables.labels(table, options.family, "--family").unique())
        form = laws.by_family(form, families, options.own)
    inputs, target = _columns(form, table, options, families)
    rivals_inputs = [_columns(rival, table, options, [])[0] for rival in rivals]
    if any(rival.output != form.output for rival in rivals):
        raise InputError(f"--compare takes forms of the {form.output}, as {form.name} is")
    hold = {name: _number(value, "--hold") for name, value in _pairs(options.hold, form.names, "--hold").items()}
    shared = {"hold": hold, "delta": options.delta, "residuals": options.residuals, "seed": options.seed}
    if options.weight is not None:
        shared["weights"] = tables.numbers(table, options.weight, flag="--weight")
    if options.group is not None:
        shared["groups"] = tables.labels(table, options.group, "--group").to_numpy()
    points = [_point(form, text, families) for text in options.predict]
    held_R = None if options.held_out is None else _held(table, options.held_out)

    resampled = {"bootstrap": options.bootstrap, "level": options.level, "misfit": options.misfit}
    law = laws.fit(form, inputs, target, **shared, **resampled)
    predictions = law.document(points)["predictions"]
    for prediction in predictions if families else ():
        prediction["family"] = families[int(prediction["family"]) - 1]
    held = None if held_R is None else laws.held_out(form, inputs, target, held_R, **shared, **resampled)
    every = {name: x_R for each in (inputs, *rivals_inputs) for name, x_R in each.items()}
    choice = laws.choose([form, *rivals], every, target, **shared) if rivals else None
    predicted, low, high = law.predict(**inputs)
    rows = pd.DataFrame(inputs | {form.output: target, "predicted": predicted, "low": low, "high": high})
    if options.figure:
        _draw(law, rows, Path(options.figure))
    return Found(law, rows, left_out, tables.copies(table), predictions, held, choice)


def _gaps(table: pd.DataFrame, left_out: dict[str, int], options: Options) -> Found:
    from jaxsat import laws
    from jaxsat.laws.gaps import HOFFMANN

    if options.run is None:
        raise InputError("--gaps needs --run COL, which tells the runs apart")
    for flag, given in {"--form": options.form != "chinchilla", "--family": options.family, "--weight": options.weight,
                        "--held-out": options.held_out, "--compare": options.compare}.items():  # fmt: skip
        if given:
            raise InputError(f"--gaps is of chinchilla, fitted to the larger models: leave out {flag}")
    least, form = _number(options.gaps, "--gaps"), laws.FORMS["chinchilla"]
    inputs, loss_R = _columns(form, table, options, [])
    told = [text for text in options.hold if text != "none"]
    hold = {name: _number(value, "--hold") for name, value in _pairs(told, form.names, "--hold").items()}
    curves = pd.DataFrame({"series": tables.labels(table, options.run, "--run").to_numpy()} | inputs | {"loss": loss_R})
    shared = {"bootstrap": options.bootstrap, "level": options.level, "misfit": options.misfit, "seed": options.seed}
    found = laws.gaps(curves, least, hold=hold if options.hold else HOFFMANN, **shared)
    points = [_point(form, text, []) for text in options.predict]
    last = curves.sort_values("D").groupby("series").tail(1).query(f"N >= {least}")
    predicted, low, high = found.law.predict(N=last["N"].to_numpy(), D=last["D"].to_numpy())
    rows = last.drop(columns="series").assign(predicted=predicted, low=low, high=high)
    if options.figure:
        _draw(found.law, rows, Path(options.figure))
    predictions = found.law.document(points)["predictions"]
    return Found(found.law, rows, left_out, tables.copies(table), predictions, None, None, found)


def _start() -> None:
    """The accelerator is left alone, and compiled programs are kept on disk where that can be."""
    import jax

    from jaxsat.corpus import cache_dir

    jax.config.update("jax_platforms", "cpu")
    if jax.config.jax_compilation_cache_dir is not None:
        return
    try:
        compiled = cache_dir() / "compiled"
        compiled.mkdir(exist_ok=True)
    except (InputError, OSError):
        return
    if os.access(compiled, os.W_OK):
        jax.config.update("jax_compilation_cache_dir", str(compiled))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


def _form(name: str) -> "Form":
    from jaxsat.laws import FORMS, Form

    file, colon, variable = name.rpartition(":")
    if not colon:
        if name not in FORMS:
            raise unknown("form", name, FORMS)
        return FORMS[name]
    if not Path(file).is_file():
        raise InputError(f"--form {name}: no file {file}")
    try:
        form = runpy.run_path(file).get(variable)
    except SyntaxError as e:
        raise InputError(f"{e.filename}, line {e.lineno}: {e.msg}") from None
    if not isinstance(form, Form):
        raise InputError(f"--form {name}: {file} has no jaxsat.laws.Form named {variable!r}")
    return form


def _columns(
    form: "Form", table: pd.DataFrame, options: Options, families: Sequence[str]
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """The inputs of the form, and what it is fitted to, out of the columns that the options name."""
    names = {"N": options.n, "D": options.d, "U": options.u, "x": options.x}
    names |= {"loss": options.loss, "accuracy": options.accuracy}
    flag = lambda name: f"--{name.lower()}" if name in names else ""
    inputs = {}
    for name in form.inputs:
        if name == "family" and families:
            inputs[name] = 1.0 + np.searchsorted(families, table[options.family].astype(str))
        elif name == "D" and options.flops is not None:
            flops_R = tables.numbers(table, options.flops, flag="--flops")
            inputs[name] = flops_R / (6 * tables.numbers(table, options.n, flag="--n"))
        else:
            inputs[name] = tables.numbers(table, names.get(name, name), flag=flag(name))
    positive = (options.residuals or form.scale) == "log"
    return inputs, tables.numbers(table, names.get(form.output, form.output), positive, flag(form.output))


def _pairs(texts: Sequence[str], known: Sequence[str], flag: str) -> dict[str, str]:
    """NAME=VALUE texts, or several in one with commas between, as a dict."""
    found = {}
    for name, _, value in (part.partition("=") for text in texts for part in text.split(",")):
        if not name or not value:
            raise InputError(f"{flag} {name}: must be NAME=VALUE, such as {flag} {known[0]}=1")
        if name not in known:
            raise unknown(f"name in {flag}", name, known)
        found[name] = value
    return found


def _point(form: "Form", text: str, families: Sequence[str]) -> dict[str, float]:
    texts = _pairs([text], form.inputs, "--predict")
    missing = [name for name in form.inputs if name not in texts]
    if missing:
        raise InputError(f"--predict {text}: {form.name} needs {missing[0]} too")
    if families:
        if texts["family"] not in families:
            raise unknown("family", texts["family"], families)
        texts["family"] = str(1 + families.index(texts["family"]))
    point = {name: _number(value, "--predict") for name, value in texts.items()}
    if not all(0 < value < math.inf for value in point.values()):
        raise InputError(f"--predict {text}: must be positive finite numbers")
    return point


def _number(text: str, flag: str) -> float:
    value = tables.number(text)
    if math.isnan(value):
        raise InputError(f"{flag}: {text!r} is not a number")
    return value


def _held(table: pd.DataFrame, rule: str) -> np.ndarray:
    """Of each row, whether it has the largest value of a column, or satisfies a rule."""
    if rule in table:
        values_R = tables.numbers(table, rule, flag="--held-out")
        return values_R == values_R.max()
    if not any(sign in rule for sign in "<>="):
        tables.column(table, rule, "--held-out")
    return table.index.isin(tables.where(table, [rule], "--held-out")[0].index)


def _check_figure(path: Path) -> None:
    if path.suffix not in (".svg", ".png", ".pdf"):
        raise InputError(f"--figure {path}: must end in .svg, .png or .pdf")
    if path.exists():
        raise InputError(f"--figure {path}: exists; choose another name, or remove it")
    if not path.parent.is_dir():
        raise InputError(f"--figure {path}: no directory {path.parent}")


def _draw(law: "Fit", rows: pd.DataFrame, path: Path) -> None:
    from jaxsat.report import figures, page

    path.write_bytes(page.render(figures.fitted(law, rows), path.suffix[1:]))


def summary(found: Found) -> list[str | pd.DataFrame]:
    """What is said of a fit, in order: lines, and tables."""
    from jaxsat.report.tables import constants

    law, free = found.law, [name for name in found.law.constants if name not in found.law.held]
    of_one = np.exp(law.residuals) - 1 if law.scale == "log" else law.residuals
    error = float(np.sqrt(np.mean(of_one**2)))
    said: list[str | pd.DataFrame] = [f"{law.form.formula}; {law.form.source}"]
    said += [f"left out: {rows} rows, which are not {rule!r}" for rule, rows in found.left_out.items()]
    if found.copies:
        said.append(f"{found.copies} rows are equal to earlier ones in every column, and are fitted too")
    said.append(constants({"": law})[["constant", "value", "low", "high", "status"]])
    for name in law.unidentified:
        low, high = law.constants[name][1:]
        bounded = low > 0 and high < math.inf if law.form.positive(name) else math.isfinite(high - low)
        what = "its interval spans a factor above 100" if bounded else "its interval is unbounded"
        said.append(f"these rows do not identify {name}: {what}, from {low:.4g} to {high:.4g}")
    said.append(_ended(law))
    error = f"{100 * error:.3g} %" if law.scale == "log" else f"{error:.3g}"
    level = f"{100 * law.level:g} % intervals"
    said.append(f"{law.rows} rows, {len(free)} constants fitted, {level}; root mean square error {error}")
    said.append(f"objective {law.objective:.6g}, the sum of Huber terms of {law.scale} residuals")
    if {"A", "B", "alpha", "beta"} <= law.constants.keys():
        said.append(_optimum(law))
    if found.predictions:
        said += ["predictions, with the interval of the law:", pd.DataFrame(found.predictions)]
    if found.held_out:
        held, of = found.held_out, len(found.held_out.rows)
        said += [
            f"{of} rows held out: root mean square error {held.error_percent:.3g} %, {int(held.rows['inside'].sum())} "
            f"of {of} in the interval of a new {law.form.output}" + (f"; the first {_SHOWN}:" if of > _SHOWN else ":"),
            held.rows[:_SHOWN],
        ]
    if found.gaps:
        for when in ("final", "best"):
            value, low, high = getattr(found.gaps, when)
            said.append(f"{when} checkpoints of the {len(found.gaps.series)} smaller runs: {value:+.2f} % from the law "
                        f"of the larger, {low:+.2f} to {high:+.2f}")  # fmt: skip
        said.append(found.gaps.series[["series", "N", "final_gap", "final_low", "final_high", "best_D", "best_gap"]])
    if found.choice:
        winner = found.choice.winner
        said += ["choice, by AICc (above the least) and the error of 10-fold cross-validation:", found.choice.table]
        said.append(f"these rows prefer {winner}" if winner else "these rows cannot tell the forms apart")
    return said


def _ended(law: "Fit") -> str:
    if law.converged:
        return "converged"
    if not law.finished:
        return "NOT CONVERGED: the search ended before a minimum, so the constants may not be the optimum"
    return (
        f"NOT CONVERGED: residuals are {law.roughness:.0f} times what a smooth curve through the rows leaves: another "
        "law, or an optimum that was not found"
    )


def _optimum(law: "Fit") -> str:
    from jaxsat.laws import optimum

    try:
        found = optimum(law)
    except InputError as e:
        return str(e)
    a, g = (f"{found[name].value:.4g} ({found[name].low:.4g} to {found[name].high:.4g})" for name in ("a", "G"))
    return f"least loss of C = 6 N D FLOPs at N = G (C/6)^a, a {a}, G {g}"
