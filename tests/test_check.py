"""A bit that is flipped anywhere in an output directory is found, and what follows from it is said."""

import random
import shutil
from pathlib import Path

import pytest
from etils import epath

from jaxsat import disk
from jaxsat.check import check
from jaxsat.cli import main
from jaxsat.config import InputError
from jaxsat.study import Study
from tests.studies import ignore

pytestmark = pytest.mark.usefixtures("home")


def flip(path: Path, rng: random.Random) -> None:
    content = bytearray(path.read_bytes())
    content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    path.write_bytes(bytes(content))


def ours(out: Path) -> list[Path]:
    return sorted(p for p in out.rglob("*") if p.is_file() and p.stat().st_size)


def test_an_undamaged_study_has_no_faults(out, capsys):
    assert list(check(out)) == []
    assert main(["check", str(out)]) == 0
    said = capsys.readouterr()
    assert said.out == "" and "all is as it was written" in said.err
    assert [line.split()[3] for line in said.err.splitlines()[:2]] == ["files", "arrays"], "what takes long is said"


def test_a_flipped_bit_is_found_wherever_it_is(copy):
    rng, out = random.Random(0), epath.Path(copy)
    kinds = {(p.relative_to(copy).parts[0], p.suffix or p.name, p.parent.name): p for p in ours(copy)}
    assert len(kinds) > 20
    for path in kinds.values():
        content = path.read_bytes()
        flip(path, rng)
        assert list(disk.faults(out)), path
        path.write_bytes(content)
    assert list(disk.faults(out)) == []


def test_arrays_that_are_not_what_the_devices_held_are_found_by_themselves(copy):
    """Where every file is as it was written, and only the arrays are others: those of another step."""
    pack = next((copy / "checkpoints").iterdir())
    shutil.rmtree(pack / "20" / "params")
    shutil.copytree(pack / "10" / "params", pack / "20" / "params")
    disk.note_folder(epath.Path(pack / "20"))
    (fault,) = check(copy)
    assert fault.startswith(f"{pack / '20'} cannot be read (params.") and "is not what was saved" in fault


def test_what_is_gone_is_found(copy, capsys):
    gone = [copy / "sweep.json", *copy.glob("measurements/*.parquet"), *copy.glob("runs/*/metrics.jsonl")][1:]
    for path in gone:
        path.unlink()
    said = list(check(copy))
    assert [f"{path} is gone" for path in sorted(gone)] == sorted(said)
    assert main(["check", str(copy)]) == 1
    assert f"{len(gone)} faults" in capsys.readouterr().err
    with pytest.raises(InputError, match="holds no sweep.json"):
        list(check(copy / "runs"))


def test_damaged_tables_are_not_read(copy):
    study = Study("mine.py", "laptop", copy)
    (path, *_) = sorted((copy / "measurements").glob("*.parquet"))
    content = path.read_bytes()
    for place in range(40, len(content) - 40, len(content) // 10):
        path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        with pytest.raises(InputError, match=f"{path} is not (as it was written: remove it|a Parquet file)"):
            study.report()
    path.write_bytes(content)
    log = next(copy.glob("runs/*/metrics.jsonl"))
    log.write_text(log.read_text().replace('"loss": ', '"loss": 1'))
    with pytest.raises(InputError, match=f"{log} is not the log of a run .it is not as it was written"):
        study.report()


def test_a_damaged_checkpoint_is_kept_aside_said_and_made_again(copy, out, capsys):
    pack = next((copy / "checkpoints").iterdir())
    steps = sorted(int(p.name) for p in pack.iterdir() if p.name.isdigit())
    damaged = pack / str(steps[-1])
    (array,) = (damaged / "params").glob("ocdbt.process_0/d/*")
    flip(array, random.Random(1))
    shutil.rmtree(copy / "measurements")
    study = Study("mine.py", "laptop", copy)
    study.train(ignore)  # what lies on disk is complete, as far as its names tell
    study.measure(ignore)
    aside = pack / f"{steps[-1]}.damaged"
    assert aside.exists() and (aside / "why.txt").read_text()
    assert any(str(aside) in line and "kept aside" in line for line in study.notices())
    again = Study("mine.py", "laptop", copy)
    again.train(ignore)
    again.measure(ignore)
    assert damaged.exists() and aside.exists()
    ours, theirs = again.directory.measurements(), Study("mine.py", "laptop", out).directory.measurements()
    numbers = lambda rows: rows[rows["metric"] != "norm_seconds"].drop(columns="version")
    assert numbers(ours).equals(numbers(theirs))
