"""The flags of `jaxsat fit TABLE`, apart from what they do, which takes seconds to import."""

from dataclasses import dataclass
from typing import Annotated, Literal

import tyro

Repeatable = Annotated[tuple[str, ...], tyro.conf.UseAppendAction]
Column = Annotated[str, tyro.conf.arg(metavar="COL")]
MaybeColumn = Annotated[str | None, tyro.conf.arg(metavar="COL", help_behavior_hint="(default: none)")]


@dataclass(frozen=True)
class Options:
    """Of a table. Other inputs, of a form of your own, are the columns of their names."""

    form: str = "chinchilla"
    """chinchilla, kaplan, data_constrained (N, D and U); power_law, power_law_floor, broken_power_law (x);
    accuracy_linear, accuracy_sigmoid (of the loss); or FILE.py:NAME, a jaxsat.laws.Form of your own."""
    n: Column = "N"
    """Parameters."""
    d: Column = "D"
    """Training tokens."""
    u: Column = "U"
    """Unique training tokens."""
    x: Column = "x"
    """The input of a form of one input."""
    loss: Column = "loss"
    """What is fitted; the input of the accuracy forms."""
    accuracy: Column = "accuracy"
    """What the accuracy forms fit."""
    flops: MaybeColumn = None
    """Training FLOPs C, where there is no column of tokens: D = C / (6 N)."""
    where: Annotated[Repeatable, tyro.conf.arg(metavar="RULE")] = ()
    """Keep only the rows where "COLUMN < VALUE" (or <=, >, >=, ==, !=). Repeatable."""
    hold: Annotated[Repeatable, tyro.conf.arg(metavar="NAME=VALUE")] = ()
    """A constant that is not fitted, such as E=1.69. Repeatable."""
    family: MaybeColumn = None
    """Families of models: each has its own constants --own and shares the others."""
    own: Annotated[Repeatable, tyro.conf.arg(metavar="NAME")] = ()
    """A constant that each family has for itself. Repeatable."""
    weight: MaybeColumn = None
    """Weights of the rows."""
    delta: float = 1e-3
    """Where Huber terms turn linear, in the unit of the residuals."""
    residuals: Annotated[Literal["log", "linear"] | None, tyro.conf.arg(help_behavior_hint="(default: the form's)")] = (
        None
    )
    """Of log losses, or of losses."""
    bootstrap: int = 1000
    """Resamples."""
    group: MaybeColumn = None
    """Resample whole groups of rows, such as seeds or runs, not rows."""
    misfit: Annotated[float | None, tyro.conf.arg(help_behavior_hint="(default: as the rows tell)")] = None
    """How far a group, or a row, lies off the law (standard deviation; 0.01 is 1 %), where they are too few to tell."""
    level: float = 0.9
    """Of every interval."""
    seed: int = 0
    """Of the resamples."""
    predict: Annotated[Repeatable, tyro.conf.arg(metavar="N=..,D=..")] = ()
    """Print the law at this point, with its interval. Repeatable."""
    held_out: Annotated[str | None, tyro.conf.arg(metavar="COL|RULE", help_behavior_hint="(default: none)")] = None
    """Also fit without the rows of the largest COL, or those of a RULE as in --where, and predict them."""
    gaps: Annotated[str | None, tyro.conf.arg(metavar="N", help_behavior_hint="(default: none)")] = None
    """A row a checkpoint, not a model: fit chinchilla to the last one of each --run of N parameters or more, and say by
    how many per cent the final and the best one of each smaller run lie above it. E, B and beta are those of Hoffmann
    et al., unless --hold says which are held (--hold none: none)."""
    run: MaybeColumn = None
    """What tells the runs apart, for --gaps."""
    compare: Annotated[Repeatable, tyro.conf.arg(metavar="FORM")] = ()
    """Also compare with this form, by AICc and cross-validation. Repeatable."""
    figure: Annotated[str | None, tyro.conf.arg(metavar="FILE", help_behavior_hint="(default: none)")] = None
    """Draw the law with its intervals, and the residuals, to a new .svg, .png or .pdf."""
    json: bool = False
    """Print JSON, and nothing else: form, constants, objective, rows, converged, predictions. An end that
    is no bound is null."""


def is_table(name: str) -> bool:
    return name.lower().removesuffix(".gz").endswith((".csv", ".tsv", ".parquet", ".jsonl"))
