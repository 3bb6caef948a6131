"""Items: what is scored of a model, a line of JSON each, told apart by their keys.

{"good", "bad"}                     a minimal pair: the good text should be the more likely
{"context", "options", "answer"}    a choice: the option with index `answer`, from 0, should be
{"context", "last"}                 a cloze: after the context the last word should come first
{"source", "target"}                exact match: after the source the model should write the target

Each may have an `id` (else the number of its line) and a `group`. Where neither side of a joint of two texts has white
space, a space is put there.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal, get_args

from etils import epath

from jaxsat.config import InputError, unknown
from jaxsat.corpus.documents import following

Kind = Literal["pair", "choice", "cloze", "match"]
KEYS = {
    "pair": ("good", "bad"),
    "choice": ("context", "options", "answer"),
    "cloze": ("context", "last"),
    "match": ("source", "target"),
}


@dataclass(frozen=True)
class Item:
    """Texts that are scored after a context, and which of them is right. where: its file and line, for messages."""

    kind: Kind
    id: str
    group: str
    context: str  # "" for a pair
    options: tuple[str, ...]  # as written; a pair's are (good, bad)
    answer: int
    where: str

    @property
    def continuations(self) -> tuple[str, ...]:
        """The options as they follow the context."""
        return tuple(following(self.context, option) for option in self.options)


@dataclass(frozen=True)
class Items:
    """A set of items under one name, which a summary calls `items`."""

    name: str
    items: tuple[Item, ...]


def read_items(path: epath.PathLike) -> Items:
    """The items of a .jsonl file, by its stem. Raises InputError with file, line and key."""
    path = epath.Path(path)
    try:
        lines = path.read_bytes().removeprefix(b"\xef\xbb\xbf").split(b"\n")
    except OSError as e:
        raise InputError(f"cannot read the items {path}: {e.strerror or e}") from None
    records = ((i, _record(f"{path}, line {i}", line)) for i, line in enumerate(lines, start=1) if line.strip())
    return _items(path.stem, str(path), records)


def items_of(name: str, records: Iterable[dict[str, Any]]) -> Items:
    """The items that these objects would be in a file. Raises InputError with the number of the object, from 1."""
    return _items(name, name, enumerate(records, start=1))


def _items(name: str, source: str, records: Iterable[tuple[int, Any]]) -> Items:
    items: dict[str, Item] = {}
    for number, record in records:
        item = _item(f"{source}, line {number}", number, record)
        if item.id in items:
            raise InputError(f"{item.where}: id {item.id!r} is that of {items[item.id].where} too")
        items[item.id] = item
    if not items:
        raise InputError(f"{source} holds no items; a line is one of {_kinds()}")
    return Items(name, tuple(items.values()))


def _record(where: str, line: bytes) -> Any:
    try:
        return json.loads(line.decode())
    except UnicodeDecodeError as e:
        raise InputError(f"{where}: not UTF-8 ({e.reason} at byte {e.start})") from None
    except json.JSONDecodeError as e:
        raise InputError(f"{where}: not JSON ({e.msg} at column {e.colno})") from None
    except (ValueError, RecursionError) as e:  # a number of 5000 digits, brackets in brackets without end
        raise InputError(f"{where}: cannot be read ({e})") from None


def _item(where: str, number: int, record: Any) -> Item:
    if not isinstance(record, dict) or not any(key in record for keys in KEYS.values() for key in keys):
        raise InputError(f"{where}: no item; it is one of {_kinds()}")
    kind: Kind = max(get_args(Kind), key=lambda kind: sum(key in record for key in KEYS[kind]))
    for key in KEYS[kind]:
        if key not in record:
            raise InputError(f'{where}: no "{key}"; a {kind} is {_shape(kind)}')
    for key in record:
        if key not in (*KEYS[kind], "id", "group"):
            raise InputError(f"{where}: {unknown(f'key of a {kind}', key, [*KEYS[kind], 'id', 'group'])}")
    label = {"id": str(number), "group": ""}
    for key in label:
        if record.get(key) is not None:
            value = record[key]
            label[key] = _text(where, key, str(value) if type(value) is int else value)
    if label["group"] == "item":
        raise InputError(f'{where}: "group" is "item", which names the scores of single items: take another word')
    text = lambda key: _text(where, key, record[key])
    if kind == "pair":
        context, options, answer = "", (text("good"), text("bad")), 0
        if options[0] == options[1]:
            raise InputError(f'{where}: "good" and "bad" are the same text')
    elif kind == "choice":
        context = "" if record["context"] == "" else text("context")  # empty: whole texts are compared
        options, answer = _options(where, record["options"]), record["answer"]
        if type(answer) is not int or not 0 <= answer < len(options):
            last = len(options) - 1
            raise InputError(f'{where}: "answer" is {answer!r:.40}; it must be the index of an option, 0 to {last}')
    else:
        context, options, answer = text(KEYS[kind][0]), (text(KEYS[kind][1]),), 0
    return Item(kind, label["id"], label["group"], context, options, answer, where)


def _options(where: str, options: Any) -> tuple[str, ...]:
    if not isinstance(options, list) or len(options) < 2:
        raise InputError(f'{where}: "options" must be a list of two texts or more, not {options!r:.40}')
    return tuple(_text(where, f"options[{i}]", option) for i, option in enumerate(options))


def _text(where: str, key: str, value: Any) -> str:
    if not isinstance(value, str) or not value.strip():
        raise InputError(f'{where}: "{key}" must be a text, and not an empty one; it is {value!r:.40}')
    try:
        value.encode()
    except UnicodeEncodeError as e:
        lone = f"\\u{ord(value[e.start]):04x} at character {e.start + 1}"
        raise InputError(f'{where}: "{key}" has half a character, {lone}: write the pair or U+FFFD') from None
    return value


def _shape(kind: Kind) -> str:
    return "{" + ", ".join(f'"{key}"' for key in KEYS[kind]) + "}"


def _kinds() -> str:
    return ", ".join(map(_shape, KEYS))
