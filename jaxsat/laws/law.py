"""A law as an experiment declares it: which points, what is held, what shares its misfit."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from jaxsat.config import InputError
from jaxsat.laws.fit import Fit, fit
from jaxsat.laws.forms import Form, chinchilla


@dataclass(frozen=True)
class Law:
    """`rows`: Results -> a table with a column for each input of the form and one for its output ("loss").

    hold: constants that are not fitted. groups: the column of `rows` whose rows of one value share their misfit (seeds
    and budgets of a width), so that the bootstrap draws them together. misfit: how far a group, or a row, lies off the
    law, where they are too few to tell: see `fit`. held_out: the column whose largest value is left out of the fit, to
    be predicted.
    """

    rows: Callable[[Any], pd.DataFrame]
    form: Form = chinchilla
    hold: Mapping[str, float] = field(default_factory=dict)
    groups: str | None = None
    misfit: float | None = None
    held_out: str | None = None

    def seen(self, rows: pd.DataFrame) -> pd.DataFrame:
        """Those of `rows` that are fitted."""
        return rows if self.held_out is None else rows[rows[self.held_out] < rows[self.held_out].max()]

    def fit(self, rows: pd.DataFrame) -> Fit:
        """Raises InputError as `fit` does, and when `rows` lack a column."""
        for name in (*self.form.inputs, self.form.output, self.groups, self.held_out):
            if name is not None and name not in rows:
                raise InputError(f"the rows of the law have no column {name!r}; they have {', '.join(map(str, rows))}")
        seen = self.seen(rows)
        inputs = {name: seen[name].to_numpy() for name in self.form.inputs}
        groups = None if self.groups is None else seen[self.groups].to_numpy()
        loss = seen[self.form.output].to_numpy()
        return fit(self.form, inputs, loss, hold=self.hold, groups=groups, misfit=self.misfit)
