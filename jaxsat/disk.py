"""What a study keeps in files: whole or absent as they are written, and what they should be as they are read."""

import json
import typing
import uuid
from types import UnionType
from typing import Any, Literal

from etils import epath

from jaxsat.config import InputError

_NAMES = {dict: "an object", list: "a list", str: "a string", int: "a whole number", float: "a number",
          bool: "true or false", type(None): "null"}  # fmt: skip


def write_atomically(path: epath.Path, text: str) -> None:
    """A reader sees the old file or the new one, never half of one. Raises InputError where a file is in the way of the
    folder."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise InputError(f"{path.parent} cannot be a folder: a file is in its place, move it away") from None
    temporary = path.parent / f".{path.name}.{uuid.uuid4().hex}.tmp"
    temporary.write_text(text)
    temporary.replace(path)


def read_json(path: epath.Path, shape: Any, kind: str, todo: str) -> Any:
    """The JSON of a file, of the types that `shape` says: a TypedDict, `list[str]`, ... Raises InputError with the
    place that is wrong, that the file is not `kind`, and what is `todo`."""
    return _read(path, lambda text: _checked(json.loads(text), shape), kind, todo)


def read_lines(path: epath.Path, shape: Any, kind: str, todo: str, last: int = 0) -> list[Any]:
    """As `read_json`, of a file with a JSON value a line; all lines, or the `last` few; an
    empty list where there is no file."""

    def parse(text: str) -> list[Any]:
        lines = list(enumerate(text.splitlines(), start=1))
        return [_line(number, line, shape) for number, line in lines[-last:]]

    return _read(path, parse, kind, todo) if path.exists() else []


def _read(path: epath.Path, parse: typing.Callable[[str], Any], kind: str, todo: str) -> Any:
    try:
        return parse(path.read_text())
    except (ValueError, RecursionError) as e:
        why = str(e).partition("\n")[0]
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as e:
        why = e.strerror
    raise InputError(f"{path} is not {kind} ({why}): {todo}")


def _line(number: int, line: str, shape: Any) -> Any:
    try:
        return _checked(json.loads(line), shape)
    except (ValueError, RecursionError) as e:
        raise ValueError(f"line {number}: {getattr(e, 'msg', e)}") from None


def _checked(value: Any, shape: Any, place: str = "") -> Any:
    """`value`, if it is of the types that `shape` says; an object may have more keys than those. Raises ValueError."""
    if shape is Any:
        return value
    record, args = typing.is_typeddict(shape), typing.get_args(shape)
    kind = dict if record else typing.get_origin(shape) or shape
    if kind is Literal:
        fits, right = value in args, " or ".join(map(repr, args))
    else:
        fits = type(value) in ({float: (int, float), UnionType: args}.get(kind) or (kind,))
        right = " or ".join(_NAMES[of] for of in (args if kind is UnionType else (kind,)))
    if not fits:
        raise ValueError(f"{place and f'{place} = '}{json.dumps(value):.40}: must be {right}")
    if record:
        within = [(key, value[key], of) for key, of in shape.__annotations__.items() if key in value]
    elif kind is dict:
        within = [(key, of, args[1]) for key, of in value.items()]
    else:
        within = [(i, of, args[0]) for i, of in enumerate(value)] if kind is list else []
    for key, of, its in within:
        _checked(of, its, f"{place}.{key}".lstrip("."))
    if record and (missing := [key for key in shape.__annotations__ if key in shape.__required_keys__ - value.keys()]):
        raise ValueError(f"no {f'{place}.{missing[0]}'.lstrip('.')!r}")
    return value
