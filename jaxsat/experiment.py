"""An experiment is a Python file of declarations; here it is found, run and checked.

    def sweeps(scale) -> list[Sweep]         what is trained; the name of a sweep is the runs' part
    def imports(scale) -> list[Import]       what others have trained; their part is "imported"
    def measures(scale) -> list[Measure]     of every checkpoint; `measure.standard()` where it is missing
    def computed(scale) -> list[Computed]    rows of no trained model
    TASKS: dict[str, Task]                   what is no language model, by the `task` of its runs
    OPTIONAL: list[str]                      parts, measures and computed that only `--only` asks for
    LAWS: dict[str, Law]; SECTIONS: list[Section]; CLAIMS: list[Claim]

One of `sweeps`, `imports` and `computed` is needed, and nothing else.
"""

import contextlib
import dataclasses
import hashlib
import importlib
import importlib.util
import inspect
import json
import re
import sys
import traceback
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pandas as pd

import jaxsat
from jaxsat import measure
from jaxsat.claims import Claim
from jaxsat.config import InputError, Preempted, Run, unknown
from jaxsat.laws import Law
from jaxsat.measure import Computed, Measure
from jaxsat.measure.identity import identity
from jaxsat.report import Section, check_names
from jaxsat.results import NotMeasured, Results
from jaxsat.series import Import
from jaxsat.sweep import Sweep
from jaxsat.train import Task

SCALES = ("laptop", "workstation", "pod")


@dataclass(frozen=True, eq=False)
class Experiment:
    """What an experiment asks for at one scale."""

    name: str
    scale: str
    file: Path
    title: str
    sweeps: Sequence[Sweep]
    imports: Sequence[Import]
    measures: Sequence[Measure]
    computed: Sequence[Computed]
    tasks: Mapping[str, Task]
    laws: Mapping[str, Law]
    sections: Sequence[Section]
    claims: Sequence[Claim]
    optional: Sequence[str] = ()
    imported: tuple[Run, ...] = ()  # what `imports` are in a directory, and what else was imported there

    @property
    def runs(self) -> dict[str, Run]:
        return {run.id: run for runs in (*(sweep.runs for sweep in self.sweeps), self.imported) for run in runs}

    def beside(self, runs: Mapping[str, Run]) -> "Experiment":
        """With those of a directory's runs that `jaxsat import` brought there."""
        listed = {asked.id for asked in self.imports}
        brought = (run for id, run in runs.items() if run.imported.name and id not in listed)
        return dataclasses.replace(self, imported=tuple(brought))

    def with_imports(self, found: Mapping[str, Run]) -> "Experiment":
        """With what its `imports` are in a directory, by their ids."""
        return dataclasses.replace(self, imported=(*(found[asked.id] for asked in self.imports), *self.imported))

    def chosen(self, only: Sequence[str] = ()) -> "Experiment":
        """What is done of it: all but what is optional; or what `only` names: parts, measures, computed, and claims for
        what they are of. A part alone is measured by all measures, and a measure alone is of all parts, but for
        optional ones; with a part come those that its runs start from. What `jaxsat import` brought is measured where
        "imported" is named. Raises InputError."""
        claims = {claim.id: claim.of for claim in self.claims}
        parts, measures, computed = ({x.name for x in of} for of in (self.sweeps, self.measures, self.computed))
        parts |= {"imported"} if self.imports or self.imported else set()
        known = parts | measures | computed
        if wrong := [name for name in only if name not in known | claims.keys()]:
            raise unknown("part, measure, computed or claim", wrong[0], known | claims.keys())
        asked = {*only, *(name for each in only for name in claims.get(each, ()))} & known
        if only and not asked and all(claims[each] for each in only):
            raise InputError(f"--only {only[0]}: at the scale {self.scale} there is no {' or '.join(claims[only[0]])}")
        default = known - {*self.optional, *(() if self.imports else ("imported",))}
        if "imported" not in asked:
            self = dataclasses.replace(self, imported=())
        models = asked & (parts | measures) if asked else default
        chosen_parts, chosen_measures = (of & (asked & of or default) if models else set() for of in (parts, measures))
        if any(m.at == "best" for m in self.measures if m.name in chosen_measures):
            chosen_measures.add("loss")
        return self._cut(chosen_parts, chosen_measures, computed & (asked or default))

    def reported(self, only: "Experiment", begun: Set[str], here: Set[str]) -> "Experiment":
        """What a report is about: what is chosen, and of the parts that a directory has begun the runs that are there,
        `here`. What has not begun may share runs with what has."""
        parts = {sweep.name for sweep in only.sweeps} | begun
        if only.imports or only.imported or here & {asked.id for asked in self.imports}:
            parts.add("imported")
        whole = self._cut(parts, {m.name for m in self.measures}, {c.name for c in self.computed})
        there = lambda sweep: [run for run in sweep.runs if sweep in only.sweeps or run.id in here]
        sweeps = [dataclasses.replace(sweep, points=there(sweep)) for sweep in whole.sweeps if there(sweep)]
        return dataclasses.replace(whole, sweeps=sweeps)

    def _cut(self, parts: set[str], measures: set[str], computed: set[str]) -> "Experiment":
        sweeps = [sweep for sweep in self.sweeps if sweep.name in parts]
        starts = {run.start.run for sweep in sweeps for run in sweep.runs} - {None}
        if more := {s.name for s in self.sweeps if s.name not in parts and starts & {run.id for run in s.runs}}:
            return self._cut(parts | more, measures, computed)
        return dataclasses.replace(
            self,
            sweeps=sweeps,
            imports=[asked for asked in self.imports if "imported" in parts or starts & {asked.name, asked.id}],
            imported=tuple(run for run in self.imported if "imported" in parts),
            measures=[m for m in self.measures if m.name in measures],
            computed=[c for c in self.computed if c.name in computed],
        )

    def fitted(self, results: Results) -> Results:
        """`results` with the laws, and why others could not be fitted."""
        fits, why = {}, {}
        for name, law in self.laws.items():
            try:
                with user_code(self.file):
                    rows = law.rows(results)
                fits[name] = law.fit(rows)
            except NotMeasured as e:
                why[name] = f"needs {e}"
            except InputError as e:
                why[name] = str(e)
        return dataclasses.replace(results, laws=fits, not_fitted=why)

    def lacking(self, claim: Claim, results: Results) -> str:
        """What a claim needs that is not there; "" also where it asks for measurements that are still to come."""
        try:
            with user_code(self.file):
                return claim.needs(results)
        except NotMeasured:
            return ""

    def untestable(self, results: Results) -> list[str]:
        """In lines."""
        lacking = {claim.id: what for claim in self.claims if (what := self.lacking(claim, results))}
        return [f"claim {id} cannot be tested at this scale: {what}" for id, what in lacking.items()]

    def notices(self, rows: pd.DataFrame, command: str) -> list[str]:
        """Which measures have other code than that which made the numbers of the table `rows`, in lines."""
        made = set(rows["measure"])
        known = {key.rpartition("@")[0] for key in made}
        others = [m.name for m in (*self.measures, *self.computed) if m.key not in made and m.name in known]
        return [f"the numbers of measure {name!r} are of other code than it has now: {command}" for name in others]

    def hash(self, results: Results, said: Any) -> str:
        """Of all that a report is made of: numbers, what is `said` of them (JSON), and the code that makes the page."""
        h = hashlib.sha256(json.dumps([said, self.parts, results.runs.to_json()]).encode())
        h.update(pd.util.hash_pandas_object(results.measurements).to_numpy().tobytes())
        loaded = {Path(m.__file__) for m in [*sys.modules.values()] if getattr(m, "__file__", None)}
        beside = {path for path in loaded if path.parent == self.file.parent and path.suffix == ".py"}
        ours = {path for kind in ("*.py", "*.html") for path in Path(__file__).parent.rglob(kind)}
        for path in sorted({self.file, *beside, *ours}):
            h.update(path.read_bytes() if path.is_file() else b"")  # a module whose file is gone
        return h.hexdigest()

    @property
    def parts(self) -> dict[str, tuple[str, ...]]:
        """Name of the part -> ids of its runs. A run may belong to several."""
        parts = {sweep.name: sweep.runs for sweep in self.sweeps} | (
            {"imported": self.imported} if self.imported else {}
        )
        return {name: tuple(run.id for run in runs) for name, runs in parts.items()}


def names() -> list[str]:
    """The experiments that come with jaxsat."""
    folder = Path(importlib.import_module("jaxsat.experiments").__path__[0])
    return sorted(p.stem for p in folder.glob("*.py") if not p.stem.startswith("_"))


def load(name: str, scale: str) -> Experiment:
    """An experiment by its name, or from a user's Python file. Raises InputError for what is wrong with either."""
    if scale not in SCALES:
        raise unknown("scale", scale, SCALES)
    module = _module(name)
    file = Path(module.__file__)
    has = [f for f in ("sweeps", "imports", "computed") if callable(getattr(module, f, None))]
    if not has:
        raise InputError(
            f"{name} defines neither sweeps(scale) nor imports(scale) nor computed(scale): it needs one of them"
        )
    asked = {f: _listed(module, name, f, kind, scale) for f, kind in
             {"sweeps": Sweep, "imports": Import, "measures": Measure, "computed": Computed}.items()}  # fmt: skip
    if "measures" not in vars(module):
        asked["measures"] = measure.standard()
    if not any(asked[f] for f in has):
        raise InputError(f"{name}: {' and '.join(f'{f}({scale!r})' for f in has)} returned nothing to do")
    declared = {
        key: _declared(module, name, key, kind, empty)
        for key, kind, empty in (
            ("TASKS", Task, {}),
            ("LAWS", Law, {}),
            ("SECTIONS", Section, []),
            ("CLAIMS", Claim, []),
            ("OPTIONAL", str, []),
        )
    }
    for what, items in (("measure", [*asked["measures"], *asked["computed"]]), ("part", asked["sweeps"]),
                        ("import", asked["imports"])):  # fmt: skip
        if repeated := _repeated([item.name for item in items]):
            raise InputError(f"{name}: two {what}s are named {repeated!r}")
    if repeated := _repeated([claim.id for claim in declared["CLAIMS"]]):
        raise InputError(f"{name}: two claims have the id {repeated!r}")
    for m in asked["measures"]:
        if m.at == "best" and "loss" not in {other.name for other in asked["measures"]}:
            raise InputError(f"{name}: measure {m.name!r} at the best checkpoint needs measure.loss() in the list too")
    for f in ("measures", "computed"):  # what is theirs alone is known by its code
        asked[f] = [dataclasses.replace(m, code=identity(m.of, file.parent)) for m in asked[f]]
    check_names(declared["SECTIONS"])
    title = (module.__doc__ or file.stem).strip().splitlines()[0].rstrip(".")
    experiment = Experiment(file.stem, scale, file, title, *asked.values(), *declared.values())
    try:
        runs = experiment.runs.values()  # validated here, before anything is asked of them
        for run in runs:
            if run.task and run.task not in experiment.tasks:
                raise unknown("task", run.task, experiment.tasks)
    except InputError as e:
        raise InputError(f"{name}: {e}") from None
    for m in asked["measures"]:
        for step in m.at if isinstance(m.at, tuple) and not experiment.imports else ():
            if not any(step in run.checkpoint_steps for run in runs if m.runs(run)):
                raise InputError(f"{name}: measure {m.name!r} asks for step {step}, of which no run has a checkpoint")
    return experiment


def larger(name: str, than: Experiment) -> Iterator[Experiment]:
    """The experiment at each larger scale that it has, and where it is not the same again."""
    for scale in SCALES[SCALES.index(than.scale) + 1 :]:
        with contextlib.suppress(InputError):
            if (found := load(name, scale)).runs.keys() != than.runs.keys():
                yield found


@contextlib.contextmanager
def user_code(file: Path) -> Iterator[None]:
    """Around what runs the user's own lines: what goes wrong in them is said in one line, with its place."""
    try:
        yield
    except (InputError, Preempted):
        raise
    except SyntaxError as e:
        raise InputError(f"{e.filename}, line {e.lineno}: {e.msg}") from None
    except Exception as e:
        if isinstance(e, OSError) and not isinstance(e, FileNotFoundError):
            raise  # a full disk is no slip of theirs
        folders = file.parent.resolve(), Path(__file__).parent
        frames = [(f, Path(f.filename).resolve()) for f in traceback.extract_tb(e.__traceback__)]
        last = next(
            (f for f, path in reversed(frames) if path.parent == folders[0] or folders[1] in path.parents), None
        )
        if last is None or Path(last.filename).resolve().parent != folders[0]:
            raise  # our fault, not that of their lines
        said = f"no module {e.name!r}" if isinstance(e, ModuleNotFoundError) else f"{type(e).__name__}: {e}"
        if slip := re.search(r"(\w+)\.__init__\(\) got an unexpected keyword argument '(\w+)'", said):
            if dataclasses.is_dataclass(cls := vars(jaxsat).get(slip[1])):
                said = str(unknown(f"field of {slip[1]}", slip[2], (f.name for f in dataclasses.fields(cls))))
        raise InputError(f"{last.filename}, line {last.lineno}: {' '.join(said.split())}") from None


def _module(name: str) -> ModuleType:
    if name.endswith(".py"):
        path = Path(name)
        if not path.is_file():
            raise InputError(f"no file {name}: give the path of a Python file, or one of {', '.join(names())}")
        name = f"jaxsat_experiment_{path.stem}"  # theirs may be called random.py
        spec = importlib.util.spec_from_file_location(name, path)
        module = sys.modules[name] = importlib.util.module_from_spec(spec)  # where its dataclasses look for it
        folder = str(path.parent.resolve())
        if folder not in sys.path:
            sys.path.append(folder)  # last: a file beside it must not hide a library
        with user_code(path):
            spec.loader.exec_module(module)
        return module
    if name not in names():
        raise InputError(f"{unknown('experiment', name, names())}; the path of your own ends in .py")
    return importlib.import_module(f"jaxsat.experiments.{name}")


def _listed(module: ModuleType, name: str, function: str, kind: type, scale: str) -> list[Any]:
    """What a function of the experiment returns, checked; nothing where it does not exist."""
    f = getattr(module, function, None)
    if f is None:
        return []
    if not callable(f) or len(inspect.signature(f).parameters) != 1:
        raise InputError(f"{name}: {function} must be a function of one argument, the scale: def {function}(scale)")
    try:
        with user_code(Path(module.__file__)):
            found = f(scale)
    except InputError as e:
        raise InputError(f"{name}: {e}") from None
    if not isinstance(found, list | tuple) or not all(isinstance(item, kind) for item in found):
        raise InputError(f"{name}: {function}({scale!r}) must return a list of {kind.__name__}, not {found!r:.80}")
    return list(found)


def _declared(module: ModuleType, name: str, key: str, kind: type, empty: Any) -> Any:
    found = getattr(module, key, empty)
    if found is empty and isinstance(slip := getattr(module, key.lower(), None), dict | list | tuple):
        raise InputError(f"{name} has `{key.lower()} = {slip!r:.40}`: did you mean {key}?")
    if not isinstance(found, Mapping | list | tuple):
        found = [found]  # of no kind that is asked for: said below
    items = found.values() if isinstance(empty, dict) and isinstance(found, Mapping) else found
    if isinstance(found, Mapping) != isinstance(empty, dict) or not all(isinstance(item, kind) for item in items):
        shape = f"a dict of names to {kind.__name__}" if isinstance(empty, dict) else f"a list of {kind.__name__}"
        raise InputError(f"{name}: {key} must be {shape}, not {found!r:.80}")
    return found


def _repeated(found: Sequence[str]) -> str | None:
    return next((item for i, item in enumerate(found) if item in found[:i]), None)
