"""One door for text: a corpus of ours, a TFDS dataset or the user's own file in, (id, document) out.

Files: .jsonl has a document a line, with an optional "id": {"text": ...}; {"units": [3, 17, ...]}, whose integers are
words; or {"source": ..., "target": ...}, a pair. In .tsv a line is a pair, its first two columns. In .txt, lines that
hold only an end-of-text marker, such as <|endoftext|>, separate the documents; without one blank lines do; without
those a document is a line. Each may be .gz, local or in object storage. A marker within a text is text. A document
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
from typing import IO, TYPE_CHECKING, Any, NamedTuple

import numpy as np
from etils import epath

from jaxsat.config import InputError, unknown
from jaxsat.corpus.editions import NAMES, VERSION, cache_dir, edition
from jaxsat.corpus.tokenizer import END_OF_TEXT

if TYPE_CHECKING:
    import tensorflow_datasets as tfds


class TextPair(NamedTuple):
    """A document of which only the target is learnt, after its source."""

    source: str
    target: str

    @property
    def whole(self) -> str:
        return self.source + following(self.source, self.target)


class Units(str):
    """Integers as words, which the tokenizer "words" takes one by one."""


def following(context: str, text: str) -> str:
    """`text` as it stands after `context`: a space between them where neither side has white space."""
    bare = not context or context[-1].isspace()
    return text if bare or text[0].isspace() else f" {text}"


def documents(name: str) -> Iterator[tuple[str, str | TextPair]]:
    """(id, text or pair) of every document of a corpus, always in the same order; none is empty.

    `name`: one of NAMES; a .txt, .jsonl or .tsv file; a TFDS name like "c4/en", read from TFDS_DATA_DIR or the cache,
    or the directory of a prepared TFDS dataset: their train split. Raises InputError.
    """
    found = _read_file(epath.Path(name)) if _is_file(name) else _read_tfds(name)
    named = lambda document: content_id(document if isinstance(document, str) else "\t".join(document))
    return ((key or named(document), document) for key, document in found if document)


def parallel(first: str, second: str) -> Iterator[tuple[str, str, str]]:
    """("John 3:16", the verse in `first`, in `second`) of every verse of bible_web and bible_basic, in order.

    Without the titles of psalms, and without three chapters that the two number differently. Raises InputError for a
    corpus without verses.
    """
    here, there = _verses(first), _verses(second)
    for key, verses in here.items():
        if verses.keys() == there.get(key, {}).keys():
            yield from ((f"{key}:{verse}", text, there[key][verse]) for verse, text in verses.items())


def fingerprint(name: str) -> str:
    """What changes when the corpus does, or how it is read, without reading it all if it need not be.

    A TFDS dataset is known by its name, version and sizes.
    """
    if name in NAMES:
        return f"{name}/{edition(name)}/{VERSION}"
    if _is_file(name):
        with _open(epath.Path(name)) as f:
            return f"{_kind(name)} {hashlib.file_digest(f, 'sha256').hexdigest()}"
    info = _train(name).info
    return f"{info.full_name} {info.splits['train'].num_examples} {info.splits['train'].num_bytes}"


def at_hand(name: str) -> str | None:
    """The fingerprint of what can be looked at without fetching anything: a file, a corpus of ours; else None."""
    try:
        return fingerprint(name) if name in NAMES or _is_file(name) else None
    except InputError:
        return None


def label(name: str) -> str:
    """What a corpus is called where no path of this machine may stand."""
    if _is_file(name):
        return epath.Path(name).name
    return _builder(name).info.full_name if (epath.Path(name) / "dataset_info.json").exists() else name


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


def _kind(name: str) -> str:
    """How a file is read: .txt, .jsonl or .tsv; of what is no file, anything else."""
    return epath.Path(name.removesuffix(".gz")).suffix


def _is_file(name: str) -> bool:
    return _kind(name) in (".txt", ".jsonl", ".tsv")


@contextlib.contextmanager
def _open(path: epath.Path) -> Iterator[IO[bytes]]:
    """The bytes of a file, unzipped; turns what goes wrong inside the `with` too into InputError."""
    try:
        with path.open("rb") as f:
            yield gzip.open(f) if path.suffix == ".gz" else f
    except (OSError, EOFError, zlib.error) as e:
        raise InputError(f"cannot read the corpus {path}: {getattr(e, 'strerror', None) or e}") from None


def _read_file(path: epath.Path) -> Iterator[tuple[str | None, str | TextPair]]:
    lines = _lines(path)
    if _kind(path.name) != ".txt":
        read = _record if _kind(path.name) == ".jsonl" else _columns
        yield from (read(f"{path}, line {number}", line) for number, line in lines if line)
    else:
        texts = [line for _, line in lines]
        marked = any(line.strip() in END_OF_TEXT for line in texts)
        separators = END_OF_TEXT if marked else ("",)
        groups = itertools.groupby(texts, key=lambda line: line.strip() in separators)
        blocks = ["\n".join(block).strip("\n") for separates, block in groups if not separates]
        yield from ((None, text) for text in (texts if len(blocks) == 1 and not marked else blocks))


def _lines(path: epath.Path) -> Iterator[tuple[int, str]]:
    number = 0
    with _open(path) as f:
        try:
            for number, line in enumerate(f, start=1):
                yield number, line.decode("utf-8-sig").rstrip()
        except UnicodeDecodeError as e:
            raise InputError(f"{path}, line {number}: not UTF-8 ({e.reason} at byte {e.start})") from None


def _columns(where: str, line: str) -> tuple[None, TextPair]:
    source, *rest = line.split("\t")
    if not source.strip() or not rest or not rest[0].strip():
        raise InputError(f"{where}: needs two columns with a tab between them, source and target, neither empty")
    return None, TextPair(source, rest[0])


def _record(where: str, line: str) -> tuple[str | None, str | TextPair]:
    try:
        record = json.loads(line)
    except json.JSONDecodeError as e:
        raise InputError(f'{where}: not JSON ({e.msg} at column {e.colno}); a line is {{"text": ...}}') from None
    except (ValueError, RecursionError) as e:  # a number of 5000 digits, brackets in brackets without end
        raise InputError(f"{where}: cannot be read ({e})") from None
    found = [key for key in ("text", "units", "source", "target") if isinstance(record, dict) and key in record]
    if found in (["text", "source"], ["text", "target"]):  # where a text is from, in many a corpus
        found = ["text"]
    if found not in (["text"], ["units"], ["source", "target"]):
        has = f"has {', '.join(found)}" if found else 'no "text"'
        raise InputError(
            f'{where}: {has}; a line is {{"text": ...}}, {{"units": [...]}} or {{"source": ..., "target": ...}}, with '
            'an optional "id"'
        )
    texts = {"id": "" if record.get("id") is None else str(record["id"])}
    if found == ["units"]:
        texts["units"] = _units(where, record["units"])
    for key in {*found} - {"units"}:
        texts[key] = record[key]
        if not isinstance(record[key], str) or key != "text" and not record[key].strip():
            raise InputError(f'{where}: "{key}" must be a text, not {record[key]!r:.40}')
    for name, value in texts.items():
        try:
            value.encode()
        except UnicodeEncodeError as e:
            lone = f"\\u{ord(value[e.start]):04x} at character {e.start + 1}"
            raise InputError(f'{where}: "{name}" has half a character, {lone}: write the pair or U+FFFD') from None
    return texts["id"] or None, TextPair(texts["source"], texts["target"]) if len(found) == 2 else texts[found[0]]


def _units(where: str, units: Any) -> Units:
    wrong = [u for u in units if type(u) is not int or u < 0] if isinstance(units, list) else [units]
    if wrong:
        raise InputError(f'{where}: "units" must be a list of integers from 0 on, not {wrong[0]!r:.40}')
    return Units(" ".join(map(str, units)))


def _builder(name: str) -> "tfds.core.DatasetBuilder":
    """The TFDS builder of a corpus, not prepared when it is one of ours. Raises InputError."""
    import tensorflow_datasets as tfds

    from jaxsat.corpus.builders import BUILDERS, prepared

    if name in BUILDERS:
        return BUILDERS[name](data_dir=cache_dir() / "tfds", file_format="array_record")
    if (epath.Path(name) / "dataset_info.json").exists():
        return tfds.builder_from_directory(name)
    if name.startswith("huggingface:"):  # TFDS would ask their hub
        raise InputError(f"corpus {name!r} is on the hub of Hugging Face: give a file of it, .txt or .jsonl")
    data_dir = os.environ.get("TFDS_DATA_DIR", cache_dir() / "tfds")
    elsewhere = f"a TFDS dataset that needs TensorFlow is read when it lies prepared as array_record in {data_dir}"
    try:
        return prepared(tfds.builder(name, data_dir=data_dir, file_format="array_record"))
    except tfds.core.DatasetNotFoundError:
        raise InputError(
            f"{unknown('corpus', name, NAMES)}; a file ends in .txt, .jsonl or .tsv; {elsewhere}"
        ) from None
    except ValueError as e:  # no such config, or prepared in another format
        why = str(e).splitlines()[0].rstrip(".")
        raise InputError(f"corpus {name!r}: {why}; a file ends in .txt, .jsonl or .tsv; {elsewhere}") from None
    except ImportError as e:
        raise InputError(f"corpus {name!r} cannot be prepared here, it needs {e.name}; {elsewhere}") from None


def _train(name: str) -> "tfds.core.DatasetBuilder":
    """The builder of a TFDS dataset, prepared, with a train split in array_record. Raises InputError."""
    from jaxsat.corpus.builders import prepared

    builder = prepared(_builder(name))
    if "train" not in builder.info.splits:
        has = ", ".join(builder.info.splits) or "no split at all"
        raise InputError(f"corpus {name!r} in {builder.data_dir} needs a train split; it has {has}")
    return builder


def _read_tfds(name: str) -> Iterator[tuple[str | None, str]]:
    builder = _train(name)
    scalars = {key: feature for key, feature in builder.info.features.items() if feature.shape == ()}
    texts = [key for key, feature in scalars.items() if feature.np_dtype == np.dtype(object) and key != "id"]
    text = "text" if "text" in texts else texts[0] if len(texts) == 1 else None
    if text is None:
        raise InputError(f"corpus {name!r} needs one text, or one called text; it has {sorted(builder.info.features)}")
    for number, example in enumerate(_examples(builder)):
        key = example["id"] if "id" in scalars else None
        try:
            yield (key.decode() if isinstance(key, bytes) else key if key is None else str(key)), example[text].decode()
        except UnicodeDecodeError as e:
            raise InputError(f"corpus {name!r}, record {number}: not UTF-8 ({e.reason} at byte {e.start})") from None


def _examples(builder: "tfds.core.DatasetBuilder") -> Iterator[dict[str, Any]]:
    try:
        source = builder.as_data_source("train")
    except NotImplementedError as e:
        raise InputError(
            f"corpus {builder.info.full_name!r} in {builder.data_dir}: {e}; prepare it as array_record"
        ) from None
    for start in range(0, len(source), 1000):  # one at a time is 2.5 times slower
        yield from source.__getitems__(range(start, min(start + 1000, len(source))))


def _verses(name: str) -> dict[str, dict[int, str]]:
    """{"John 3": {16: "For God so loved ..."}}."""
    if _is_file(name) or "verses" not in _builder(name).info.features:
        raise InputError(f"corpus {name!r} has no verses: give bible_web or bible_basic")
    chapters = {}
    for example in _examples(_train(name)):
        lines = zip(map(int, example["verses"]), example["text"].decode().split("\n"), strict=True)
        chapters[example["id"].decode()] = {verse: line for verse, line in lines if verse}  # 0: a psalm's title
    return chapters
