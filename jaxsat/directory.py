"""An output directory: runs, packs, texts and settings as they were when they came, and the files beside them.

    DIR/sweep.json                     append-only, see `Directory`
    DIR/runs/<id>/                     config.json, metrics.jsonl, env.json
    DIR/checkpoints/<pack>/<step>/     orbax
    DIR/measurements/*.parquet         one file a writer
    DIR/reports/<experiment>-<scale>/  DIR/report/ is the latest of the experiment that the directory was made for

It holds no experiment: several may share it, and each may grow. What is no longer asked for stays.
"""

import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypedDict

import pandas as pd
from etils import epath

from jaxsat import corpus as corpora
from jaxsat import hosts
from jaxsat.checkpoints import finite, load_run
from jaxsat.config import DataConfig, Imported, InputError, Run, dumps, flatten, from_dict, override
from jaxsat.disk import read_json, write_atomically
from jaxsat.measure import table
from jaxsat.model import count_parameters, flops_per_token
from jaxsat.sweep import Pack, differing_keys, make_packs
from jaxsat.train import Account, environment, read_account, read_launches, read_metrics

FOLDERS = ("runs", "checkpoints", "measurements", "items", "reports", "report")
Sizes = Callable[[Run, int], tuple[int, int]]  # see `make_packs`


class _Text(TypedDict):
    """Of a text and its tokenizer what is asked for whatever made them; `Corpus.identity` has more."""

    corpus: list[str]
    content_hash: str
    tokenizer_hash: str
    train_tokens: int
    heldout_tokens: int
    bytes_per_token: float
    at_hand: list[str | None]


class _Experiment(TypedDict):
    command: str
    parts: dict[str, list[str]]


class _Sweep(TypedDict):
    format: Literal[2]
    settings: dict[str, Any]
    texts: dict[str, _Text]
    experiments: dict[str, _Experiment]
    packs: list[list[str]]
    runs: dict[str, dict[str, Any]]


@dataclass
class Directory:
    """What sweep.json holds.

    runs: id -> configuration. packs: the ids of the runs that one program trains, in the order in which they are
    stacked. texts: by `text_key`, the identity of every text and tokenizer that something here was trained on.
    settings: those of JAX that change numbers. experiments: by name and scale, the command and the parts, as last asked
    for.
    """

    path: epath.Path
    runs: dict[str, Run] = field(default_factory=dict)
    packs: list[Pack] = field(default_factory=list)
    texts: dict[str, dict[str, Any]] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    experiments: dict[str, dict[str, Any]] = field(default_factory=dict)

    @classmethod
    def open(cls, path: epath.PathLike) -> "Directory":
        """The directory at `path`, which need not exist. Raises InputError when something else is there."""
        path = epath.Path(path)
        if path.exists() and not path.is_dir():
            raise InputError(f"{path} is a file: choose another --out")
        for folder in (path / name for name in FOLDERS):
            if folder.exists() and not folder.is_dir():
                raise InputError(f"{folder} is a file, where a study has a folder: move it away")
        if not (path / "sweep.json").exists():
            if path.exists() and any(not p.name.startswith(".") for p in path.iterdir()):
                raise InputError(f"{path} is not empty and holds no sweep.json: choose another --out")
            return cls(path)
        return cls(path)._read()

    @property
    def exists(self) -> bool:
        return (self.path / "sweep.json").exists()

    def _read(self) -> "Directory":
        where, todo = self.path / "sweep.json", "put it back as it was, or choose another --out"
        document = read_json(where, _Sweep, "a jaxsat sweep", todo)
        self.runs = {id: from_dict(Run, config, str(where)) for id, config in document["runs"].items()}
        self.texts, self.settings = document["texts"], document["settings"]
        self.experiments = document["experiments"]
        named = [*document["packs"], *(ids for e in self.experiments.values() for ids in e["parts"].values())]
        if missing := {id for ids in named for id in ids} - self.runs.keys():
            raise InputError(f"{where} is not a jaxsat sweep (no run {min(missing)!r}, which is named): {todo}")
        self.packs = [Pack(tuple(self.runs[id] for id in ids)) for ids in document["packs"]]
        if strange := next((id for id, run in self.runs.items() if run.id != id), None):
            raise InputError(f"{where}: the configuration of run {strange} is not that of its id")
        return self

    def grow(self, runs: Iterable[Run], sizes: Sizes) -> list[Pack]:
        """Adds the runs that are not here, in packs of their own; the packs that hold the runs asked for."""
        asked = {run.id: run for run in runs}
        packed = {run.id for pack in self.packs for run in pack.runs}
        new = [run for id, run in asked.items() if id not in packed]
        self.runs |= {run.id: run for run in new}
        for run in new:
            self._check_start(run)
        self.packs += make_packs(new, sizes)
        return [pack for pack in self.packs if any(run.id in asked for run in pack.runs)]

    def _check_start(self, run: Run) -> None:
        if (start := run.start).run is None:
            return
        parent = self.runs.get(start.run) or self.runs.get(Run(imported=Imported(start.run)).id)
        if parent is None:
            raise InputError(f"run {run.id} starts from run {start.run}, which is neither asked for nor in {self.path}")
        if parent.imported.name and "optimizer" in start.kept:
            raise InputError(f"run {run.id} keeps the optimizer of {start.run}: an import has parameters alone")
        if start.step not in parent.checkpoint_steps:
            steps = ", ".join(map(str, parent.checkpoint_steps))
            raise InputError(f"run {run.id} starts from step {start.step} of run {start.run}, which has steps {steps}")

    def text(self, run: Run, progress: corpora.Progress = lambda done, total, what: None) -> corpora.Corpus:
        """The text of a run on every host, of an import by its own tokenizer; it is known from now on. All hosts must
        call it. Raises InputError for another than is known."""

        def prepare() -> corpora.Corpus:
            data = run.data
            if run.imported.name:
                tokenizer = self.path / "runs" / run.id / "tokenizer.json"
                if not tokenizer.exists():
                    raise InputError(
                        f"{run.imported.name} came without a tokenizer.json: its loss on a text cannot be measured"
                    )
                data = override(run, {"data.tokenizer": str(tokenizer)}).data
            corpus = corpora.prepare(data, run.model.vocab_size, run.model.context, progress)
            self.know_text(run, corpus)
            return corpus

        corpus = hosts.one_after_the_other(prepare)
        hosts.agree({f"{name} of {', '.join(run.data.corpus)}": value for name, value in corpus.identity().items()})
        return corpus

    def know_text(self, run: Run, corpus: corpora.Corpus) -> None:
        """Records the text and the tokenizer of a run when they come first. Raises InputError when what is here was
        trained on another."""
        identity, at_hand = corpus.identity(), corpora.at_hand(run.data)
        known = self.texts.setdefault(text_key(run), identity | {"at_hand": at_hand})
        for key in ("content_hash", "tokenizer_hash", *identity):  # what a user knows first
            if identity[key] != (was := known.get(key)):
                texts = [*run.data.corpus, *run.data.heldout]
                seen = zip(texts, at_hand, known["at_hand"])
                changed = ", ".join([text for text, now, then in seen if now != then] or texts)
                name = changed if key != "tokenizer_hash" else f"data.tokenizer = {run.data.tokenizer}"
                raise InputError(
                    f"{name} is not what {self.path} was trained on: {key} is {identity[key]}, was {was}; put the old "
                    "one back, or choose another --out (`jaxsat report` needs no text)"
                )

    def changed_text(self, run: Run) -> bool:
        """Whether what can be looked at of a run's text and tokenizer is not as it was; what is not here is no
        change."""
        was = self.texts.get(text_key(run), {}).get("at_hand", [])
        return any(now not in (None, then) for now, then in zip(corpora.at_hand(run.data), was))

    def know_settings(self, settings: Mapping[str, Any]) -> None:
        """Records the settings of JAX when the directory begins. Raises InputError under others."""
        self.settings = self.settings or dict(settings)
        for key in self.settings.keys() & settings.keys():  # of two versions of JAX one may lack some
            if settings[key] != (was := self.settings[key]):
                raise InputError(
                    f"{key} is {settings[key]} here, was {was} when {self.path} was begun, and changes numbers: set it "
                    f"back ({key.upper()}={was}), or choose another --out"
                )

    def save(self) -> None:
        """Writes sweep.json, keeping what others have added to it since it was read. Raises InputError where that does
        not go together with what this process has planned."""
        path = self.path / "sweep.json"
        for _ in range(10):  # others may write between reading and writing: again until all of ours is there
            if self.exists:
                self._take_in(Directory(self.path)._read())
            if self.is_saved:
                return
            write_atomically(path, self._text())
        raise InputError(f"{path} is written by others all the time: start again")

    @property
    def is_saved(self) -> bool:
        return self.exists and (self.path / "sweep.json").read_text() == self._text()

    def _text(self) -> str:
        document = {
            "format": 2,
            "settings": self.settings,
            "texts": self.texts,
            "experiments": self.experiments,
            "packs": [[run.id for run in pack.runs] for pack in self.packs],
            "runs": {id: dataclasses.asdict(run) for id, run in self.runs.items()},
        }
        return json.dumps(document, indent=1)

    def _take_in(self, there: "Directory") -> None:
        there.know_settings(self.settings)
        ours = {pack.id for pack in there.packs}
        packed = {run.id for pack in there.packs for run in pack.runs}
        new = [pack for pack in self.packs if pack.id not in ours]
        again = "another process has just added {} to {}: the same command again goes on"
        if any(run.id in packed for pack in new for run in pack.runs):
            raise InputError(again.format("the same runs in other packs", self.path))
        if any(self.texts[key] != there.texts[key] for key in self.texts.keys() & there.texts.keys()):
            raise InputError(again.format("another text", self.path))
        self.packs = there.packs + new
        self.runs, self.texts = there.runs | self.runs, there.texts | self.texts
        self.experiments = there.experiments | self.experiments

    def measurements(self) -> pd.DataFrame:
        return table.read(self.path / "measurements")

    def states(self, runs: Iterable[str]) -> dict[str, "RunState"]:
        return {id: run_state(self.path, id, self.runs[id].last_step) for id in runs}

    def failed(self, runs: Iterable[str]) -> list[str]:
        """Those that diverged and were not expected to."""
        diverged = (id for id, state in self.states(runs).items() if state.name == "diverged")
        return [id for id in diverged if not self.runs[id].allow_divergence]

    def mend_logs(self, runs: Iterable[str]) -> None:
        """Of runs that are at their end, as a measurement or a checkpoint there tells, but whose log is gone or ends
        before, writes what can be known: that they are, or that they had diverged by some checkpoint."""
        short = [id for id, state in self.states(runs).items() if state.name in ("waiting", "training")]
        short = [id for id in short if not self.runs[id].imported.name]
        if not short or not self.exists:
            return
        rows, packs = self.measurements(), {run.id: pack.id for pack in self.packs for run in pack.runs}
        measured = set(zip(rows["series"], rows["step"]))
        for id in short:
            run, steps = self.runs[id], self.path / "checkpoints" / packs[id]
            line = {"step": run.last_step, "tokens": run.last_step * run.tokens_per_step}
            if (id, run.last_step) not in measured:
                there = [step for step in run.checkpoint_steps if (steps / str(step)).exists()]
                if run.last_step not in there:
                    continue
                try:
                    if not self._finite(id, run.last_step):
                        first = next(step for step in there if not self._finite(id, step))
                        line = {"step": first, "diverged": True}
                except InputError:  # damaged: training goes on from the one before
                    continue
            folder = self.path / "runs" / id
            lines = [*(known for known in read_metrics(folder) if known["step"] < line["step"]), line]
            write_atomically(folder / "config.json", dumps(run))
            write_atomically(folder / "metrics.jsonl", "".join(json.dumps(known) + "\n" for known in lines))

    def _finite(self, id: str, step: int) -> bool:
        _, params = load_run(self.path, id, step)
        return finite(params)

    def launches(self, runs: Iterable[str]) -> list[dict[str, Any]]:
        """The different environments in which these runs were trained: see `train.environment`."""
        found: dict[str, dict[str, Any]] = {}
        for id in runs:
            for launch in read_launches(self.path / "runs" / id):
                found.setdefault(json.dumps(launch, sort_keys=True), launch)
        return list(found.values())

    def account(self, runs: Iterable[str]) -> Account:
        """Of all packs that hold one of these runs."""
        asked = {*runs}
        firsts = [pack.runs[0].id for pack in self.packs if asked & {run.id for run in pack.runs}]
        accounts = [read_account(self.path / "runs" / id) for id in firsts]
        return Account(**{key: sum(a[key] for a in accounts) for key in Account.__annotations__})

    def notices(
        self, states: Mapping[str, "RunState"], launches: Sequence[dict[str, Any]], account: Account, command: str
    ) -> list[str]:
        """What went wrong quietly with runs of these states, in lines."""
        said = [f"run {id} diverged at step {s.step}: its numbers end there" for id, s in states.items()
                if s.name == "diverged"]  # fmt: skip
        lost = [
            id for id, s in states.items() if s.name == "done" and s.loss != s.loss and not self.runs[id].imported.name
        ]
        said += [
            f"run {id} has lost the losses of its training, with its log; its measurements are whole" for id in lost
        ]
        if n := sum(s.name in ("waiting", "training") for s in states.values()):
            said.append(f"{n} of {len(states)} runs are not at their end yet: {command}")
        if account["restarts"]:
            lost = f"{account['steps_again']:,} steps, {account['seconds_again']:.0f} s, were made again"
            said.append(f"training was taken up again {account['restarts']} times: {lost}")
        for what, of in (
            ("versions of jax", lambda e: e["packages"]["jax"]),
            ("devices", lambda e: ", ".join(sorted(set(e["devices"])))),
        ):
            if len(different := sorted(set(map(of, launches)))) > 1:
                said.append(f"trained with different {what}: {', '.join(different)}; last digits may differ")
        return said

    def provenance(self, runs: Iterable[str], launches: Sequence[dict[str, Any]], account: Account) -> dict[str, str]:
        """What the numbers of these runs depend on, as it was when they were trained."""
        launches = launches or [environment()]
        said = lambda of: "; ".join(dict.fromkeys(map(of, launches)))
        lines = {key: said(lambda e, key=key: e[key]) for key in ("python", "platform")}
        lines["devices"] = said(lambda e: ", ".join(sorted(set(e["devices"]))) + f" ({len(e['devices'])})")
        if seconds := account["seconds"]:
            lines["training"] = f"{seconds:,.0f} s, {account['device_seconds'] / 3600:,.2f} device-hours"
        lines["packages"] = said(lambda e: ", ".join(f"{name} {version}" for name, version in e["packages"].items()))
        lines["settings"] = ", ".join(f"{key} {value}" for key, value in self.settings.items())
        for id, imported in ((id, run.imported) for id in runs if (run := self.runs[id]).imported.name):
            if known := [line for line in read_metrics(self.path / "runs" / id) if "hash" in line]:
                told = f"{len(known)} steps, the last from {known[-1]['source']}, content {known[-1]['hash'][:16]}"
                lines[f"import {imported.name}"] = told
        keys = dict.fromkeys(text_key(self.runs[id]) for id in runs)
        for i, text in enumerate(self.texts[key] for key in keys if key in self.texts):
            lines["corpus" if i == 0 else f"corpus {i + 1}"] = (
                f"{', '.join(text['corpus'])}: {text['train_tokens']:,} training tokens, {text['heldout_tokens']:,} "
                f"held out, {text['bytes_per_token']:.2f} bytes a token, sha256 {text['content_hash'][:16]}, tokenizer "
                f"{text['tokenizer_hash'][:16]}"
            )
        return lines


@dataclass(frozen=True)
class RunState:
    name: str  # done, training, diverged or waiting
    step: int  # the last
    loss: float  # of training, the last that is finite; nan where there is none


def run_state(out: epath.Path, id: str, steps: int) -> RunState:
    """As of its last checkpoint. `diverged`: the step's loss was not finite."""
    # The last lines: a loss, the speed or the divergence after it. All lines of 50 runs take 0.3 s to parse.
    if not (lines := read_metrics(out / "runs" / id, last=3)):
        return RunState("waiting", 0, float("nan"))
    step = lines[-1]["step"]
    name = "diverged" if "diverged" in lines[-1] else "done" if step == steps else "training"
    return RunState(name, step, next((line["loss"] for line in reversed(lines) if "loss" in line), float("nan")))


def text_key(run: Run) -> str:
    """Runs of equal key read the same token rows."""
    imported = [run.imported.name] if run.imported.name else []  # its tokenizer is its own
    always, defaults = ("corpus", "tokenizer", "heldout_fraction", "heldout_tokens"), dataclasses.asdict(DataConfig())
    asked = dataclasses.asdict(run.data).items()
    told = {key: value for key, value in asked if key in always or value != defaults[key]}  # none is new by a new field
    data = json.dumps([told, run.model.vocab_size, *imported], sort_keys=True)
    return hashlib.sha256(data.encode()).hexdigest()[:12]


def runs_table(
    directory: Directory, parts: Mapping[str, Sequence[str]], states: Mapping[str, RunState] | None = None
) -> pd.DataFrame:
    """The table `runs` of `Results`, of the runs of these parts; `states` where they are read already."""
    ids = list(dict.fromkeys(id for part in parts.values() for id in part))
    states, rows = directory.states(ids) if states is None else states, {}
    for id in ids:
        run = directory.runs[id]
        counts = {} if run.task else dataclasses.asdict(count_parameters(run.model))
        tokens, text = run.last_step * run.tokens_per_step, directory.texts.get(text_key(run))
        rows[id] = flatten(run) | {
            **{f"params.{kind}": counts.get(kind, float("nan")) for kind in ("total", "nonembedding", "head")},
            "train.steps": run.last_step,
            "tokens": tokens,
            "flops": float("nan") if run.task else flops_per_token(run.model) * tokens,
            "epochs": tokens / text["train_tokens"] if text and not run.data.weights else float("nan"),
            "state": states[id].name,
            "part": ", ".join(part for part, members in parts.items() if id in members),
        }
    return pd.DataFrame.from_dict(rows, orient="index") if rows else pd.DataFrame(index=pd.Index([], dtype="str"))


def summary(out: epath.PathLike) -> pd.DataFrame:
    """A row a run of an output directory: what tells the runs apart, step, loss, state."""
    directory = Directory.open(out)
    if not directory.exists:
        raise InputError(f"{out} holds no sweep.json: give the output directory of a study, such as runs/saturation")
    runs, states = directory.runs, directory.states(directory.runs)
    if not runs:
        return pd.DataFrame(columns=["run", "part", "step", "loss", "state"])
    parts = {
        id: dict.fromkeys([run.imported.name] if run.imported.name else []) for id, run in runs.items()
    }  # in order
    for experiment in directory.experiments.values():
        for name, members in experiment["parts"].items():
            for id in members:
                parts[id][name] = None
    shown_of = pd.DataFrame(
        [{"part": ", ".join(parts[id])} | flatten(run) | {"train.steps": run.last_step} for id, run in runs.items()]
    )
    shown = ["part", "train.steps"]
    for key in differing_keys(list(runs.values())):  # heads follow from widths, most settings from the part
        if shown_of.groupby(shown, dropna=False)[key].nunique(dropna=False).max() > 1:
            shown.append(key)
    found = shown_of[shown].rename(columns=lambda key: key.rpartition(".")[2].replace("_", " "))
    found = found.assign(step=[f"{states[id].step}/{n}" for id, n in zip(runs, found.pop("steps"))])
    found.insert(0, "run", list(runs))
    return found.assign(loss=[s.loss for s in states.values()], state=[s.name for s in states.values()])
