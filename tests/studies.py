"""What tests of an output directory share: an experiment of a user, and one tiny study of it through all its stages."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from jaxsat.study import Study

EXPERIMENT = (Path(__file__).parent / "mine.py").read_text()
OWN = """
import dataclasses
import numpy as np
import pandas as pd
from jaxsat import measure
from jaxsat.claims import Claim, above
from jaxsat.claims.estimates import mean_over
from jaxsat.claims.papers import GODEY
from jaxsat.laws import Law, power_law
from jaxsat.measure import Computed, Measure
from jaxsat.report import Section


@dataclasses.dataclass
class Point:
    mean: "float"


def norm(c):
    return {"head_norm": np.linalg.norm(c.params["head"]["a"] @ c.params["head"]["b"])}


def measures(scale):
    return [*measure.standard(), Measure("norm", norm, at="last"), Measure("best_norm", lambda c: {"best": c.step},
    at="best")]


def computed(scale):
    return [Computed("squares", lambda: pd.DataFrame({"metric": "square", "index": [1, 2], "value": [1.0, 4.0]}))]


def points(r):
    return r.last("heldout_loss", part="main").rename(columns={"rank": "x", "value": "loss"})


def estimate(r):
    return mean_over(r.last("head_norm", part="main")["value"], "", "norm of the head")


LAWS = {"mine": Law(points, power_law)}
SECTIONS = [Section("My section")]
CLAIMS = [
    Claim("mine", "The head has a norm above 0.", GODEY, "", "derived", estimate, above(0)),
    Claim("huge", "Heads are huge.", GODEY, "", "derived", estimate, above(0), lambda r: "a larger machine"),
]
"""
COMPUTED = """
import pandas as pd
from jaxsat.measure import Computed, Measure


def computed(scale):
    of = lambda: pd.DataFrame({"metric": "square", "index": [1, 2], "value": [1.0, 4.0]})
    return {"laptop": [Computed("squares", of)]}[scale]
"""


def ignore(stage: str, fraction: float, what: str) -> None:
    pass


def trained_and_measured(study: Study) -> None:
    study.train(ignore)
    study.measure(ignore)


def files(folder: Path) -> dict[str, int]:
    """When each file was last written, in nanoseconds; without those of hashes."""
    found = (p for p in folder.rglob("*") if p.is_file() and not p.name.endswith(".xxh3"))
    return {str(p.relative_to(folder)): p.stat().st_mtime_ns for p in found}


def by_hand(path: Path, content: str | bytes) -> None:
    """Writes a file that then has no hash, as a file of the user."""
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    (path.parent / f".{path.name}.xxh3").unlink(missing_ok=True)


@pytest.fixture(scope="session")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a corpus and the user's experiment in it."""
    path = tmp_path_factory.mktemp("home")
    words = ["sun", "moon", "stars", "sea", "stone", "tree", "river", "and", "the", "of"]
    lines = [" ".join(np.random.default_rng(i).choice(words, 30)) for i in range(200)]
    (path / "words.txt").write_text("\n".join(lines))
    (path / "mine.py").write_text(EXPERIMENT)
    return path


@pytest.fixture
def home(place: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """`place` as the working directory."""
    monkeypatch.setenv("JAXSAT_CACHE", str(place / "cache"))
    monkeypatch.chdir(place)
    return place


@pytest.fixture(scope="session")
def studied(place: Path) -> list[tuple[str, float, str]]:
    """Trains, measures and reports in a process a stage; what the stages told about their progress."""
    calls = []
    tell = lambda *call: calls.append(call)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAXSAT_CACHE", str(place / "cache"))
        patch.chdir(place)
        Study("mine.py", "laptop").train(tell)
        Study("mine.py", "laptop").measure(tell)
        Study("mine.py", "laptop").report()
    return calls


@pytest.fixture
def out(home: Path, studied: list) -> Path:
    """The directory of the study. Copy it before changing it."""
    return home / "runs" / "mine"


@pytest.fixture
def copy(out: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(out, tmp_path / "copy"))


@pytest.fixture
def user_file(home: Path, tmp_path: Path) -> Callable[[str], str]:
    def write(text: str) -> str:
        (tmp_path / "mine.py").write_text(text)
        return str(tmp_path / "mine.py")

    return write
