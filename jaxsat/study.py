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
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import jax
import pandas as pd
from etils import epath

from jaxsat import corpus as corpora
from jaxsat import laws, model
from jaxsat.checkpoints import Store
from jaxsat.config import InputError, ModelConfig, Run, checkpoint_steps, flatten, from_dict, unknown
from jaxsat.measure import abstract_params, measure_pack, table
from jaxsat.report import page, standard
from jaxsat.sweep import Pack, Sweep, describe_packs, differing_keys, make_packs
from jaxsat.train import environment, read_metrics, train_pack, write_atomically

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
        spec = importlib.util.spec_from_file_location(Path(name).stem, name)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    elif name in experiments():
        module = importlib.import_module(f"experiments.{name}")
    else:
        raise unknown("experiment", name, experiments())
    if not callable(getattr(module, "sweeps", None)):
        raise InputError(f"{name} defines no sweeps(scale): an experiment needs it, returning a list of jaxsat.Sweep")
    return module


class Study:
    """The stages of one experiment in one directory.

    Raises InputError when the directory holds something else: another experiment, scale or set of runs.
    """

    def __init__(self, name: str, scale: str, out: epath.PathLike | None = None):
        if scale not in SCALES:
            raise unknown("scale", scale, SCALES)
        self.experiment = load_experiment(name)
        self.name, self.scale = Path(name).stem if name.endswith(".py") else name, scale
        self.command = f"jaxsat reproduce {name} --scale {scale}"
        self.out = epath.Path(out or f"runs/{self.name}" + ("" if scale == "laptop" else f"-{scale}"))
        sweeps = self.experiment.sweeps(scale)
        self.part: dict[str, str] = {}
        self.by_id: dict[str, Run] = {}
        for sweep in sweeps:
            if not isinstance(sweep, Sweep):
                raise InputError(f"sweeps({scale!r}) of {name} must return a list of jaxsat.Sweep, not {sweep!r}")
            for run in sweep.runs:
                self.part.setdefault(run.id, sweep.name)
                self.by_id[run.id] = run
        self.packs = self._claim()

    def _claim(self) -> list[Pack]:
        """Writes sweep.json in a new directory, or checks that it is this study's; the packs are those written first."""
        path = self.out / "sweep.json"
        runs = {id: dataclasses.asdict(run) for id, run in self.by_id.items()}
        if path.exists():
            found = json.loads(path.read_text())
            if (found["experiment"], found["scale"]) != (self.name, self.scale) or set(found["runs"]) != set(runs):
                what = f"{found['experiment']} at scale {found['scale']} with {len(found['runs'])} runs"
                raise InputError(
                    f"{self.out} holds another sweep ({what}), not {self.name} at scale {self.scale} with "
                    f"{len(runs)} runs: choose another --out, or remove it"
                )
            return [Pack(tuple(self.by_id[id] for id in ids)) for ids in found["packs"]]
        if self.out.exists() and any(self.out.iterdir()):
            raise InputError(f"{self.out} is not empty and holds no sweep.json: choose another --out")
        packs = make_packs(self.by_id.values(), devices=len(jax.devices()))
        document = {
            "experiment": self.name,
            "scale": self.scale,
            "parts": self.part,
            "packs": [[run.id for run in pack.runs] for pack in packs],
            "runs": runs,
        }
        write_atomically(path, json.dumps(document, indent=1))
        return packs

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
                "state": run_state(self.out, run)[0],
                "part": self.part[id],
            }
        return pd.DataFrame.from_dict(rows, orient="index")

    @property
    def measurements(self) -> pd.DataFrame:
        """The measurements table; empty before the first."""
        path = self.out / "measurements.parquet"
        return table.read(path) if path.exists() else table.empty()

    def corpus(self, run: Run, progress: corpora.Progress = lambda done, total, what: None) -> corpora.Corpus:
        return corpora.prepare(run.data, run.model.vocab_size, run.model.context, progress)

    def params(self, run: Run, step: int | None = None) -> tuple[ModelConfig, model.Params]:
        """One run's configuration and parameters at a checkpoint, the last by default."""
        pack = next(pack for pack in self.packs if run in pack.runs)
        with Store(self.out / "checkpoints" / pack.id, [r.id for r in pack.runs]) as store:
            stacked = store.params(run.train.steps if step is None else step, abstract_params(pack))
        params = jax.tree.map(lambda x: x[pack.runs.index(run)], stacked)
        if run.model.head_rank:
            r = run.model.rank
            params["head"] = {"a": params["head"]["a"][:, :r], "b": params["head"]["b"][:r]}
        return run.model, params

    # The stages.

    def train(self, progress: Progress, tensorboard: bool = False) -> None:
        progress("corpus", 0.0, "")
        for i, pack in enumerate(self.packs):  # all corpora first: what is wrong with them is said at once
            first, share = pack.runs[0], i / len(self.packs)
            self.corpus(first, lambda done, total, what, share=share: progress("corpus", share, f"{what} {done:,}"))
        costs = [sum(_cost(run) for run in pack.runs) for pack in self.packs]
        before, total = 0.0, sum(costs)
        progress("train", 0.0, describe_packs(self.packs))
        for pack, cost in zip(self.packs, costs):

            def step_done(step, losses, pack=pack, cost=cost, before=before):
                m, n = pack.model, pack.runs[0].train.steps
                what = (
                    f"width {m.width} depth {m.depth} x {len(pack.runs)} runs, step {step}/{n}, loss {min(losses):.3f}"
                )
                progress("train", (before + cost * step / n) / total, what)

            train_pack(pack, self.corpus(pack.runs[0]), self.out, step_done)
            before += cost

    def measure(self, progress: Progress) -> None:
        path, known = self.out / "measurements.parquet", self.measurements
        todo = [len(checkpoint_steps(pack.runs[0].train)) for pack in self.packs]
        for i, pack in enumerate(self.packs):
            directory = self.out / "checkpoints" / pack.id
            if not directory.exists():
                raise InputError(
                    f"{self.out} has no checkpoints of run {pack.runs[0].id}: train first ({self.command})"
                )
            frames = []
            with Store(directory, [run.id for run in pack.runs]) as store:
                heldout = self.corpus(pack.runs[0]).heldout_MxT1
                for step, rows in measure_pack(pack, store, heldout, known):
                    frames.append(rows)
                    what = f"width {pack.model.width} x {len(pack.runs)} runs, step {step}"
                    progress("measure", (sum(todo[:i]) + len(frames)) / sum(todo), what)
            if frames:
                known = table.merge(path, pd.concat(frames))
        if hasattr(self.experiment, "measure"):
            for rows in self.experiment.measure(self):
                progress("extra", 0.0, f"{rows['metric'].iloc[0]} of {rows['run'].iloc[0]}")
                table.merge(path, rows)

    def fit(self) -> dict[str, laws.Fit]:
        """The experiment's laws; laws.json holds their constants."""
        fits = self.experiment.fits(self) if hasattr(self.experiment, "fits") else {}
        documents = {name: json.loads(fit.to_json()) for name, fit in fits.items()}
        write_atomically(self.out / "laws.json", json.dumps(documents, indent=1))
        return fits

    def report(self) -> epath.Path:
        """Rebuilds DIR/report from the two tables; returns the path of its page."""
        if self.measurements.empty:
            raise InputError(f"{self.out} has no measurements yet: {self.command}")
        fits = self.fit()
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
    """A row a run of an output directory: what differs between the runs, step, loss, state."""
    out = epath.Path(out)
    if not (out / "sweep.json").exists():
        raise InputError(f"{out} holds no sweep.json: give the output directory of a study, such as runs/saturation")
    document = json.loads((out / "sweep.json").read_text())
    runs = [from_dict(Run, config) for config in document["runs"].values()]
    states = [run_state(out, run) for run in runs]
    table = pd.DataFrame([{key: flatten(run)[key] for key in differing_keys(runs)} for run in runs])
    table.insert(0, "run", [run.id for run in runs])
    table["step"] = [f"{step}/{run.train.steps}" for run, (_, step, _) in zip(runs, states)]
    return table.assign(loss=[loss for _, _, loss in states], state=[name for name, _, _ in states])


def run_state(out: epath.Path, run: Run) -> tuple[str, int, float]:
    """(done, training, diverged or waiting; last step; last training loss), as of its last checkpoint."""
    lines = read_metrics(out / "runs" / run.id)
    if not lines:
        return "waiting", 0, float("nan")
    step = lines[-1]["step"]
    state = "diverged" if "diverged" in lines[-1] else "done" if step == run.train.steps else "training"
    return state, step, next((line["loss"] for line in reversed(lines) if "loss" in line), float("nan"))


def _cost(run: Run) -> float:
    """Relative time of a run, for the estimate of what remains: FLOPs understate how slow small widths are."""
    return (model.flops_per_token(run.model) ** 0.7) * run.train.steps * run.tokens_per_step
