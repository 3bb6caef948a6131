import json

import pytest

from jaxsat.config import InputError
from jaxsat.evaluate import items_of, read_items

PAIR = {"good": "the sun shines", "bad": "the sun shine"}
CHOICE = {"context": "The sun is", "options": ["a star", "a stone", "a sea"], "answer": 0}
CLOZE = {"context": "We looked at the moon and the", "last": "stars"}
MATCH = {"source": "jump twice", "target": "JUMP JUMP"}


def write(tmp_path, *lines: str | bytes):
    path = tmp_path / "mine.jsonl"
    path.write_bytes(b"\n".join(line if isinstance(line, bytes) else line.encode() for line in lines))
    return path


def test_four_kinds_are_told_apart_by_their_keys(tmp_path):
    records = [PAIR | {"id": "x", "group": "number"}, CHOICE | {"id": 7}, CLOZE | {"group": None}, MATCH]
    items = read_items(write(tmp_path, *map(json.dumps, records)))
    assert items.name == "mine" and [item.kind for item in items.items] == ["pair", "choice", "cloze", "match"]
    assert [item.id for item in items.items] == ["x", "7", "3", "4"]
    assert [item.group for item in items.items] == ["number", "", "", ""]
    assert [item.context for item in items.items] == ["", "The sun is", CLOZE["context"], "jump twice"]
    assert [item.options[item.answer] for item in items.items] == ["the sun shines", "a star", "stars", "JUMP JUMP"]
    assert items_of("mine", records).items[1].options == ("a star", "a stone", "a sea")


def test_a_byte_order_mark_empty_lines_and_line_ends_of_windows_are_no_matter(tmp_path):
    path = write(tmp_path, b"\xef\xbb\xbf" + json.dumps(PAIR).encode() + b"\r", "", "  ", json.dumps(CLOZE) + "\r", "")
    assert [(item.kind, item.id) for item in read_items(path).items] == [("pair", "1"), ("cloze", "4")]


@pytest.mark.parametrize(
    "context, option, joined",
    [
        ("It is", "red", " red"),
        ("It is ", "red", "red"),
        ("It is", " red", " red"),
        ("It\n", "red", "red"),
        ("", "red", "red"),
    ],
)
def test_a_space_is_put_where_neither_side_has_white_space(context, option, joined):
    (item,) = items_of("x", [{"context": context, "options": [option, "blue"], "answer": 0}]).items
    assert item.continuations[0] == joined and item.options[0] == option


@pytest.mark.parametrize(
    "record, said",
    [
        ({"good": "x"}, 'line 2: no "bad"; a pair is {"good", "bad"}'),
        ({"bda": "x", "good": "y"}, 'line 2: no "bad"'),
        ({"context": "x", "options": ["a", "b"]}, 'line 2: no "answer"; a choice is {"context", "options", "answer"}'),
        ({"context": "x"}, 'line 2: no "options"'),
        ({"last": "x"}, 'line 2: no "context"; a cloze is'),
        ({"target": "x"}, 'line 2: no "source"; a match is'),
        ({"sentence_good": "x"}, 'line 2: no item; it is one of {"good", "bad"}, {"context"'),
        ([1], "line 2: no item"),
        (PAIR | {"grop": "x"}, "line 2: unknown key of a pair 'grop'; did you mean 'group'?"),
        (PAIR | {"context": "x"}, "line 2: unknown key of a pair 'context'"),
        (CHOICE | {"options": []}, r'line 2: "options" must be a list of two texts or more, not \[\]'),
        (CHOICE | {"options": ["one"]}, r"not \['one'\]"),
        (CHOICE | {"options": "ab"}, "not 'ab'"),
        (CHOICE | {"options": ["a", 2]}, r'"options\[1\]" must be a text, and not an empty one; it is 2'),
        (CHOICE | {"answer": 3}, '"answer" is 3; it must be the index of an option, 0 to 2'),
        (CHOICE | {"answer": -1}, '"answer" is -1'),
        (CHOICE | {"answer": True}, '"answer" is True'),
        (CHOICE | {"answer": "0"}, "\"answer\" is '0'"),
        (PAIR | {"good": ""}, 'line 2: "good" must be a text, and not an empty one'),
        (PAIR | {"bad": " \n"}, '"bad" must be a text, and not an empty one'),
        (PAIR | {"bad": None}, "it is None"),
        (CLOZE | {"context": ""}, '"context" must be a text, and not an empty one'),
        (CHOICE | {"context": 5}, '"context" must be a text'),
        (PAIR | {"id": ["x"]}, '"id" must be a text'),
        (PAIR | {"id": True}, '"id" must be a text'),
        (PAIR | {"group": 1.5}, '"group" must be a text'),
        (PAIR | {"bad": PAIR["good"]}, '"good" and "bad" are the same text'),
        (PAIR | {"id": 1}, "line 2: id '1' is that of .*mine.jsonl, line 1 too"),
        (PAIR | {"good": "\ud800"}, r'line 2: "good" has half a character, \\ud800 at character 1'),
    ],
)  # fmt: skip
def test_what_is_no_item_is_refused_with_file_line_and_key(tmp_path, record, said):
    path = write(tmp_path, json.dumps(PAIR), json.dumps(record))
    with pytest.raises(InputError, match=said) as error:
        read_items(path)
    assert str(error.value).startswith(f"{path}, line 2: ") and "\n" not in str(error.value)


@pytest.mark.parametrize(
    "line, said",
    [
        (b'{"good": "caf\xe9", "bad": "x"}', r"line 1: not UTF-8 \(.* at byte 13\)"),
        ('{"good": "x"', "line 1: not JSON"),
        ("9" * 5000, "line 1: cannot be read"),
        ("[" * 100_000, "line 1: cannot be read"),
        ("", 'holds no items; a line is one of {"good", "bad"}'),
    ],
)
def test_lines_that_cannot_be_read_are_refused(tmp_path, line, said):
    with pytest.raises(InputError, match=said):
        read_items(write(tmp_path, line))


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(InputError, match="cannot read the items .*nothing.jsonl: No such file"):
        read_items(tmp_path / "nothing.jsonl")
    with pytest.raises(InputError, match="cannot read the items .*: Is a directory"):
        read_items(tmp_path)
