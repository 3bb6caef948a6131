"""Every file of a study in turn is damaged: it is found, kept aside or named, and made again to the same numbers."""

import random
import shutil
from pathlib import Path

import pandas as pd
import pytest
from etils import epath

from jaxsat import disk
from jaxsat.check import check
from jaxsat.checkpoints import Store
from jaxsat.config import InputError
from jaxsat.study import Study
from tests.chaos import small
from tests.chaos.small import numbers

DAMAGES = {
    "truncated": lambda content, at: content[: len(content) // 2],
    "emptied": lambda content, at: b"",
    "deleted": lambda content, at: None,
    "flipped": lambda content, at: content[:at] + bytes([content[at] ^ 1 << at % 8]) + content[at + 1 :],
}
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A finished study without a report."""
    home = tmp_path_factory.mktemp("damage")
    small.write(home)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        patch.setenv("JAXSAT_CACHE", str(home / "cache"))
        go_on("quiet")
        yield home


def go_on(out: str) -> None:
    study = Study("small.py", "laptop", out)
    study.train(lambda *_: None)
    study.measure(lambda *_: None)


def damaged(home: Path, file: Path, how: str) -> Path | None:
    """A copy of the quiet study in which one file is damaged; None where that would change nothing."""
    shutil.rmtree(home / "damaged", ignore_errors=True)
    shutil.copytree(home / "quiet", home / "damaged")
    path = home / "damaged" / file
    if not (content := path.read_bytes()):
        return None
    changed = DAMAGES[how](content, random.Random(str(file)).randrange(len(content)))
    path.unlink() if changed is None else path.write_bytes(changed)
    return home / "damaged"


@pytest.mark.parametrize("how", DAMAGES)
def test_every_file_of_the_newest_checkpoint(home, how):
    """Training makes it again from the one before, keeps the damaged one aside, and the numbers are those."""
    expected = numbers(home / "quiet")
    step = next((home / "quiet" / "checkpoints").glob("*/20"))
    files = sorted(p.relative_to(home / "quiet") for p in step.rglob("*") if p.is_file() and p.name != disk.HASHES)
    assert len(files) > 10
    for file in files:
        if not (out := damaged(home, file, how)):
            continue
        assert any(str(path).endswith(str(file)) for path, _ in disk.faults(epath.Path(out))), file
        shutil.rmtree(out / "measurements")
        for _ in range(2):  # what is found while it is measured is made again by the next command
            go_on(str(out))
        pd.testing.assert_frame_equal(numbers(out), expected, check_exact=True)
        with Store(out / "checkpoints" / step.parent.name, alone=True) as store:
            store.verify(20)


@pytest.mark.parametrize("how", DAMAGES)
def test_every_file_beside_the_checkpoints(home, how):
    """It is named by `check`; a command ends in one line that names it, or in the same numbers."""
    expected = numbers(home / "quiet")
    quiet = home / "quiet"
    files = sorted(p.relative_to(quiet) for p in quiet.rglob("*") if p.is_file() and "checkpoints" not in p.parts)
    for file in files:
        if not (out := damaged(home, file, how)) or file.parts[0] == ".leases":
            continue
        if not file.name.endswith(disk.HASHES):
            with_sums = not (file.name == "sweep.json" and how == "deleted")  # nothing is left that says what it was
            assert not with_sums or any(str(file) in line for line in check(out)), file
        try:
            go_on(str(out))
            found = numbers(out)
        except InputError as e:
            assert file.name.removesuffix(disk.HASHES).lstrip(".") in str(e) and "\n" not in str(e), (file, str(e))
        else:
            pd.testing.assert_frame_equal(found, expected, check_exact=True)
