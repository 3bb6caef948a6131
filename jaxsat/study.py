"""A study: one experiment at one scale in one directory, stage by stage. Every stage continues where it stopped.

An experiment is a Python module with

    sweeps(scale: str) -> Sequence[Sweep]            what to train; the name of each sweep is the runs' `part`
    measure(study) -> Iterator[DataFrame]            optional: measurements beyond those of every checkpoint
    fits(study) -> dict[str, Fit]                    optional: scaling laws
    report(study, fits) -> (list[Section], list[Claim])   optional: figures, tables and claims of its own

DIR/sweep.json holds the runs as resolved, their parts and their packs; runs/, checkpoints/ and measurements.parquet
are filled by the stages, report/ is rebuilt from the two tables.
"""

import dataclasses
import importlib
import importlib.util
import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import jax
import pandas as pd
from etils import epath

from jaxsat import corpus as corpora
from jaxsat import hosts, laws, model, parallel
from jaxsat.checkpoints import Store, load_run
from jaxsat.config import (
    InputError,
    Layout,
    ModelConfig,
    Run,
    checkpoint_steps,
    flatten,
    from_dict,
    unknown,
    validate_layout,
)
from jaxsat.measure import measure_pack, table
from jaxsat.report import page, standard
from jaxsat.sweep import Pack, Sweep, describe_packs, differing_keys, make_packs
from jaxsat.train import environment, train_pack, write_atomically

SCALES = ("laptop", "workstation", "pod")
Progress = Callable[[str, float, str], None]  # (stage, fraction done of it, what)


def experiments() -> list[str]:
    """Names of the experiments that come with jaxsat."""
    folder = Path(importlib.import_module("experiments").__path__[0])
    return sorted(p.stem for p in folder.glob("*.py") if not p.stem.startswith("_"))


def load_experiment(name: str) -> ModuleType:
    """An experiment by its name, or from a user's Python file. Raises InputError when there is none."""
    if name.endswith(".py"):
        if not Path(name).is_file():
            raise InputError(f"no file {name}: give the path of a Python file, or one of {', '.join(experiments())}")
        spec = importlib.util.spec_from_file_location(name, name)
        module = sys.modules[name] = importlib.util.module_from_spec(spec)  # where its dataclasses look for it
        try:
            spec.loader.exec_module(module)
        except SyntaxError as e:
            raise InputError(f"{e.filename}, line {e.lineno}: {e.msg}") from None
    elif name in experiments():
        module = importlib.import_module(f"experiments.{name}")
    else:
        raise InputError(f"{unknown('experiment', name, experiments())}; the path of your own ends in .py")
    if not callable(getattr(module, "sweeps", None)):
        raise InputError(
            f"{name} defines no sweeps(scale): an experiment needs it, returning a list of jaxsat.sweep.Sweep"
        )
    return module


def runs_of(experiment: ModuleType, name: str, scale: str) -> list[tuple[str, Run]]:
    """(part, run) of all runs at a scale. Raises InputError, with the name of the experiment."""
    try:
        sweeps = experiment.sweeps(scale)
        if not sweeps or not isinstance(sweeps, list | tuple) or not all(isinstance(s, Sweep) for s in sweeps):
            raise InputError(f"sweeps({scale!r}) must return a list of jaxsat.sweep.Sweep, not {sweeps!r:.80}")
        return [(sweep.name, run) for sweep in sweeps for run in sweep.runs]
    except InputError as e:
        raise InputError(f"{name}: {e}") from None


class Study:
    """The stages of one experiment in one directory.

    `share` (i, n): train and measure packs i, i + n, ... only, the rest being other jobs' with the same `out`. Raises
    InputError when the directory holds something else: another experiment, scale or set of runs. Nothing is written
    there before training begins.
    """

    def __init__(
        self,
        name: str,
        scale: str,
        out: epath.PathLike | None = None,
        layout: Layout = Layout(),
        share: tuple[int, int] = (1, 1),
    ):
        hosts.together(lambda: self._plan(name, scale, out))
        self.layout, self.share = validate_layout(layout), share
        config = {"experiment": self.name, "scale": scale, "out": str(self.out), "number of runs": len(self.by_id)}
        for i, run in enumerate(self.by_id.values()):
            config |= {f"{key} of run {i}": value for key, value in flatten(run).items()}
        config |= flatten(layout, "layout.") | {"share": share, "version of jax": jax.__version__}
        hosts.agree(config)
        sizes = lambda run, n_runs: parallel.pack_size(run, n_runs, layout, jax.devices())
        packs = hosts.first(
            lambda: self._found() or [[run.id for run in p.runs] for p in make_packs(self.by_id.values(), sizes)]
        )
        self.all_packs = [Pack(tuple(self.by_id[id] for id in ids)) for ids in packs]
        self.packs = self.all_packs[share[0] - 1 :: share[1]]

    def _plan(self, name: str, scale: str, out: epath.PathLike | None) -> None:
        if scale not in SCALES:
            raise unknown("scale", scale, SCALES)
        self.experiment = load_experiment(name)
        self.name, self.scale = Path(name).stem if name.endswith(".py") else name, scale
        self.command = f"jaxsat reproduce {name} --scale {scale}" + (f" --out {out}" if out else "")
        self.out = epath.Path(out or f"runs/{self.name}" + ("" if scale == "laptop" else f"-{scale}"))
        planned = runs_of(self.experiment, name, scale)
        self.by_id: dict[str, Run] = {run.id: run for _, run in planned}
        self.part: dict[str, str] = {run.id: part for part, run in reversed(planned)}  # the first that has it

    def _found(self) -> list[list[str]]:
        """The ids of the packs that are being trained in the directory; none when it is new."""
        path = self.out / "sweep.json"
        if self.out.exists() and not self.out.is_dir():
            raise InputError(f"{self.out} is a file: choose another --out")
        if not path.exists():
            if self.out.exists() and any(not p.name.startswith(".") for p in self.out.iterdir()):
                raise InputError(f"{self.out} is not empty and holds no sweep.json: choose another --out")
            return []
        found = json.loads(path.read_text())
        experiment, scale, ids = (found.get(key) for key in ("experiment", "scale", "runs"))
        if (experiment, scale) != (self.name, self.scale) or set(ids) != set(self.by_id):
            what = f"{experiment} at scale {scale} with {len(ids or ())} runs"
            raise InputError(
                f"{self.out} holds another sweep ({what}), not {self.name} at scale {self.scale} with "
                f"{len(self.by_id)} runs: choose another --out, or remove it"
            )
        return found["packs"]

    def _claim(self) -> None:
        """Writes sweep.json, so that the directory is this study's. Raises InputError where not all hosts see it."""
        document = {
            "experiment": self.name,
            "scale": self.scale,
            "parts": self.part,
            "packs": [[run.id for run in pack.runs] for pack in self.all_packs],
            "runs": {id: dataclasses.asdict(run) for id, run in self.by_id.items()},
        }
        path = self.out / "sweep.json"
        hosts.first(lambda: path.exists() or write_atomically(path, json.dumps(document, indent=1)))
        if not all(hosts.together(path.exists)):
            raise InputError(
                f"not all hosts see {path}: --out must be storage that they share, such as gs://BUCKET/DIR"
            )

    # What experiments read.

    @property
    def runs(self) -> pd.DataFrame:
        """The runs table: a row a run, indexed by id; see jaxsat.report.tables."""
        rows = {}
        for id, run in self.by_id.items():
            counts = model.count_parameters(run.model)
            rows[id] = flatten(run) | {
                "params.total": counts.total,
                "params.nonembedding": counts.nonembedding,
                "params.head": counts.head,
                "tokens": run.train.steps * run.tokens_per_step,
                "state": run_state(self.out, id, run.train.steps)[0],
                "part": self.part[id],
            }
        return pd.DataFrame.from_dict(rows, orient="index")

    @property
    def measurements(self) -> pd.DataFrame:
        """The measurements table, of all shares; empty before the first."""
        return pd.concat([table.empty(), *map(table.read, self._tables())], ignore_index=True)

    def _tables(self) -> list[epath.Path]:
        return sorted(self.out.glob("measurements*.parquet")) if self.out.exists() else []

    def corpus(self, run: Run, progress: corpora.Progress = lambda done, total, what: None) -> corpora.Corpus:
        return corpora.prepare(run.data, run.model.vocab_size, run.model.context, progress)

    def params(self, run: Run, step: int | None = None) -> tuple[ModelConfig, model.Params]:
        """One run's configuration and parameters at a checkpoint, the last by default."""
        return load_run(self.out, run.id, run.train.steps if step is None else step)

    # The stages.

    def train(self, progress: Progress, tensorboard: bool = False) -> None:
        for pack in self.packs:  # what is wrong with the layout is said before anything is written
            parallel.make_mesh(pack, self.layout)
        progress("corpus", 0.0, "")
        for i, pack in enumerate(self.packs):  # all corpora first: what is wrong with them is said at once
            first, share = pack.runs[0], i / len(self.packs)
            tell = lambda done, total, what, share=share: progress("corpus", share, f"{what} {done:,}")
            hosts.one_after_the_other(
                lambda first=first, tell=tell: corpora.batch_at(
                    self.corpus(first, tell), first.order_seed, 0, first.train.batch_size
                )
            )
        self._claim()
        costs = [sum(_cost(run) for run in pack.runs) for pack in self.packs]
        before, total = 0.0, sum(costs)
        progress("train", 0.0, describe_packs(self.packs))
        for pack, cost, finished in zip(self.packs, costs, self._finished()):

            def step_done(step, losses, pack=pack, cost=cost, before=before):
                m, n = pack.model, pack.runs[0].train.steps
                loss = min(losses, key=lambda x: (x != x, x))  # nan last: of a run that diverged at once
                what = f"width {m.width} depth {m.depth} x {len(pack.runs)} runs, step {step}/{n}, loss {loss:.3f}"
                progress("train", (before + cost * step / n) / total, what)

            if not finished:
                train_pack(pack, self.corpus(pack.runs[0]), self.out, step_done, self.layout, tensorboard=tensorboard)
            before += cost

    def measure(self, progress: Progress) -> None:
        whole, (i, n) = self.share == (1, 1), self.share
        path = self.out / ("measurements.parquet" if whole else f"measurements-{i}-of-{n}.parquet")
        finished, known = self._finished(), self.measurements
        todo = [len(checkpoint_steps(pack.runs[0].train)) for pack in self.packs]
        for i, pack in enumerate(self.packs):
            if finished[i]:
                continue
            directory = self.out / "checkpoints" / pack.id
            if not hosts.first(directory.exists):
                raise InputError(
                    f"{self.out} has no checkpoints of run {pack.runs[0].id}: train first ({self.command})"
                )
            frames = []
            with Store(directory, [run.id for run in pack.runs]) as store:
                heldout = self.corpus(pack.runs[0]).heldout_MxT1
                for step, rows in measure_pack(pack, store, heldout, known, self.layout):
                    frames.append(rows)
                    what = f"width {pack.model.width} x {len(pack.runs)} runs, step {step}"
                    progress("measure", (sum(todo[:i]) + len(frames)) / sum(todo), what)
            if any(len(rows) for rows in frames) and jax.process_index() == 0:
                table.merge(path, pd.concat(frames))
        if whole and hasattr(self.experiment, "measure"):
            hosts.first(lambda: self._measure_more(path, progress))

    def _measure_more(self, path: epath.Path, progress: Progress) -> None:
        for rows in self.experiment.measure(self):
            progress("extra", 0.0, f"{rows['metric'].iloc[0]} of {rows['run'].iloc[0]}")
            table.merge(path, rows)

    def _finished(self) -> list[bool]:
        """Of each pack, whether the last checkpoint of every run is measured: nothing is left to train or measure, or
        to check."""

        def found() -> list[bool]:
            steps = self.measurements.groupby("run")["step"].max()
            return [all(steps.get(run.id) == run.train.steps for run in pack.runs) for pack in self.packs]

        return hosts.first(found)

    def fit(self) -> dict[str, laws.Fit]:
        """The experiment's laws, on the first of many hosts; laws.json holds their constants."""
        fits: dict[str, laws.Fit] = {}
        hosts.first(lambda: fits.update(self._fit()))
        return fits

    def _fit(self) -> dict[str, laws.Fit]:
        fits = self.experiment.fits(self) if hasattr(self.experiment, "fits") else {}
        documents = {name: json.loads(fit.to_json()) for name, fit in fits.items()}
        write_atomically(self.out / "laws.json", json.dumps(documents, indent=1))
        return fits

    def reported(self) -> epath.Path | None:
        """The page of the report, if nothing that it is made of is newer."""
        return self.out / "report" / "index.html" if hosts.first(self._is_reported) else None

    def _is_reported(self) -> bool:
        page = self.out / "report" / "index.html"
        sources = (self.out / "sweep.json", *self._tables(), epath.Path(self.experiment.__file__))
        return page.exists() and all(p.exists() and p.stat().mtime <= page.stat().mtime for p in sources)

    def report(self) -> epath.Path:
        """Rebuilds DIR/report from the two tables; returns the path of its page."""
        return epath.Path(hosts.first(lambda: str(self._report())))

    def _report(self) -> epath.Path:
        if self.measurements.empty:
            raise InputError(f"{self.out} has no measurements yet: {self.command}")
        fits = self._fit()
        if hasattr(self.experiment, "report"):
            sections, claims = self.experiment.report(self, fits)
        else:
            sections, claims = standard.sections(self.measurements, self.runs), []
        title = (self.experiment.__doc__ or self.name).strip().splitlines()[0].rstrip(".")
        intro = f"{len(self.by_id)} models trained at the scale “{self.scale}” by `{self.command}`."
        return page.write(self.out / "report", title, intro, sections, claims, self.provenance())

    def provenance(self) -> dict[str, str]:
        """What the numbers depend on, for the foot of the page."""
        env = environment()
        lines = {"command": self.command, "python": env["python"], "platform": env["platform"]}
        lines["devices"] = ", ".join(sorted(set(env["devices"]))) + f" ({len(env['devices'])})"
        lines["packages"] = ", ".join(f"{name} {version}" for name, version in env["packages"].items())
        for i, run in enumerate({r.data: r for r in self.by_id.values()}.values()):
            c = self.corpus(run)
            name = "corpus" if i == 0 else f"corpus {i + 1}"
            lines[name] = (
                f"{', '.join(run.data.corpus)}: {c.train_tokens:,} training tokens, {c.heldout_tokens:,} held out, "
                f"{c.bytes_per_token:.2f} bytes a token, sha256 {c.content_hash[:16]}"
            )
        return lines


def summary(out: epath.PathLike) -> pd.DataFrame:
    """A row a run of an output directory: what tells the runs apart, step, loss, state."""
    out = epath.Path(out)
    if not (out / "sweep.json").exists():
        raise InputError(f"{out} holds no sweep.json: give the output directory of a study, such as runs/saturation")
    document = json.loads((out / "sweep.json").read_text())
    runs = {id: from_dict(Run, config) for id, config in document["runs"].items()}
    states = [run_state(out, id, run.train.steps) for id, run in runs.items()]
    table = pd.DataFrame([{"part": document["parts"][id]} | flatten(run) for id, run in runs.items()])
    shown = ["part", "train.steps"]
    for key in differing_keys(list(runs.values())):  # heads follow from widths, most settings from the part
        if table.groupby(shown, dropna=False)[key].nunique(dropna=False).max() > 1:
            shown.append(key)
    table = table[shown].rename(columns=lambda key: key.rpartition(".")[2].replace("_", " "))
    table = table.assign(step=[f"{step}/{n}" for (_, step, _), n in zip(states, table.pop("steps"))])
    table.insert(0, "run", list(runs))
    return table.assign(loss=[loss for _, _, loss in states], state=[name for name, _, _ in states])


def run_state(out: epath.Path, id: str, steps: int) -> tuple[str, int, float]:
    """(done, training, diverged or waiting; last step; last training loss), as of its last checkpoint."""
    path = out / "runs" / id / "metrics.jsonl"
    # The last lines: a loss, the speed or the divergence after it. All lines of 50 runs take 0.3 s to parse.
    lines = [json.loads(line) for line in path.read_text().splitlines()[-3:]] if path.exists() else []
    if not lines:
        return "waiting", 0, float("nan")
    step = lines[-1]["step"]
    state = "diverged" if "diverged" in lines[-1] else "done" if step == steps else "training"
    return state, step, next((line["loss"] for line in reversed(lines) if "loss" in line), float("nan"))


def _cost(run: Run) -> float:
    """Relative time of a run, for the estimate of what remains: FLOPs understate how slow small widths are."""
    return (model.flops_per_token(run.model) ** 0.7) * run.train.steps * run.tokens_per_step
