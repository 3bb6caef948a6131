"""Files that are whole or absent, and JSON that is what it should be."""

import json
import os
from typing import Any, Literal, TypedDict

import pytest
from etils import epath

from jaxsat import disk
from jaxsat.config import InputError
from jaxsat.disk import read_json, read_lines, write_atomically


class Line(TypedDict):
    step: int


class Shape(TypedDict):
    format: Literal[2]
    packs: list[list[str]]
    lines: dict[str, Line]
    at_hand: list[str | None]
    size: float
    rest: Any


RIGHT = {"format": 2, "packs": [["a"], []], "lines": {"a": {"step": 1, "more": 3}}, "at_hand": ["x", None], "size": 1,
         "rest": {}, "unknown": 3}  # fmt: skip


@pytest.mark.parametrize(
    "text, why",
    [
        ('{"format": 2', "Expecting ',' delimiter: line 1 column 13"),
        ("[" * 100_000, "maximum recursion"),
        ("[]", r"\[\]: must be an object"),
        ("{}", "no 'format'"),
        ({"format": 1}, "format = 1: must be 2"),
        ({"packs": None}, "packs = null: must be a list"),
        ({"packs": [["a"], 3]}, "packs.1 = 3: must be a list"),
        ({"packs": [["a", True]]}, "packs.0.1 = true: must be a string"),
        ({"lines": []}, r"lines = \[\]: must be an object"),
        ({"lines": {"a": {}}}, "no 'lines.a.step'"),
        ({"lines": {"a": {"step": 1.0}}}, "lines.a.step = 1.0: must be a whole number"),
        ({"lines": {"a": {"step": True}}}, "lines.a.step = true: must be a whole number"),
        ({"at_hand": [3]}, "at_hand.0 = 3: must be a string or null"),
        ({"size": "12"}, 'size = "12": must be a number'),
    ],
)
def test_json_that_is_something_else_is_named_with_its_place(tmp_path, text, why):
    path = epath.Path(tmp_path) / "x.json"
    path.write_text(text if isinstance(text, str) else json.dumps(RIGHT | text))
    with pytest.raises(InputError, match=rf"x\.json is not a thing \(.*{why}.*\): mend it$") as e:
        read_json(path, Shape, "a thing", "mend it")
    assert "\n" not in str(e.value) and len(str(e.value)) < 300


def test_what_is_right_is_as_it_was_written(tmp_path):
    path = epath.Path(tmp_path) / "deep" / "x.json"
    write_atomically(path, json.dumps(RIGHT))
    assert read_json(path, Shape, "a thing", "mend it") == RIGHT
    assert {p.name for p in path.parent.iterdir()} == {"x.json", ".x.json.xxh3"}


def test_what_was_written_over_by_another_hand_is_not_read(tmp_path):
    path = epath.Path(tmp_path) / "x.json"
    for size in (1.0, 2.0, 3.0):
        write_atomically(path, json.dumps(RIGHT | {"size": size}))
        assert list(disk.faults(path.parent)) == []
    path.write_text(json.dumps(RIGHT | {"size": 2.0}))  # as where a process ended between the hash and the file
    assert read_json(path, Shape, "a thing", "mend it")["size"] == 2.0
    path.write_text(json.dumps(RIGHT | {"size": 4.0}))
    with pytest.raises(InputError, match=r"x\.json is not a thing \(it is not as it was written\): mend it"):
        read_json(path, Shape, "a thing", "mend it")
    assert [fault for _, fault in disk.faults(path.parent)] == [f"{path} is not as it was written"]
    path.unlink()
    assert [fault for _, fault in disk.faults(path.parent)] == [f"{path} is gone"]


def test_a_folder_that_is_written_as_one(tmp_path):
    folder = epath.Path(tmp_path) / "report"
    for name in ("a.txt", "deep/b.bin"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(name.encode())
    disk.note_folder(folder)
    assert list(disk.faults(folder)) == []
    (folder / "a.txt").write_bytes(b"b.txt")
    (folder / "deep" / "b.bin").unlink()
    assert [fault for _, fault in disk.faults(folder)] == [
        f"{folder / 'a.txt'} is not as it was written", f"{folder / 'deep/b.bin'} is gone"
    ]  # fmt: skip
    (folder / "a.txt").unlink()
    (folder / "a.txt").mkdir()
    assert f"{folder / 'a.txt'} cannot be read (Is a directory)" in [fault for _, fault in disk.faults(folder)]
    for noted in ("{", "[" * 100_000, '{"a\\u0000": ""}'):
        (folder / ".xxh3").write_text(noted)
        assert "cannot be read" in next(disk.faults(folder))[1]
    (folder / ".xxh3").unlink()
    os.symlink("nowhere", folder / ".xxh3")
    assert "cannot be read" in next(disk.faults(folder))[1]


def test_lines_are_named_by_their_number(tmp_path):
    path = epath.Path(tmp_path) / "x.jsonl"
    assert read_lines(path, Line, "a log", "mend it") == []
    path.write_text('{"step": null}\n{"step": 1}\n{"step": 2}\n')
    assert read_lines(path, Line, "a log", "mend it", last=2) == [{"step": 1}, {"step": 2}]
    with pytest.raises(InputError, match=r"x\.jsonl is not a log \(line 1: step = null: must be a whole number\)"):
        read_lines(path, Line, "a log", "mend it")
    path.write_text('{"step": 1}\n{"ste')
    with pytest.raises(InputError, match=r"x\.jsonl is not a log \(line 2: Unterminated string"):
        read_lines(path, Line, "a log", "mend it", last=1)


def test_what_is_no_file_and_what_is_in_the_way(tmp_path):
    path = epath.Path(tmp_path) / "x.json"
    with pytest.raises(InputError, match="x.json is not a thing .No such file or directory.: mend it"):
        read_json(path, Shape, "a thing", "mend it")
    (path / "y.json").mkdir(parents=True)
    with pytest.raises(InputError, match="x.json is not a thing .Is a directory.: mend it"):
        read_json(path, Shape, "a thing", "mend it")
    (tmp_path / "file").write_bytes(b"\xff")
    with pytest.raises(InputError, match="file is not a thing .'utf-8' codec can't decode"):
        read_json(epath.Path(tmp_path) / "file", Shape, "a thing", "mend it")
    for inside in ("file/x", "file/deep/x"):
        with pytest.raises(InputError, match="cannot be a folder: a file is in its place, move it away"):
            write_atomically(epath.Path(tmp_path) / inside, "")


def test_a_path_of_a_bucket_stays_one(tmp_path, monkeypatch):
    """`resolve` of epath makes /cwd/gs:/bucket/out of it."""
    monkeypatch.chdir(tmp_path)
    assert str(disk.absolute("gs://bucket/out")) == "gs://bucket/out"
    assert str(disk.absolute("out")) == str(tmp_path / "out")
