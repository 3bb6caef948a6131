"""A study: one experiment at one scale in one directory: obtain, measure, fit, report. Every stage continues where it
stopped, and does only what is not there yet."""

import dataclasses
import json
from importlib import metadata

import jax
import numpy as np
import pandas as pd
from etils import epath

from jaxsat import experiment as experiments
from jaxsat import hosts, parallel, report
from jaxsat.claims import judge
from jaxsat.config import InputError, Layout, flatten, validate_layout
from jaxsat.directory import Directory, runs_table
from jaxsat.jobs import Jobs, Progress
from jaxsat.measure import table
from jaxsat.results import NotMeasured, Results
from jaxsat.sweep import Pack, describe_packs
from jaxsat.train import write_atomically


class Study:
    """The stages of one experiment in one directory.

    `share` (i, n): only the packs and computed i, i + n, ..., the rest being other jobs' with the same `out`. Raises
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
    ):
        hosts.together(lambda: self._open(name, scale, out))
        config = {"experiment": self.experiment.name, "scale": scale, "out": str(self.out), "share": share}
        for i, run in enumerate(self.experiment.runs.values()):
            config |= {f"{key} of run {i}": value for key, value in flatten(run).items()}
        config |= flatten(validate_layout(layout), "layout.") | {"version of jax": jax.__version__}
        hosts.agree(config | parallel.number_settings())
        sizes = lambda run, n_runs: parallel.pack_size(run, n_runs, layout, jax.devices())
        asked = self.experiment.runs
        plan = hosts.first(lambda: [[run.id for run in p.runs] for p in self.directory.grow(asked.values(), sizes)])
        self.directory.runs |= asked
        self.packs = [Pack(tuple(self.directory.runs[id] for id in ids)) for ids in plan]
        here = {pack.id for pack in self.directory.packs}
        self.directory.packs += [pack for pack in self.packs if pack.id not in here]
        i, n = share
        computed = self.experiment.computed[i - 1 :: n]
        self.jobs = Jobs(self.directory, self.packs[i - 1 :: n], frozenset(asked), self.experiment.measures, computed,
                         f"{i}-of-{n}", self.command + self._out, layout)  # fmt: skip

    def _open(self, name: str, scale: str, out: epath.PathLike | None) -> None:
        self.experiment = experiments.load(name, scale)
        key = f"{self.experiment.name}-{scale}"
        self._name = name
        self.command = f"jaxsat reproduce {name}" + (f" --scale {scale}" if scale != "laptop" else "")
        self._out = f" --out {out}" if out else ""
        self.out = epath.Path(out or f"runs/{self.experiment.name}" + ("" if scale == "laptop" else f"-{scale}"))
        self.directory = Directory.open(self.out)
        self.directory.know_settings(parallel.number_settings())
        asked = {"command": self.command, "parts": self.experiment.parts}
        self.directory.experiments[key] = asked
        self.name = key

    # The stages.

    def train(self, progress: Progress, tensorboard: bool = False) -> None:
        self.jobs.train(progress, tensorboard)

    def measure(self, progress: Progress) -> None:
        self.jobs.measure(progress)

    def pending(self) -> list[str]:
        """What the stages would do, in lines: what trains, what is measured and computed, which claims cannot be
        tested."""
        done = self.jobs.done()
        packs = self.jobs.untrained()
        said = [f"train {describe_packs(packs)}" if packs else "train nothing: all runs are at their end"]
        for pack in packs:
            m = pack.model
            said.append(f"  width {m.width} depth {m.depth} x {len(pack.runs)} runs, {pack.runs[0].train.steps} steps: "
                        + ", ".join(run.id for run in pack.runs))  # fmt: skip
        for m in self.experiment.measures:
            n = sum(len(runs) for _, todo in self.jobs.unmeasured(done, {} if m.at == "best" else None)
                    for jobs in todo.values() for measure, runs in jobs if measure.name == m.name)  # fmt: skip
            of = "the best checkpoints" if m.at == "best" else f"{n} checkpoints"
            said.append(f"measure {m.name} (version {m.version}) of {of}")
        said += [f"compute {c.name} (version {c.version})" for c in self.jobs.uncomputed(done)]
        results = self.results(fit=False)
        for claim in self.experiment.claims:
            if lacking := _lacking(claim, results):
                said.append(f"claim {claim.id} cannot be tested at this scale: {lacking}")
        return said

    def results(self, fit: bool = True) -> Results:
        """All that was found so far, with the laws fitted. Raises InputError where there is nothing at all."""
        runs = runs_table(self.directory, self.experiment.parts)
        rows = self.directory.measurements()
        names = {c.name for c in self.experiment.computed}
        rows = rows[rows["series"].isin({*runs.index, *names}) & np.isfinite(rows["value"])]
        rows = rows.drop(columns=["measure", "version"]).reset_index(drop=True)
        found = Results(self.experiment.scale, runs, rows, self.experiment.parts)
        return self._fitted(found) if fit else found

    def _fitted(self, results: Results) -> Results:
        fits, why = {}, {}
        for name, law in self.experiment.laws.items():
            try:
                fits[name] = law.fit(law.rows(results))
            except NotMeasured as e:
                why[name] = f"needs {e}"
            except InputError as e:
                why[name] = str(e)
        return dataclasses.replace(results, laws=fits, not_fitted=why)

    def fit(self) -> Results:
        """Results with the experiment's laws, on the first of many hosts; DIR/laws.json holds their constants."""
        found: list[Results] = []
        hosts.first(lambda: found.append(self._fit()))
        return found[0] if found else Results(self.experiment.scale, pd.DataFrame(), pd.DataFrame())

    def _fit(self) -> Results:
        self._must_hold_measurements()
        results = self.results()
        documents = {name: json.loads(fit.to_json()) for name, fit in results.laws.items()}
        if documents:
            write_atomically(self.out / "laws.json", json.dumps(documents, indent=1))
        return results

    def _must_hold_measurements(self) -> None:
        if not self.directory.exists or self.results(fit=False).measurements.empty:
            raise InputError(f"{self.out} has no measurements of {self.experiment.name} yet: {self.command}{self._out}")

    def report(self, to: epath.PathLike | None = None) -> epath.Path:
        """Writes the report, if nothing that it is made of has changed since the last one; the path of its page.

        By default to DIR/reports/<experiment>-<scale>/, and to DIR/report/ if the directory was made for this
        experiment, whose runs decide that, not its name.
        """
        return epath.Path(hosts.first(lambda: str(self._report(to))))

    def _report(self, to: epath.PathLike | None) -> epath.Path:
        self._must_hold_measurements()
        ids = list(self.experiment.runs)
        folders = [epath.Path(to)] if to else [self.out / "reports" / self.name]
        if not to and self._made_for_this():
            folders.append(self.out / "report")
        page = folders[-1] / "index.html"
        versions = json.dumps([metadata.version("jaxsat"), self.name, self.command])
        sources = self.directory.sources(ids, self.experiment.file.read_bytes(), versions.encode())
        if all(report.sources_of(folder / "index.html") == sources for folder in folders):
            return page
        results = self.results() if to else self._fit()
        judged = [judge(claim, results) for claim in self.experiment.claims]
        sections = self.experiment.sections or report.standard.sections(self.experiment.laws)
        intro = f"{len(ids)} models at the scale “{self.experiment.scale}”, by `{self.command}`."
        provenance = {"command": self.command} | self.directory.provenance(self.experiment.runs)
        report.write(folders, self.experiment.title, intro, sections, judged, provenance, results,
                     command=self.command + self._out, larger=self._beyond(), notices=self.notices(),
                     sources=sources)  # fmt: skip
        return page

    def _beyond(self) -> dict[str, str]:
        """Of each claim the command of the next larger scale that has what it needs; none where no scale has."""
        found: dict[str, str] = {}
        for scale in experiments.SCALES[experiments.SCALES.index(self.experiment.scale) + 1 :]:
            larger = experiments.load(self._name, scale)
            runs = runs_table(Directory(self.out, dict(larger.runs)), larger.parts)
            results = Results(scale, runs, table.empty(), larger.parts)
            for claim in larger.claims:
                if claim.id not in found and not _lacking(claim, results):
                    found[claim.id] = f"jaxsat reproduce {self._name} --scale {scale}"
        return found

    def _made_for_this(self) -> bool:
        first = next(iter(self.directory.experiments.values()))
        theirs = {id for members in first["parts"].values() for id in members}
        name = next(iter(self.directory.experiments))
        return name == self.name or bool(theirs) and theirs <= set(self.experiment.runs)

    def notices(self) -> list[str]:
        """What went wrong quietly."""
        return self.directory.notices(self.experiment.runs, self.command + self._out)


def _lacking(claim, results: Results) -> str:
    try:
        return claim.needs(results)
    except NotMeasured:  # it asks for measurements that are still to come
        return ""
