"""What a study keeps in files: whole or absent as they are written, and what they should be as they are read.

Beside every file lies its hash, in .<name>.xxh3, and in every folder that is written as one those of all its files, in
.xxh3: a bit that is flipped is found.
"""

import contextlib
import functools
import json
import os
import typing
import uuid
from collections.abc import Callable, Iterator, Mapping
from types import UnionType
from typing import Any, Literal

import xxhash
from etils import epath

from jaxsat.config import InputError

HASHES = ".xxh3"
_NAMES = {dict: "an object", list: "a list", str: "a string", int: "a whole number", float: "a number",
          bool: "true or false", type(None): "null"}  # fmt: skip


def write_atomically(path: epath.Path, content: str | bytes) -> None:
    """A reader sees the old file or the new one, never half of one. Raises InputError where a file is in the way of the
    folder."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise InputError(f"{path.parent} cannot be a folder: a file is in its place, move it away") from None
    content = content.encode() if isinstance(content, str) else content
    # First the hash: a process that ends in between leaves the file of the hash before, and that stays.
    hashes = list(dict.fromkeys([_hash(content), *_hashes(path)]))[:4]  # of several writers at once
    _put(_noted(path), "\n".join([*hashes, _hash("".join(hashes).encode())]).encode())
    _put(path, content)


def in_bucket(path: epath.PathLike) -> bool:
    return "://" in os.fspath(path)


def absolute(path: epath.PathLike) -> epath.Path:
    """As orbax and tensorstore want it. Of a bucket, `resolve` of epath makes a local one: /cwd/gs:/bucket/..."""
    path = epath.Path(path)
    return path if in_bucket(path) else path.resolve()


def _hash(content: bytes) -> str:
    return xxhash.xxh3_128_hexdigest(content)


def _put(path: epath.Path, content: bytes) -> None:
    temporary = path.parent / f".{path.name.lstrip('.')}.{uuid.uuid4().hex}.tmp"
    temporary.write_bytes(content)
    temporary.replace(path)


def _noted(path: epath.Path) -> epath.Path:
    return path.parent / f".{path.name}{HASHES}"


def _hashes(path: epath.Path) -> list[str]:
    """Those that are noted of a file; none where the note is damaged."""
    noted = _noted(path)
    *hashes, whole = (noted.read_bytes().decode(errors="replace").split() if noted.exists() else []) or [""]
    return hashes if _hash("".join(hashes).encode()) == whole else []


def intact(path: epath.Path, content: bytes) -> bool:
    """Whether a file is as `write_atomically` left it; one that was not written so is."""
    return not _noted(path).exists() or _hash(content) in _hashes(path)


def note_folder(folder: epath.Path, files: Mapping[str, bytes] | None = None) -> None:
    """Notes the hashes of all files in a folder, which will not change any more; `files` where they are not there
    yet."""
    if files is None:
        files = {os.path.relpath(path, folder): path.read_bytes() for path in _below(folder) if path.name != HASHES}
    hashes = {name: _hash(content) for name, content in sorted(files.items())}
    folder.mkdir(parents=True, exist_ok=True)
    _put(folder / HASHES, json.dumps(hashes, indent=0).encode())


def forget(folder: epath.Path, part: str) -> None:
    """Notes a folder without a part of it, which is about to be removed. Hashes that cannot be read stay, for
    `faults`."""
    if is_noted(folder):
        with contextlib.suppress(ValueError, RecursionError):
            hashes = _checked(json.loads((folder / HASHES).read_text()), dict[str, str])
            kept = {name: was for name, was in hashes.items() if not name.startswith(f"{part}/")}
            _put(folder / HASHES, json.dumps(kept, indent=0).encode())


def _below(folder: epath.Path) -> Iterator[epath.Path]:
    """All files. In a bucket, `walk` of epath leaves out its scheme."""
    scheme = f"{os.fspath(folder).partition('://')[0]}://" if in_bucket(folder) else ""
    for root, _, names in folder.walk():
        root = root if in_bucket(root) else epath.Path(f"{scheme}{root}")
        yield from (root / name for name in names)


def is_noted(folder: epath.Path) -> bool:
    return (folder / HASHES).exists()


def faults(
    out: epath.Path, progress: Callable[[float, str], None] = lambda done, what: None
) -> Iterator[tuple[epath.Path, str]]:
    """What is not as it was written below a folder: the file, and what is wrong with it. Reads all that has hashes."""
    all_noted = sorted(path for path in _below(out) if path.name.endswith(HASHES))
    for i, noted in enumerate(all_noted):
        progress(i / len(all_noted), str(noted.parent))
        path = noted.parent / noted.name.removesuffix(HASHES)[1:]
        found: list[tuple[epath.Path, Callable[[bytes], bool]]] = [(path, functools.partial(intact, path))]
        if noted.name == HASHES:
            try:
                hashes = _checked(json.loads(noted.read_text()), dict[str, str])
            except (ValueError, RecursionError, OSError) as e:
                yield noted, f"{noted} cannot be read ({str(e).splitlines()[0]})"
                continue
            found = [(noted.parent / name, lambda content, was=was: _hash(content) == was)
                     for name, was in hashes.items()]  # fmt: skip
        for path, is_right in found:
            try:
                if not is_right(path.read_bytes()):
                    yield path, f"{path} is not as it was written"
            except FileNotFoundError:
                yield path, f"{path} is gone"
            except (OSError, ValueError) as e:  # a folder, or a name that no file can have
                yield path, f"{path} cannot be read ({getattr(e, 'strerror', None) or e})"


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


def _read(path: epath.Path, parse: Callable[[str], Any], kind: str, todo: str) -> Any:
    try:
        found = parse((content := path.read_bytes()).decode())
        if intact(path, content):
            return found
        why = "it is not as it was written"
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
