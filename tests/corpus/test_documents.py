import gzip
import json
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds
from etils import epath

from jaxsat.config import InputError
from jaxsat.corpus import documents, list_corpora
from jaxsat.corpus.documents import _builder, fingerprint, label
from jaxsat.corpus.editions import NAMES


class Elsewhere(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """Prepared here, and then unknown to TFDS, as c4 is without TensorFlow: all that is left is its files."""

    VERSION = tfds.core.Version("2.0.0")
    BUILDER_CONFIGS = [tfds.core.BuilderConfig(name="en"), tfds.core.BuilderConfig(name="pairs")]
    code_path = epath.Path(__file__)

    def _info(self):
        keys = ("url", "text") if self.builder_config.name == "en" else ("question", "answer")
        return tfds.core.DatasetInfo(
            builder=self, features=tfds.features.FeaturesDict({k: tfds.features.Text() for k in keys})
        )

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples(25), "validation": self._generate_examples(3)}

    def _generate_examples(self, n):
        for i in range(n):
            yield i, dict(zip(self.info.features, (f"http://{i}", f"the naïve text {i}"), strict=True))


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> Path:
    tfds.disable_progress_bar()
    for config in ("en", "pairs"):
        Elsewhere(config=config, data_dir=tmp_path, file_format="array_record").download_and_prepare()
    capsys.readouterr()
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    return tmp_path


def test_a_tfds_dataset_by_name_and_by_directory(elsewhere: Path):
    found = list(documents("elsewhere/en"))
    assert sorted(text for _, text in found) == sorted(f"the naïve text {i}" for i in range(25))
    assert len({key for key, _ in found}) == 25
    assert list(documents(str(elsewhere / "elsewhere" / "en" / "2.0.0"))) == found
    assert fingerprint("elsewhere/en").startswith("elsewhere/en/2.0.0 25 ")


def test_a_tfds_dataset_without_one_text(elsewhere: Path):
    with pytest.raises(InputError, match=r"needs one text, or one called text; it has .*'answer', 'question'"):
        list(documents("elsewhere/pairs"))


class Numbered(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """Integer ids, and texts typed as the importers of other libraries' data sets type them."""

    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS = [tfds.core.BuilderConfig(name=name) for name in ("train", "test", "latin")]
    code_path = epath.Path(__file__)

    def _info(self):
        features = {"id": tfds.features.Scalar(np.int64), "text": tfds.features.Scalar(np.str_)}
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
        if self.builder_config.name == "test":
            return {"test": self._generate_examples(), "validation": self._generate_examples()}
        return {"train": self._generate_examples()}

    def _generate_examples(self):
        for i in range(5):
            text = f"naïve text {i}"
            yield i, {"id": i, "text": text.encode("latin1") if self.builder_config.name == "latin" else text}


@pytest.fixture
def numbered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> Path:
    tfds.disable_progress_bar()
    for config in ("train", "test", "latin"):
        Numbered(config=config, data_dir=tmp_path, file_format="array_record").download_and_prepare()
    capsys.readouterr()
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    return tmp_path / "numbered"


def test_integer_ids_become_text(numbered: Path):
    assert sorted(documents("numbered/train")) == [(str(i), f"naïve text {i}") for i in range(5)]


def test_no_train_split(numbered: Path):
    for name in ("numbered/test", str(numbered / "test" / "1.0.0")):
        for use in (fingerprint, lambda name: next(documents(name))):
            with pytest.raises(InputError, match="numbered/test.* needs a train split; it has test, validation$"):
                use(name)


def test_records_that_are_not_text(numbered: Path):
    with pytest.raises(InputError, match=r"corpus 'numbered/latin', record 0: not UTF-8 \(.* at byte 2\)"):
        list(documents("numbered/latin"))


def test_labels_hold_no_path(elsewhere: Path):
    folder = elsewhere / "elsewhere" / "en" / "2.0.0"
    given = ("bible_web", "elsewhere/en", str(folder), "/data/a.txt.gz", "gs://bucket/b.jsonl")
    assert [*map(label, given)] == ["bible_web", "elsewhere/en", "elsewhere/en/2.0.0", "a.txt.gz", "b.jsonl"]


def test_a_tfds_dataset_in_another_format(elsewhere: Path):
    info = elsewhere / "elsewhere" / "en" / "2.0.0" / "dataset_info.json"
    info.write_text(info.read_text().replace("array_record", "tfrecord"))
    for name in ("elsewhere/en", str(info.parent)):
        with pytest.raises(InputError, match="elsewhere/en.*array_record"):
            list(documents(name))


def test_unknown_names():
    with pytest.raises(InputError, match="'huggingface:x' is on the hub of Hugging Face: give a file of it"):
        list(documents("huggingface:x"))
    with pytest.raises(InputError, match="unknown corpus 'bible_wbe'; did you mean 'bible_web'"):
        list(documents("bible_wbe"))
    with pytest.raises(
        InputError, match=r"unknown corpus 'c4/en'.*\.txt.*needs TensorFlow is read when it lies prepared"
    ):
        list(documents("c4/en"))


@pytest.mark.parametrize(
    ("content", "texts"),
    [
        ("one\ntwo\nthree\n", ["one", "two", "three"]),
        ("one\n  still one\n\n\ntwo\n", ["one\n  still one", "two"]),
        ("\ufeffone\r\n\r\ntwo\r\n", ["one", "two"]),
        ("\none\ntwo\n", ["one", "two"]),
        ("", []),
        ("one\n<|endoftext|>\ntwo\n\nof two\n <|endoftext|> \n\n", ["one", "two\n\nof two"]),
        ("one\nof one\n<eos>\n", ["one\nof one"]),
        ("a <|endoftext|> b\n<eos>c\n", ["a <|endoftext|> b", "<eos>c"]),
        ("<|endoftext|>\n", []),
    ],
)
@pytest.mark.parametrize("name", ["a.txt", "a.txt.gz"])
def test_text_files(tmp_path: Path, content: str, texts: list[str], name: str):
    path = tmp_path / name
    path.write_bytes(gzip.compress(content.encode()) if name.endswith(".gz") else content.encode())
    assert [text for _, text in documents(str(path))] == texts


def test_json_lines(tmp_path: Path):
    path = tmp_path / "a.jsonl"
    records = [{"text": "α\nβ", "id": 7}, {"text": "γ", "score": 1}, {"text": ""}, {"text": "γ", "id": None}]
    path.write_text("\n\n".join(json.dumps(r, ensure_ascii=False) for r in records))
    (first, second, third) = documents(str(path))
    assert first == ("7", "α\nβ") and second[1] == "γ"
    assert second == third  # without an id, equal texts are one document


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"fine\nna\xefve", r"a\.txt, line 2: not UTF-8 \(invalid continuation byte at byte 2\)"),
        ("a.jsonl", b'{"text": "a"}\n{"text": ', r"a\.jsonl, line 2: not JSON \(Expecting value at column 9\)"),
        ("a.jsonl", b'{"text": "a"}\n{"txt": "a"}', r'a\.jsonl, line 2: no "text"'),
        ("a.jsonl", b'{"text": ["a"]}', r'a\.jsonl, line 1: "text" must be a text'),
        ("a.jsonl", b'"text"', r'a\.jsonl, line 1: no "text"'),
        (
            "a.jsonl",
            b'{"text": "a"}\n{"text": "a\\ud83d"}',
            r'line 2: "text" has half a character, \\ud83d at character 2: ',
        ),
        ("a.jsonl", b'{"text": "a", "id": "\\ude00"}', r'line 1: "id" has half a character, \\ude00 at character 1: '),
        (
            "a.jsonl",
            b'{"text": "a", "n": ' + b"9" * 5000 + b"}",
            r"a\.jsonl, line 1: cannot be read \(Exceeds the limit",
        ),
        ("a.jsonl", b'{"text": ' + b"[" * 100_000, r"a\.jsonl, line 1: cannot be read \(maximum recursion depth"),
        ("a.txt.gz", b"not zipped", r"cannot read the corpus .*a\.txt\.gz: Not a gzipped file"),
        ("a.txt.gz", gzip.compress(b"cut " * 99, mtime=0)[:-9], r"cannot read the corpus .*a\.txt\.gz"),
    ],
)
def test_bad_files(tmp_path: Path, name: str, content: bytes, message: str):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message):
        list(documents(str(tmp_path / name)))


def test_files_that_cannot_be_opened(tmp_path: Path):
    with pytest.raises(InputError, match=r"cannot read the corpus .*none\.txt: No such file"):
        list(documents(str(tmp_path / "none.txt")))
    (tmp_path / "folder.txt").mkdir()
    with pytest.raises(InputError, match=r"cannot read the corpus .*folder\.txt: Is a directory"):
        list(documents(str(tmp_path / "folder.txt")))


def test_fingerprint_is_of_the_content(tmp_path: Path):
    a, b = tmp_path / "a.txt", tmp_path / "b.txt"
    a.write_text("same"), b.write_text("same")
    before = fingerprint(str(a))
    (tmp_path / "c.txt.gz").write_bytes(gzip.compress(b"same"))
    assert before == fingerprint(str(b)) == fingerprint(str(tmp_path / "c.txt.gz"))
    a.write_text("Same")
    assert fingerprint(str(a)) != before
    (tmp_path / "d.jsonl").write_text("same")
    assert fingerprint(str(tmp_path / "d.jsonl")) != before
    assert [fingerprint(name) for name in NAMES] == [_builder(name).info.full_name for name in NAMES]


def test_list_corpora_says_what_is_prepared():
    next(documents("bible_web"))
    listed = {row["name"]: row for row in list_corpora()}
    assert listed.keys() == {"bible_web", "bible_basic", "docs"}
    assert listed["bible_web"]["documents"] == 1189 and 4.0e6 < listed["bible_web"]["bytes"] < 4.2e6
    assert Path(listed["bible_web"]["path"]).is_dir() and listed["bible_web"]["license"] == "public domain"
    assert listed["docs"]["path"] is None


def test_real_text(shared_data: Path):
    stories = list(documents(str(shared_data / "text_olmo_mix" / "coqa_stories.txt.gz")))
    assert len(stories) == 499 and stories[0][1].startswith("Once upon a time, in a barn")
    speeches = list(documents(str(shared_data / "text_tinyshakespeare" / "input.txt.gz")))
    assert len(speeches) == 7222 and speeches[1][1] == "All:\nSpeak, speak."
