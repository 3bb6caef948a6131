"""What is wrong with a user's file is said in one line."""

from collections.abc import Callable
from pathlib import Path

import pytest

from jaxsat.config import InputError
from jaxsat.experiment import load, names

EXPERIMENT = (Path(__file__).parent / "mine.py").read_text()
MEASURE = "\nfrom jaxsat.measure import Measure\ndef measures(scale): return [Measure('m', len, at=AT)]"
COMPUTED = "from jaxsat.measure import Computed\ndef computed(scale): return [Computed('c', dict)]\n"


@pytest.fixture
def user_file(tmp_path: Path) -> Callable[[str], str]:
    def write(text: str) -> str:
        (tmp_path / "theirs.py").write_text(text)
        return str(tmp_path / "theirs.py")

    return write


@pytest.mark.parametrize(
    "text, problem",
    [
        ("x = 1", r"defines neither sweeps\(scale\) nor imports\(scale\) nor computed\(scale\)"),
        ("def sweeps(scale:", r"theirs.py, line 1: .*never closed"),
        (EXPERIMENT.replace('"model.head_rank"', '"model.haed_rank"'),
         r"theirs.py: sweep 'main', point 0 .*'model.haed_rank'; did you mean 'model.head_rank'"),
        (EXPERIMENT.replace("heads=1", "heads=3"), r"theirs.py: .*not divisible by model.heads = 3: try"),
        (EXPERIMENT.replace("[2, 8]", "[9]"), r"theirs.py: .*model.head_rank = 9 is above model.width = 8"),
        (EXPERIMENT.replace("[2, 8]", "[]"), r"theirs.py: sweep 'main' has no runs"),
        (EXPERIMENT.replace("[2, 8]", "8"), r"theirs.py: model.head_rank = 8: an axis is a list of values"),
        (EXPERIMENT.replace('product({"model.head_rank": [2, 8], "seed": [0, 1]})', '{"seed": [0, 1]}'),
         r"theirs.py: sweep 'main': points must be a list of"),
        (EXPERIMENT.replace('Sweep("main", base, small)', "Sweep(base, small)"), r"theirs.py: Sweep\(.*needs a name"),
        (EXPERIMENT.replace("width=8", "widht=8"),
         r"theirs.py, line 8: unknown field of ModelConfig 'widht'; did you mean 'width'\?"),
        (EXPERIMENT.replace("def sweeps(scale)", "def sweeps()"), r"sweeps must be a function of one argument"),
        ("import helperr\n" + EXPERIMENT, r"theirs.py, line 1: no module 'helperr'"),
        (EXPERIMENT + "\n1 / 0", r"theirs.py, line \d+: ZeroDivisionError: division by zero"),
        ("def sweeps(scale): return []", r"theirs.py: sweeps\('laptop'\) returned nothing to do"),
        ("def sweeps(scale): pass", r"must return a list of Sweep, not None"),
        (EXPERIMENT.replace("return [", "return ['main', "), r"must return a list of Sweep, not \['main'"),
        (EXPERIMENT.replace('Sweep("hot"', 'Sweep("main"'), r"two parts are named 'main'"),
        (COMPUTED.replace("[Computed('c', dict)]", "2 * [Computed('c', dict)]"), "two measures are named 'c'"),
        (COMPUTED.replace("Computed('c', dict)", "dict"), r"computed\('laptop'\) must return a list of Computed"),
        (EXPERIMENT + MEASURE.replace("AT", "'best'"),
         r"measure 'm' at the best checkpoint needs measure.loss\(\)"),
        (EXPERIMENT + MEASURE.replace("AT", "(3,)"),
         r"measure 'm' asks for step 3, of which no run has a checkpoint"),
        (COMPUTED + "LAWS = [3]", "LAWS must be a dict of names to Law, not"),
        (COMPUTED + "CLAIMS = [3]", r"CLAIMS must be a list of Claim, not \[3\]"),
        (COMPUTED + "SECTIONS = {}", r"SECTIONS must be a list of Section, not \{\}"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_file_is_said(user_file, text, problem):
    with pytest.raises(InputError, match=problem) as e:
        load(user_file(text), "laptop")
    assert "\n" not in str(e.value) and len(str(e.value)) < 500


def test_a_bug_of_ours_is_no_fault_of_theirs(user_file, monkeypatch):
    monkeypatch.setattr("jaxsat.sweep._axes", None)
    with pytest.raises(TypeError, match="not callable"):
        load(user_file(EXPERIMENT), "laptop")


def test_a_file_may_import_what_lies_beside_it(user_file, tmp_path):
    (tmp_path / "beside_theirs.py").write_text("WIDTH = 8")
    text = "from beside_theirs import WIDTH\n" + EXPERIMENT.replace("width=8", "width=WIDTH")
    assert len(load(user_file(text), "laptop").runs) == 5


def test_computed_alone_is_an_experiment(user_file):
    found = load(user_file(COMPUTED), "laptop")
    assert not found.runs and [c.name for c in found.computed] == ["c"]


def test_a_run_may_belong_to_several_parts(user_file):
    both = EXPERIMENT.replace('Sweep("hot", base, hot)', 'Sweep("again", base, small)')
    found = load(user_file(both), "laptop")
    assert found.parts["main"] == found.parts["again"] and len(found.runs) == 4


def test_names_that_do_not_exist():
    assert "saturation" in names()
    for name, problem in {"saturatoin": "did you mean 'saturation'", "thesis": "saturation.* ends in .py"}.items():
        with pytest.raises(InputError, match=problem):
            load(name, "laptop")
    with pytest.raises(InputError, match="no file thesis.py.*saturation"):
        load("thesis.py", "laptop")
    with pytest.raises(InputError, match="unknown scale 'laptpo'; did you mean 'laptop'"):
        load("saturation", "laptpo")


def test_nobody_else_has_a_package_of_our_name_in_the_way(tmp_path):
    """A folder `experiments` beside the user hides none of ours."""
    import subprocess
    import sys

    (tmp_path / "experiments").mkdir()
    (tmp_path / "experiments" / "__init__.py").touch()
    code = "from jaxsat.experiment import names; print(names()); import experiments; print(experiments.__file__)"
    said = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    assert "saturation" in said and str(tmp_path) in said


CHOICES = (
    EXPERIMENT
    + """
from jaxsat import measure
from jaxsat.claims import Claim, above
from jaxsat.claims.papers import GODEY
from jaxsat.measure import Computed, Measure

tuned = lambda run: run.branch(10, {"train.steps": 30})
main_and_hot = sweeps


def sweeps(scale):
    main, hot = main_and_hot(scale)
    return [main, hot, Sweep("tuned", main.base, [tuned(run) for run in main.runs])]


def measures(scale):
    return [measure.loss(), measure.head(), measure.norms(), Measure("best_norm", lambda c: {"x": 1.0}, at="best")]


def computed(scale):
    return [Computed(name, lambda: {"x": 1.0}) for name in ("one", "two")]


of = lambda id, *of: Claim(id, "x", GODEY, "", "derived", lambda r: None, above(0), of=of)
CLAIMS = [of("hot", "hot", "loss"), of("twos", "two"), of("all"), of("gone", "at_pod")]
OPTIONAL = ["tuned", "norms", "two"]
"""
)


@pytest.mark.parametrize(
    "only, parts, measures, computed",
    [
        ((), ["main", "hot"], ["loss", "head", "best_norm"], ["one"]),
        (("all",), ["main", "hot"], ["loss", "head", "best_norm"], ["one"]),
        (("tuned",), ["main", "tuned"], ["loss", "head", "best_norm"], []),
        (("norms",), ["main", "hot"], ["norms"], []),
        (("best_norm",), ["main", "hot"], ["loss", "best_norm"], []),
        (("hot",), ["hot"], ["loss"], []),
        (("main", "norms", "two"), ["main"], ["norms"], ["two"]),
        (("twos",), [], [], ["two"]),
    ],
)
def test_what_is_chosen(user_file, only, parts, measures, computed):
    chosen = load(user_file(CHOICES), "laptop").chosen(only)
    found = [[item.name for item in of] for of in (chosen.sweeps, chosen.measures, chosen.computed)]
    assert found == [parts, measures, computed]


def test_a_choice_of_nothing_is_named(user_file):
    experiment = load(user_file(CHOICES), "laptop")
    with pytest.raises(InputError, match="unknown part, measure, computed or claim 'tunde'; did you mean 'tuned'"):
        experiment.chosen(["tunde"])
    with pytest.raises(InputError, match="--only gone: at the scale laptop there is no at_pod"):
        experiment.chosen(["gone"])


def test_a_report_is_of_what_is_chosen_and_what_is_there(user_file):
    experiment = load(user_file(CHOICES), "laptop")
    main, hot, tuned = ([run.id for run in sweep.runs] for sweep in experiment.sweeps)
    only = experiment.chosen(["hot"])
    found = lambda begun, here: experiment.reported(only, set(begun), set(here)).parts
    assert found([], [*main, *hot]) == {"hot": tuple(hot)}, "main was another experiment's"
    assert found(["main"], main[:1]) == {"main": tuple(main[:1]), "hot": tuple(hot)}, "it has grown since"
    assert found(["main", "tuned"], [*main, *tuned]) == {"main": tuple(main), "hot": tuple(hot), "tuned": tuple(tuned)}
