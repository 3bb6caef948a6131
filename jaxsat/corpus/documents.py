"""One door for text: a corpus of ours, a TFDS dataset or the user's own file in, (id, text) out.

Files: .jsonl has a document a line, {"text": ..., "id": ...}, the id optional. In .txt, blank lines separate the
documents; a file without blank lines has one a line. Either may be .gz, local or in object storage. A document
without an id is named by its content, so equal texts are one document to the held-out split.
"""

import contextlib
import gzip
import hashlib
import itertools
import json
import os
import zlib
from collections.abc import Iterator
from typing import IO, TYPE_CHECKING, Any

from etils import epath

from jaxsat.config import InputError, unknown
from jaxsat.corpus.editions import NAMES, VERSION, cache_dir, edition

if TYPE_CHECKING:
    import tensorflow_datasets as tfds


def documents(name: str) -> Iterator[tuple[str, str]]:
    """(id, text) of every document of a corpus, always in the same order; none is empty.

    `name`: one of NAMES; a .txt or .jsonl file; a TFDS name like "c4/en", read from TFDS_DATA_DIR or the cache,
    or the directory of a prepared TFDS dataset: their train split. Raises InputError.
    """
    pairs = _read_file(epath.Path(name)) if _is_file(name) else _read_tfds(name)
    return ((key or content_id(text), text) for key, text in pairs if text)


def fingerprint(name: str) -> str:
    """What changes when the corpus does, without reading it all if it need not be."""
    if name in NAMES:
        return f"{name}/{edition(name)}/{VERSION}"
    if _is_file(name):
        with _open(epath.Path(name)) as f:
            return hashlib.file_digest(f, "sha256").hexdigest()
    info = _builder(name).info
    return f"{info.full_name} {info.splits['train'].num_examples} {info.splits['train'].num_bytes}"


def list_corpora() -> list[dict[str, Any]]:
    """What `documents` knows by name. `documents`, `bytes` and `path` are None until it is prepared."""
    return [
        {
            "name": name,
            "description": info.description.strip(),
            "license": info.redistribution_info.license,
            "source": info.homepage,
            "documents": info.splits["train"].num_examples if info.splits else None,
            "bytes": int(info.splits["train"].num_bytes) if info.splits else None,
            "path": info.data_dir if info.splits else None,
        }
        for name, info in ((name, _builder(name).info) for name in NAMES)
    ]


def content_id(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def _is_file(name: str) -> bool:
    return name.removesuffix(".gz").endswith((".txt", ".jsonl"))


@contextlib.contextmanager
def _open(path: epath.Path) -> Iterator[IO[bytes]]:
    """The bytes of a file, unzipped; turns what goes wrong inside the `with` too into InputError."""
    try:
        with path.open("rb") as f:
            yield gzip.open(f) if path.suffix == ".gz" else f
    except (OSError, EOFError, zlib.error) as e:
        raise InputError(f"cannot read the corpus {path}: {getattr(e, 'strerror', None) or e}") from None


def _read_file(path: epath.Path) -> Iterator[tuple[str | None, str]]:
    lines = _lines(path)
    if path.name.removesuffix(".gz").endswith(".jsonl"):
        for number, line in lines:
            if line:
                yield _record(f"{path}, line {number}", line)
    else:
        texts = [line for _, line in lines]
        blocks = [list(group) for filled, group in itertools.groupby(texts, key=bool) if filled]
        yield from ((None, text) for text in (texts if len(blocks) == 1 else map("\n".join, blocks)))


def _lines(path: epath.Path) -> Iterator[tuple[int, str]]:
    number = 0
    with _open(path) as f:
        try:
            for number, line in enumerate(f, start=1):
                yield number, line.decode("utf-8-sig").rstrip()
        except UnicodeDecodeError as e:
            raise InputError(f"{path}, line {number}: not UTF-8 ({e.reason} at byte {e.start})") from None


def _record(where: str, line: str) -> tuple[str | None, str]:
    try:
        record = json.loads(line)
    except json.JSONDecodeError as e:
        raise InputError(f'{where}: not JSON ({e.msg} at column {e.colno}); a line is {{"text": ...}}') from None
    if not isinstance(record, dict) or not isinstance(record.get("text"), str):
        raise InputError(f'{where}: no "text"; a line is {{"text": ...}} with an optional "id"')
    return (str(record["id"]) if "id" in record else None), record["text"]


def _builder(name: str) -> "tfds.core.DatasetBuilder":
    """The TFDS builder of a corpus, not prepared when it is one of ours. Raises InputError."""
    import tensorflow_datasets as tfds

    from jaxsat.corpus.builders import BUILDERS, prepared

    if name in BUILDERS:
        return BUILDERS[name](data_dir=cache_dir() / "tfds", file_format="array_record")
    if (epath.Path(name) / "dataset_info.json").exists():
        return tfds.builder_from_directory(name)
    data_dir = os.environ.get("TFDS_DATA_DIR", cache_dir() / "tfds")
    elsewhere = f"a TFDS dataset that needs TensorFlow is read when it lies prepared as array_record in {data_dir}"
    try:
        return prepared(tfds.builder(name, data_dir=data_dir, file_format="array_record"))
    except tfds.core.DatasetNotFoundError:
        raise InputError(f"{unknown('corpus', name, NAMES)}; a file ends in .txt or .jsonl; {elsewhere}") from None
    except ValueError as e:  # no such config, or prepared in another format
        why = str(e).splitlines()[0].rstrip(".")
        raise InputError(f"corpus {name!r}: {why}; a file ends in .txt or .jsonl; {elsewhere}") from None
    except ImportError as e:
        raise InputError(f"corpus {name!r} cannot be prepared here, it needs {e.name}; {elsewhere}") from None


def _read_tfds(name: str) -> Iterator[tuple[str | None, str]]:
    import tensorflow_datasets as tfds

    from jaxsat.corpus.builders import prepared

    builder = prepared(_builder(name))
    features = [key for key, f in builder.info.features.items() if isinstance(f, tfds.features.Text)]
    text = "text" if "text" in features else features[0] if len(features) == 1 else None
    if text is None or "train" not in builder.info.splits:
        has = f"splits {list(builder.info.splits)}, features {sorted(builder.info.features)}"
        raise InputError(f"corpus {name!r} needs a train split and one text; it has {has}")
    try:
        source = builder.as_data_source("train")
    except NotImplementedError as e:
        raise InputError(f"corpus {name!r} in {builder.data_dir}: {e}; prepare it as array_record") from None
    for start in range(0, len(source), 1000):  # one at a time is 2.5 times slower
        for example in source.__getitems__(range(start, min(start + 1000, len(source)))):
            yield (example["id"].decode() if "id" in features else None), example[text].decode()
