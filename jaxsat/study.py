"""A study: one experiment at one scale in one directory: obtain, measure, fit, report. Every stage continues where it
stopped, and does only what is not there yet."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
import pandas as pd
from etils import epath

from jaxsat import experiment as experiments
from jaxsat import hosts, imports, lease, parallel, report
from jaxsat.claims import Judged, judge
from jaxsat.config import InputError, Layout, flatten, validate_layout
from jaxsat.directory import Directory, RunState, runs_table
from jaxsat.experiment import user_code
from jaxsat.jobs import Jobs, Progress
from jaxsat.measure import table
from jaxsat.results import Results
from jaxsat.sweep import Pack


class Study:
    """The stages of one experiment in one directory.

    `share` (i, n): only the packs and computed i, i + n, ..., the rest being other jobs' with the same `out`. `only`:
    what of it is done, see `Experiment.chosen`; the report is of all that the directory has. Raises
    InputError where the directory holds something else than studies, or was begun under settings that give other
    numbers. Nothing is written there before training begins.
    """

    def __init__(
        self,
        name: str,
        scale: str,
        out: epath.PathLike | None = None,
        layout: Layout = Layout(),
        share: tuple[int, int] = (1, 1),
        only: Sequence[str] = (),
    ):
        hosts.together(lambda: self._open(name, scale, out, only))
        config = {"experiment": self.experiment.name, "scale": scale, "out": str(self.out), "share": share}
        for i, run in enumerate(self.chosen.runs.values()):
            config |= {f"{key} of run {i}": value for key, value in flatten(run).items()}
        config["measures"] = [m.key for m in self.chosen.measures]
        config |= flatten(validate_layout(layout), "layout.") | {"version of jax": jax.__version__}
        hosts.agree(config | parallel.number_settings())
        sizes = lambda run, n_runs: parallel.pack_size(run, n_runs, layout, jax.devices())
        asked = self.chosen.runs
        plan = hosts.first(lambda: [[run.id for run in p.runs] for p in self.directory.grow(asked.values(), sizes)])
        self.directory.runs |= asked
        self.packs = [Pack(tuple(self.directory.runs[id] for id in ids)) for ids in plan]
        here = {pack.id for pack in self.directory.packs}
        self.directory.packs += [pack for pack in self.packs if pack.id not in here]
        self.share = i, n = share
        computed = self.chosen.computed[i - 1 :: n]
        writer = f"{self.name}-{i}-of-{n}"
        self.jobs = Jobs(self.directory, self.packs[i - 1 :: n], frozenset(asked), self.chosen.measures, computed,
                         writer, self._again, layout, self.chosen.tasks,
                         {asked.id: asked for asked in self.chosen.imports})  # fmt: skip

    def _open(self, name: str, scale: str, out: epath.PathLike | None, only: Sequence[str]) -> None:
        self.experiment = experiments.load(name, scale)
        self.name, self._name = f"{self.experiment.name}-{scale}", name
        self.command = f"jaxsat reproduce {name}" + (f" --scale {scale}" if scale != "laptop" else "")
        self._out = f" --out {out}" if out else ""
        self._again = self.command + "".join(f" --only {name}" for name in only) + self._out
        self.out = epath.Path(out or f"runs/{self.experiment.name}" + ("" if scale == "laptop" else f"-{scale}"))
        self.directory = Directory.open(self.out)
        whole = self.experiment.beside(self.directory.runs)
        self.chosen = whole.chosen(only)
        begun = self.directory.experiments.get(self.name, {"parts": {}})["parts"].keys()
        self.experiment = whole.reported(self.chosen, begun, self.directory.runs.keys())
        found = {asked.id: imports.resolve(self.directory, asked) for asked in self.experiment.imports}
        self.experiment, self.chosen = self.experiment.with_imports(found), self.chosen.with_imports(found)
        self.directory.know_settings(parallel.number_settings())
        self.directory.experiments[self.name] = {"command": self.command, "parts": self.experiment.parts}

    def train(self, progress: Progress, tensorboard: bool = False) -> bool:
        """Whether there was anything to train."""
        if self._finished():
            return False
        with user_code(self.experiment.file), lease.held(self.out, "train", self.share):
            self.jobs.obtain(progress)
            hosts.first(lambda: self.directory.mend_logs(self.chosen.runs))
            return self.jobs.train(progress, tensorboard)

    def measure(self, progress: Progress, wait: bool = False) -> None:
        """`wait`: for another process that measures, rather than refuse."""
        if self._finished():
            return
        waiting = (lambda who: progress("measure", 0.0, who)) if wait else None
        with user_code(self.experiment.file), lease.held(self.out, "measure", self.share, waiting):
            self.jobs.measure(progress)

    def _finished(self) -> bool:
        """Where it is, no lease is taken: it may lie where nothing is written."""
        if finished := hosts.first(self.jobs.all_done):
            self.jobs.check_texts()
        return finished

    def pending(self) -> list[str]:
        """What the stages would do, and which claims cannot be tested, in lines."""
        self.jobs.check_texts()
        return self.jobs.pending() + self.experiment.untestable(self.results(fit=False))

    def results(self, fit: bool = True) -> Results:
        """All that was found so far, with the laws fitted."""
        found = self._found(self.directory.measurements(), self.directory.states(self.experiment.runs))
        return self.experiment.fitted(found) if fit else found

    def _found(self, rows: pd.DataFrame, states: Mapping[str, RunState]) -> Results:
        """Of the table what this experiment asks for. Raises InputError where two measures give one number."""
        runs = runs_table(self.directory, self.experiment.parts, states)
        series = {*runs.index, *(c.name for c in self.experiment.computed)}
        makers = {"", *(m.key for m in (*self.experiment.measures, *self.experiment.computed))}
        asked = rows["measure"].isin(makers) | rows["measure"].str.startswith("items ")  # of `jaxsat evaluate`
        rows = rows[rows["series"].isin(series) & asked & np.isfinite(rows["value"])]
        if (again := rows.duplicated([key for key in table.KEY if key != "measure"], keep=False)).any():
            metric, makers = rows.loc[again, "metric"].iloc[0], sorted(set(rows.loc[again, "measure"]))
            none = f"rows of no measure in {self.out}/measurements"
            by = " and ".join(key.partition("@")[0] or none for key in makers)
            raise InputError(f"{self.name}: {by} both measure {metric!r}; give one of them another name")
        # Imports are called by their names.
        names = {id: run.imported.name for id, run in self.experiment.runs.items() if run.imported.name}
        rows = rows.drop(columns=["measure", "version"]).reset_index(drop=True)
        rows["series"] = rows["series"].replace(names)
        parts = {part: tuple(names.get(id, id) for id in ids) for part, ids in self.experiment.parts.items()}
        return Results(self.experiment.scale, runs.rename(index=names), rows, parts)

    def fit(self) -> Results | None:
        """Results with the experiment's laws, on the first of many hosts. The report keeps their constants."""
        found: list[Results] = []
        hosts.first(lambda: found.append(self._measured(self.results())))
        return found[0] if found else None

    def _measured(self, results: Results) -> Results:
        if results.measurements.empty:
            raise InputError(f"{self.out} has no measurements of {self.experiment.name} yet: {self._again}")
        return results

    def report(self, to: epath.PathLike | None = None) -> epath.Path:
        """Writes the report, if nothing that it is made of has changed since the last one; the path of its page.

        By default to DIR/reports/<experiment>-<scale>/, and to DIR/report/ if the directory was made for this
        experiment, whose runs decide that, not its name.
        """
        return epath.Path(hosts.first(lambda: str(self._report(to))))

    def _report(self, to: epath.PathLike | None) -> epath.Path:
        e, folders = self.experiment, [epath.Path(to)] if to else [self.out / "reports" / self.name]
        if not to and self._made_for_this():
            folders.append(self.out / "report")
        rows, states, launches, account = read = self._read()  # every file of the directory, once
        results, notices = self._measured(self._found(rows, states)), self.notices(*read)
        provenance = {"command": self.command} | self.directory.provenance(e.runs, launches, account)
        sources = e.hash(results, [notices, provenance])
        if not all(report.sources_of(folder / "index.html") == sources for folder in folders):
            with user_code(e.file):
                results = e.fitted(results)
                judged = [judge(claim, results) for claim in e.claims]
                sections = e.sections or report.standard.sections(e.laws)
                what = f"{len(e.runs)} models" if e.runs else "Computed"
                intro = f"{what} at the scale “{e.scale}”, by `{self.command}`."
                report.write(folders, e.title, intro, sections, judged, provenance, results,
                             command=self.command + self._out, larger=self._beyond(judged), notices=notices,
                             sources=sources)  # fmt: skip
        return folders[-1] / "index.html"

    def _beyond(self, judged: Sequence[Judged]) -> dict[str, str]:
        """Of each claim that is open the command of the next larger scale that has what it needs."""
        e, found = self.experiment, {}
        is_open = {j.claim.id for j in judged if j.verdict in ("not testable at this scale", "undecided")}
        for larger in experiments.larger(self._name, e) if is_open else ():
            runs = runs_table(Directory(self.out, dict(larger.runs)), larger.parts)
            results = Results(larger.scale, runs, table.empty(), larger.parts)
            for claim in larger.claims:
                if claim.id in is_open - found.keys() and not e.lacking(claim, results):
                    only = f" --only {claim.id}" if {*claim.of} & {*larger.optional} else ""
                    found[claim.id] = f"jaxsat reproduce {self._name} --scale {larger.scale}{only}"
        return found

    def _made_for_this(self) -> bool:
        name, first = next(iter(self.directory.experiments.items()))
        theirs = {id for members in first["parts"].values() for id in members}
        return name == self.name or bool(theirs) and theirs <= set(self.experiment.runs)

    def _read(self) -> tuple[Any, ...]:
        """Table, states, launches and account."""
        runs, of = self.experiment.runs, self.directory
        return of.measurements(), of.states(runs), of.launches(runs), of.account(runs)

    def notices(self, *read: Any) -> list[str]:
        """What went wrong quietly. `read`: what `_read` gives, where it is there already."""
        rows, states, launches, account = read or self._read()
        said = self.directory.notices(states, launches, account, self._again) + self.jobs.notices(rows, states)
        return said + self.chosen.notices(rows, self._again)
