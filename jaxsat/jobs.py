"""The one loop: what is pending is run, its rows are merged, and it is not pending any more.

A job is one pack to train, one checkpoint of a pack to measure, or one `Computed`. What is done is told by what is on
disk, so a stage that was stopped, killed or split over shares and hosts goes on with what is left. SIGTERM and Ctrl-C
end a stage after the job under way, with everything kept.
"""

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import jax
import numpy as np
import pandas as pd

from jaxsat import corpus as corpora
from jaxsat import hosts, imports, model, parallel
from jaxsat.checkpoints import Store
from jaxsat.config import InputError, Layout, Run
from jaxsat.directory import Directory, RunState, text_key
from jaxsat.measure import Computed, Measure, measured, table
from jaxsat.measure.measure import values
from jaxsat.measure.packs import Todo, text_of
from jaxsat.series import Import
from jaxsat.stop import Stop
from jaxsat.sweep import Pack, describe_packs, parents_first
from jaxsat.train import LANGUAGE_MODEL, Task, on_its_text, train_pack

Progress = Callable[[str, float, str], None]  # (stage, fraction done of it, what)
Done = set[tuple[str, int, str, int]]  # series, step, measure, version


@dataclasses.dataclass(frozen=True)
class Jobs:
    """What one process of a study has to do: the packs and computed of its share, the rest being other jobs'."""

    directory: Directory
    packs: Sequence[Pack]
    asked: frozenset[str]  # ids of the runs that the experiment asks for
    measures: Sequence[Measure]
    computed: Sequence[Computed]
    writer: str  # the name of its file of measurements
    command: str  # that does all of it
    layout: Layout = Layout()
    tasks: Mapping[str, Task] = dataclasses.field(default_factory=dict)
    imports: Mapping[str, Import] = dataclasses.field(default_factory=dict)  # by the id of the run
    texts: dict[str, corpora.Corpus] = dataclasses.field(default_factory=dict)

    # What is pending, told by what is on disk.

    def untrained(self) -> list[Pack]:
        """Packs of which a run may not be at its end. What was measured there is, and what nobody will measure there is
        when its checkpoint is complete; the rest is looked at as it is restored."""
        done, states = self.done(), self._states()
        ends = {(series, step) for series, step, _, _ in done}

        def ended(pack: Pack, run: Run) -> bool:
            if run.imported.name or states[run.id].name == "diverged" or (run.id, run.last_step) in ends:
                return True
            wanted = any(run.last_step in _steps(m, run, states[run.id], {}) for m in self._of(run))
            return states[run.id].name == "done" and not wanted and run.last_step in self.checkpoints(pack)

        return [pack for pack in self.packs if not all(ended(pack, run) for run in pack.runs)]

    def unmeasured(
        self, done: Done, best: dict[str, int] | None = None, states: Mapping[str, RunState] | None = None
    ) -> list[tuple[Pack, Todo]]:
        """Of each pack the checkpoints that a measure has not seen, whether they are there or not; those `at` the best
        where `best` says which they are, else all others. `states`: of the runs, where they are read already."""
        states = self._states() if states is None else states
        found = []
        for pack in self.packs:
            pending: dict[int, dict[Measure, list[Run]]] = {}
            for run in pack.runs:
                for m in self._of(run):
                    if (m.at == "best") == (best is not None):
                        for step in _steps(m, run, states[run.id], best or {}):
                            if (run.id, step, m.key, m.version) not in done:
                                pending.setdefault(step, {}).setdefault(m, []).append(run)
            if pending:
                found.append((pack, {step: list(of.items()) for step, of in pending.items()}))
        return found

    def uncomputed(self, done: Done) -> list[Computed]:
        versions = {(series, name, version) for series, _, name, version in done}
        return [c for c in self.computed if (c.name, c.key, c.version) not in versions]

    def all_done(self) -> bool:
        """Whether no stage has anything to write."""
        if self.imports or not self.directory.is_saved:
            return False
        if any(state.name not in ("done", "diverged") for state in self._states().values()):
            return False
        done = self.done()
        unmeasured = self.unmeasured(done) or self.unmeasured(done, self.best())
        return not (self.untrained() or unmeasured or self.uncomputed(done))

    def done(self, rows: pd.DataFrame | None = None) -> Done:
        """What the table `rows`, else that on disk, holds. Raises InputError where a measure has been made in a later
        version than is asked for."""
        rows = self.directory.measurements() if rows is None else rows
        rows = rows[["series", "step", "measure", "version"]].drop_duplicates()
        for m in (*self.measures, *self.computed):
            if (newest := rows.loc[rows["measure"] == m.key, "version"].max()) > m.version:
                raise InputError(
                    f"measure {m.name!r} has version {m.version}, and {self.directory.path} holds version {newest}: "
                    f"raise it to {newest}, or above if it has changed"
                )
        return set(rows.itertuples(index=False, name=None))

    def best(self) -> dict[str, int]:
        """Of each run whose loss is measured to its end the step where it was least."""
        rows = self.directory.measurements()
        rows = rows[rows["metric"].eq("heldout_loss") & rows["value"].notna() & rows["measure"].eq("loss")]
        least = rows.loc[rows.groupby("series")["value"].idxmin()].set_index("series")["step"]
        last, states = rows.groupby("series")["step"].max(), self._states()
        runs = {run.id: run for pack in self.packs for run in pack.runs if run.id in least.index}
        ended = [id for id, run in runs.items() if states[id].name == "diverged" or last[id] == run.last_step]
        return {id: int(least[id]) for id in ended}

    def checkpoints(self, pack: Pack) -> set[int]:
        """Steps that lie on disk."""
        folder = self.directory.path / "checkpoints" / pack.id
        return {int(p.name) for p in folder.iterdir() if p.name.isdigit()} if folder.exists() else set()

    def notices(self, rows: pd.DataFrame, states: Mapping[str, RunState]) -> list[str]:
        """Checkpoints that no measure of the table `rows` has seen: those to be measured, and those that are gone."""
        waiting, gone = 0, 0
        for pack, todo in self.unmeasured(self.done(rows), states=states):
            begun = [s.step for run in pack.runs if (s := states.get(run.id)) and s.name != "waiting"]
            there, reached = self.checkpoints(pack), max(begun, default=-1)
            waiting += sum(step in there for step in todo)
            gone += sum(step not in there and step <= reached for step in todo)
        said = [f"{waiting} checkpoints are not measured yet: {self.command}"] if waiting else []
        ours = {m.key for m in (*self.measures, *self.computed)}
        none = rows[rows["value"].isna() & rows["metric"].ne("") & rows["measure"].isin(ours)]
        diverged = [id for id, state in states.items() if state.name == "diverged"]
        for metric, n in none[~none["series"].isin(diverged)].groupby("metric").size().items():
            said.append(f"{metric} is not a number {n} times, which are left out")
        for pack in self.packs:
            said += imports.notices(self.directory, pack.runs[0]) if pack.runs[0].imported.name else []
            for aside in sorted((self.directory.path / "checkpoints" / pack.id).glob("*.damaged*")):
                said.append(f"{aside} is damaged and kept aside: {(aside / 'why.txt').read_text()}")
        return said + ([f"{gone} checkpoints that were to be measured are gone"] if gone else [])

    def pending(self) -> list[str]:
        """What the stages would do, in lines."""
        said, done, packs = [], self.done(), self.untrained()
        for pack in self.packs:
            said += imports.pending(self.directory, pack.runs[0])
        said.append(f"train {describe_packs(packs)}" if packs else "train nothing: all runs are at their end")
        for pack in packs:
            m, ids = pack.model, ", ".join(run.id for run in pack.runs)
            shape = f"width {m.width} depth {m.depth} x {len(pack.runs)} runs, {pack.runs[0].train.steps} steps"
            said.append(f"  {shape}: {ids}")
        for m in self.measures:
            jobs = self.unmeasured(done, self.best() if m.at == "best" else None)
            n = sum(len(runs) for _, todo in jobs for at in todo.values() for of, runs in at if of is m)
            said.append(f"measure {m.name} (version {m.version}) of {n} checkpoints")
        return said + [f"compute {c.name} (version {c.version})" for c in self.uncomputed(done)]

    def _of(self, run: Run) -> list[Measure]:
        return [m for m in self.measures if m.runs(run)] if run.id in self.asked else []

    def _states(self) -> dict[str, RunState]:
        return self.directory.states([run.id for pack in self.packs for run in pack.runs])

    # The stages.

    def check_texts(self) -> None:
        """Raises InputError for a text that is here and is not what was trained on, also where nothing is pending."""
        runs = {text_key(run): run for pack in self.packs for run in pack.runs if run.id in self.asked}
        changed = hosts.together(lambda: [key for key, run in runs.items() if self.directory.changed_text(run)])
        for key in sorted(set().union(*changed)):
            self.text(runs[key])

    def obtain(self, progress: Progress) -> None:
        """Imports the series of others; of what was measured as a stream, and dropped, only what is asked again."""

        def steps() -> Iterator[pd.DataFrame]:
            needed = dict(hosts.first(lambda: [(id, sorted(steps)) for id, steps in self._needed().items()]))
            for pack in self.packs:
                run = pack.runs[0]
                if asked := self.imports.get(run.id):
                    parts = imports.imported(self.directory, asked, run, (), self.layout, needed[run.id])
                    for i, n, rows in parts:
                        progress("import", i / n, f"{asked.name}, {i} of {n} steps")
                        yield rows

        if self.imports:
            hosts.first(self.directory.save)
            self._run("import", steps())

    def _needed(self) -> dict[str, set[int]]:
        """Of each import the steps that a measure has not seen, or an untrained run starts from."""
        done, best = self.done(), self.best()
        needed = {id: set() for id in self.imports}
        for pack, todo in [*self.unmeasured(done), *self.unmeasured(done, best)]:
            needed.get(pack.runs[0].id, set()).update(todo)
        starts = [run.start for pack in self.untrained() for run in pack.runs if run.start.run]
        for pack in self.packs:
            if (run := pack.runs[0]).id in needed:
                needed[run.id] |= {start.step for start in starts if start.run in (run.id, run.imported.name)}
                if run.id not in best and any(m.at == "best" for m in self._of(run)):
                    needed[run.id] |= {*run.checkpoint_steps}
        return needed

    def train(self, progress: Progress, tensorboard: bool = False) -> bool:
        """Whether a pack was not at its end."""
        self.check_texts()
        packs = hosts.first(lambda: [pack.id for pack in self.untrained()])
        packs = parents_first([pack for pack in self.packs if pack.id in packs])
        for pack in packs:  # what is wrong with the layout is said before anything is written
            parallel.make_mesh(pack, self.layout)
        progress("corpus", 0.0, "")
        for i, pack in enumerate(packs):  # all corpora first: what is wrong with them is said at once
            run = pack.runs[0]
            corpus = self.text(
                run, lambda done, total, what, i=i: progress("corpus", i / len(packs), f"{what} {done:,}")
            )
            if corpus:
                on_its_text(run, self._task(run), corpus)
                for data in dict.fromkeys(m.text for each in pack.runs for m in self._of(each) if m.text):
                    text_of(data, corpus.tokenizer, run.model)
                corpora.batch_at(corpus, run.order_seed, 0, run.train.batch_size)
        hosts.first(self.directory.save)
        if not all(hosts.together(lambda: self.directory.exists)):
            raise InputError(
                f"not all hosts see {self.directory.path}: --out must be storage that they share, such as gs://BUCKET/DIR"
            )
        progress("train", 0.0, describe_packs(packs) if packs else "all runs are at their end")
        costs = np.cumsum([0, *(sum(_cost(run) for run in pack.runs) for pack in packs)])
        for i, pack in enumerate(packs):

            def step_done(step: int, losses: list[float], pack: Pack = pack, i: int = i) -> None:
                m, first, n = pack.model, pack.runs[0].first_step, pack.runs[0].last_step
                loss = min(losses, key=lambda x: (x != x, x))  # nan last: of a run that diverged at once
                what = f"width {m.width} depth {m.depth} x {len(pack.runs)} runs, step {step}/{n}"
                what += f", loss {loss:.3f}" if loss == loss else ""  # read a window late: the first has none
                progress(
                    "train", (costs[i] + (costs[i + 1] - costs[i]) * (step - first) / (n - first)) / costs[-1], what
                )

            text, task = self.text(pack.runs[0]), self._task(pack.runs[0])
            starts = pack.starts(self.directory.runs.values())
            train_pack(pack, text, self.directory.path, step_done, self.layout, None, tensorboard, task, starts)
        return bool(packs)

    def measure(self, progress: Progress) -> None:
        self.check_texts()
        for best in (False, True):
            if any((m.at == "best") == best for m in self.measures):
                self._run("measure", self._measure(best, progress))
        self._run("compute", self._compute(progress))

    def _measure(self, best: bool, progress: Progress) -> Iterator[pd.DataFrame]:
        steps = hosts.first(self.best) if best else None
        done = set(map(tuple, hosts.first(lambda: [list(key) for key in self.done()])))
        pending = self.unmeasured(done, steps)
        there = dict(hosts.first(lambda: [(pack.id, sorted(self.checkpoints(pack))) for pack, _ in pending]))
        todo = {pack: {step: jobs for step, jobs in of.items() if step in there[pack.id]} for pack, of in pending}
        if pending and not any(there.values()):
            run = pending[0][0].runs[0].id
            raise InputError(f"{self.directory.path} has no checkpoints of run {run}, nor of others: {self.command}")
        total, made = sum(map(len, todo.values())), 0
        for pack, of in todo.items():
            if of:
                folder, text = self.directory.path / "checkpoints" / pack.id, self.text(pack.runs[0])
                with Store(folder, [run.id for run in pack.runs]) as store:
                    for step, rows in measured(pack, store, text, of, self.layout, self.directory.path / "runs"):
                        made += 1
                        what = f"width {pack.model.width} x {len(pack.runs)} runs, step {step}"
                        progress("measure", made / total, what)
                        yield rows

    def _compute(self, progress: Progress) -> Iterator[pd.DataFrame]:
        done = set(map(tuple, hosts.first(lambda: [list(key) for key in self.done()])))
        pending = self.uncomputed(done)
        for i, c in enumerate(pending):
            progress("compute", i / len(pending), c.name)
            rows = [table.empty()]

            def compute(i: int = i, c: Computed = c, rows: list[pd.DataFrame] = rows) -> None:
                if i % jax.process_count() == jax.process_index():
                    rows[0] = table.rows(c.name, 0, 0, c.key, c.version, values(c.of(), c.name))

            hosts.together(compute)  # who works is waited for, however long
            yield rows[0]

    def _run(self, what: str, jobs: Iterable[pd.DataFrame]) -> None:
        """The loop. Each of many hosts takes the same steps, so all stop after the same job."""
        name = self.writer + (f"-host{jax.process_index()}" if jax.process_count() > 1 else "")
        with (
            Stop(f"stopped while it was to {what}") as stop,
            table.Writer(self.directory.path / "measurements", name) as writer,
        ):
            for i, rows in enumerate(jobs):
                if i == 0:
                    hosts.first(self.directory.save)
                if len(rows):
                    writer.add(rows)
                stop.check()

    def _task(self, run: Run) -> Task:
        return self.tasks[run.task] if run.task else LANGUAGE_MODEL

    def text(self, run: Run, progress: corpora.Progress = lambda done, total, what: None) -> corpora.Corpus | None:
        """`Directory.text`, prepared once; None where the run's task reads none, and of an import that has none."""
        if not self._task(run).reads or run.imported.name and not run.data.corpus:
            return None
        if (key := f"{text_key(run)} {run.model.context}") not in self.texts:
            self.texts[key] = self.directory.text(run, progress)
        return self.texts[key]


def _steps(m: Measure, run: Run, state: RunState, best: dict[str, int]) -> list[int]:
    """The checkpoints of a run that a measure asks for; none after it has diverged."""
    match m.at:
        case "every":
            steps = run.checkpoint_steps
        case "last":
            steps = (run.last_step,)
        case "best":
            steps = (best[run.id],) if run.id in best else ()
        case steps:
            steps = tuple(set(steps) & set(run.checkpoint_steps))
    return [step for step in steps if state.name != "diverged" or step < state.step]


def _cost(run: Run) -> float:
    """Relative time of a run, for the estimate of what remains: FLOPs understate how slow small widths are."""
    return (model.flops_per_token(run.model) ** 0.7) * (run.last_step - run.first_step) * run.tokens_per_step
