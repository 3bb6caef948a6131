"""A measure of a user is known by its code: what keeps its numbers, and what is made again."""

import ast
import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from jaxsat import measure
from jaxsat.measure.identity import identity

TEXT = '''
"""An experiment."""

import dataclasses
import math
from functools import partial

import jax
import numpy as np
from jaxsat import ModelConfig, Run, measure
from helper_of_identity import COUNT, doubled
import helper_of_identity as helper

SCALE = 3
TABLE = {"a": 1}
TABLE["b"] = SCALE
UNUSED = 5


def half(x):
    """Of x."""
    return x / 2  # exactly


def norm(c):
    return {"norm": half(np.abs(c).sum()) * TABLE["b"]}


@jax.jit
def jitted(c):
    return norm(c)


def factory(k):
    def of(c):
        return {"m": c * k}

    return of


def again(n):
    return again(n - 1) if n else 0


def imported(c):
    return doubled(c) * COUNT


def through(c):
    return helper.doubled(c)


def with_default(c, size=4):
    return c * size


def local(c):
    """Its own names are not those of the file."""
    UNUSED = [SCALE for SCALE in c]
    k = lambda norm: norm(UNUSED)
    return k(c)


k = 7


@dataclasses.dataclass
class Point:
    x: int


class Scaled:
    def __init__(self, by):
        self.by = by

    def __call__(self, c):
        return self.of(c)

    def of(self, c):
        return c * self.by + NOTHING


NOTHING = 0
LAMBDAS = [lambda c: c + 1, lambda c: c + 2, lambda c: (lambda d: d + c)]
INNER = LAMBDAS[2](1)
FOUND = {
    "norm": norm, "jitted": jitted, "two": factory(2), "three": factory(3), "array": factory(np.zeros(3)),
    "partial": partial(with_default, size=5), "default": with_default, "again": again, "imported": imported,
    "through": through, "first": LAMBDAS[0], "second": LAMBDAS[1], "nested": LAMBDAS[2], "inner": INNER,
    "run": factory(Run()), "model": factory(Run(ModelConfig(depth=3))), "set": factory({"b", "a"}),
    "local": local, "class": factory(Point), "object": factory(Point(2)), "none": factory(None),
    "function": factory(half), "np": factory(np.int64(2)),
    "callable": Scaled(2), "another": Scaled(3), "method": Scaled(2).of,
    "with_math": lambda c: math.floor(c),
}
'''
HELPER = """import deep_of_identity as deep
from deep_of_identity import ZERO

COUNT = 2


def doubled(x):
    return COUNT * x + ZERO
"""
DEEP = "ZERO = 0\n\n\ndef unused():\n    return 1\n"


def loaded(path: Path, text: str, helper: str = HELPER, deep: str = DEEP) -> dict[str, str]:
    """The identity of each function of FOUND, where the file has this name and text."""
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    modules = {}
    with pytest.MonkeyPatch.context() as patch:
        for name, file, source in (("deep_of_identity", path.parent / "deep_of_identity.py", deep),
                                   ("helper_of_identity", path.parent / "helper_of_identity.py", helper),
                                   (f"jaxsat_experiment_{path.stem}", path, text)):  # fmt: skip
            file.write_text(source)
            spec = importlib.util.spec_from_file_location(name, file)
            modules[name] = module_from(spec)
            patch.setitem(sys.modules, name, modules[name])
            exec(compile(source, str(file), "exec"), vars(modules[name]))
        return {name: identity(of, path.parent) for name, of in modules[name].FOUND.items()}


def module_from(spec: object) -> ModuleType:
    return importlib.util.module_from_spec(spec)


@pytest.fixture
def before(tmp_path) -> dict[str, str]:
    return loaded(tmp_path / "a" / "mine.py", TEXT)


def test_all_are_told_apart(before):
    assert len(set(before.values())) == len(before) - 1 and before["two"] == before["np"]
    assert all(len(found) == 8 for found in before.values())


def test_another_name_place_and_layout_change_nothing(before, tmp_path):
    assert loaded(tmp_path / "a" / "renamed.py", TEXT) == before
    dull = ast.unparse(ast.parse(TEXT.replace('"""Of x."""', '"""Half of x."""').replace("  # exactly", "")))
    assert loaded(tmp_path / "b" / "mine.py", "# A comment.\n\n" + dull.replace("LAMBDAS = ", "\nLAMBDAS = ")) == before
    more = TEXT.replace("import ModelConfig", "import DataConfig, ModelConfig").replace(
        "UNUSED = 5", "UNUSED = 6\nX = 1"
    )
    assert loaded(tmp_path / "c" / "mine.py", more.replace("[lambda c: c + 1,", "[lambda c: c + 1, ").replace(
        '"norm": norm', '"more": len, "norm": norm')) == before | {"more": loaded_of(len)}  # fmt: skip


def loaded_of(of) -> str:
    return identity(of, Path("nowhere"))


@pytest.mark.parametrize(
    "old, new, changed",
    [
        ("x / 2", "x / 3", {"norm", "jitted", "function"}),
        ("SCALE = 3", "SCALE = 4", {"norm", "jitted"}),
        ('TABLE["b"] = SCALE', 'TABLE["b"] = 3', {"norm", "jitted"}),
        ('TABLE["b"] = SCALE', "TABLE.update(b=3)", {"norm", "jitted"}),
        ("np.abs(c)", "np.abs(c + 0)", {"norm", "jitted"}),
        (
            "c * k",
            "k * c",
            {"two", "three", "array", "run", "model", "set", "none", "function", "np", "class", "object"},
        ),
        ("factory(2)", "factory(2.5)", {"two"}),
        ("np.zeros(3)", "np.zeros(4)", {"array"}),
        ("depth=3", "depth=4", {"model"}),
        ('{"b", "a"}', '{"b", "c"}', {"set"}),
        ("size=4", "size=6", {"partial", "default"}),
        ("size=5", "size=7", {"partial"}),
        ("if n else 0", "if n else 1", {"again"}),
        ("lambda c: c + 1", "lambda c: c + 0", {"first"}),
        ("lambda c: c + 2", "lambda c: c + 0", {"second"}),
        ("LAMBDAS[2](1)", "LAMBDAS[2](2)", {"inner"}),
        ("lambda d: d + c", "lambda d: d - c", {"nested", "inner"}),
        ("import jax\n", "import jax as jax\n", set()),
        ("import math", "import numpy as math", {"with_math"}),
        ("np.int64(2)", "2", set()),
        ("UNUSED = 5", "UNUSED = 6", set()),
        ("k = 7", "k = 8", set()),
        ("Point(2)", "Point(3)", {"object"}),
        ("x: int", "x: float", {"class", "object"}),
        ("self.by + NOTHING", "self.by - NOTHING", {"callable", "another", "method"}),
        ("NOTHING = 0", "NOTHING = 1", {"callable", "another", "method"}),
        ("Scaled(3)", "Scaled(4)", {"another"}),
        ("norm(UNUSED)", "norm(c)", {"local"}),
    ],
)
def test_what_is_edited_is_another_and_nothing_else_is(before, tmp_path, old, new, changed):
    assert old in TEXT
    after = loaded(tmp_path / "a" / "mine.py", TEXT.replace(old, new))
    assert {name for name in before if after[name] != before[name]} == changed


def test_what_lies_beside_counts_and_what_is_installed_does_not(before, tmp_path):
    after = loaded(tmp_path / "a" / "mine.py", TEXT, HELPER.replace("COUNT * x", "x * COUNT"))
    assert {name for name in before if after[name] != before[name]} == {"imported", "through"}
    after = loaded(tmp_path / "a" / "mine.py", TEXT, deep=DEEP.replace("ZERO = 0", "ZERO = 1"))
    assert {name for name in before if after[name] != before[name]} == {"imported", "through"}
    after = loaded(tmp_path / "a" / "mine.py", TEXT, HELPER.replace("COUNT = 2", "COUNT = 3"))
    assert {name for name in before if after[name] != before[name]} == {"imported", "through"}


def test_bare_functions_of_jaxsat_have_no_hash_and_their_arguments_have(tmp_path):
    assert [identity(m.of, tmp_path) for m in measure.standard()] == ["", "", ""]
    found = {identity(measure.frozen_heads(ranks=ranks).of, tmp_path) for ranks in ((2, 4), (2, 8), [2, 4])}
    assert len(found) == 2 and "" not in found
    assert identity(len, tmp_path) != identity(max, tmp_path)


def test_every_process_says_the_same(before, tmp_path):
    """Whatever the seed of its hashes."""
    code = "import sys; sys.path[:0] = {!r}; from test_identity import *; print(loaded(Path({!r}), TEXT)['norm'])"
    place = str(tmp_path / "a" / "mine.py")
    for seed in "12":
        said = subprocess.run(
            [sys.executable, "-c", code.format([str(Path(__file__).parent), *sys.path], place)],
            env={"PYTHONHASHSEED": seed}, capture_output=True, text=True, check=True,
        ).stdout.strip()  # fmt: skip
        assert said == before["norm"]


GOLDEN = """import math
from functools import partial

TABLE = {k: f"{k!r:>3} and {math.pi:.2f}" for k in range(3)}
FIRST, *OTHERS = [1, 2, 3]


def measure(c, *, q: "int | None" = None):
    match c:
        case {"a": [1, *rest], **more} if rest:
            return more
        case str():
            ...
    try:
        with open(c) as f, open("y"):
            rows = [line for line in f] if q else sorted(f, key=lambda x: -x)
    except (OSError, ValueError) as e:
        raise RuntimeError(f"{e}" "more" f"{rows=}") from e
    if (n := len(rows)) > 3 and not 1 < n <= 9:
        return {"m": sum(x for x in rows) * TABLE[0], **{f"{n}": ~n @ n}}


FOUND = {
    "def": measure,
    "lambda": lambda c: f"{c}" + measure(c),
    "partial": partial(measure, q=1.5),
    "list": (lambda c: [x for x in c if x in OTHERS]),
}
"""


def test_what_is_on_disk_stays_known(tmp_path):
    """The same in Python 3.11, 3.12 and 3.13, tried."""
    found = loaded(tmp_path / "a" / "golden.py", GOLDEN)
    assert found == {"def": "c5241306", "lambda": "3aff4dd5", "partial": "0c8991b8", "list": "57ab3f77"}
