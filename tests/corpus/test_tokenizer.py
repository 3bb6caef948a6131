import gzip
import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from jaxsat.config import InputError
from jaxsat.corpus import tokenizer as bpe

TEXTS = ["low lower lowest", "new newer newest, naïve", "wide wider widest"] * 3


def test_alphabet_is_the_bytes_present():
    tokenizer = bpe.train(TEXTS, 40)
    present = set("".join(TEXTS).encode())
    singles = [token for token in tokenizer.get_vocab() if len(token) == 1]
    assert len(singles) == len(present) and tokenizer.get_vocab_size() == 40
    assert tokenizer.token_to_id("<eos>") == bpe.eos_id(tokenizer) == 0 and tokenizer.token_to_id("<unk>") == 1


@settings(deadline=None)
@given(st.text(alphabet=sorted(set("".join(TEXTS)))))
def test_text_of_the_alphabet_survives(text: str):
    tokenizer = bpe.train(TEXTS, 40)
    assert tokenizer.decode(tokenizer.encode(text).ids) == text


def test_bytes_never_seen_are_unknown_each():
    ids = bpe.train(TEXTS, 40).encode("low€z").ids  # € is three bytes
    assert ids.count(1) == 4 and ids[0] > 1


def test_the_same_text_gives_the_same_tokenizer():
    assert bpe.train(TEXTS, 40).to_str() == bpe.train(iter(TEXTS), 40).to_str()


def test_no_room_for_the_alphabet():
    present = len(set("".join(TEXTS).encode()))
    assert bpe.train(TEXTS, present + 2).get_vocab_size() == present + 2
    with pytest.raises(InputError, match=f"model.vocab_size = {present + 1}: must be at least {present + 2}"):
        bpe.train(TEXTS, present + 1)


def test_load(tmp_path: Path):
    path = tmp_path / "tokenizer.json"
    bpe.train(TEXTS, 40).save(str(path))
    assert bpe.load(str(path), 40).to_str() == bpe.train(TEXTS, 40).to_str()
    with pytest.raises(InputError, match="has 40 entries: model.vocab_size = 39"):
        bpe.load(str(path), 39)


@pytest.mark.parametrize(
    "content", [b"", b"{", b'{"version": "1.0"}', b'{"model": {"type": "Magic"}}', b"\xff\xfe\x00"]
)
def test_load_what_is_not_a_tokenizer(tmp_path: Path, content: bytes):
    (tmp_path / "tokenizer.json").write_bytes(content)
    with pytest.raises(InputError, match=r"tokenizer\.json is not a tokenizer\.json of the tokenizers library"):
        bpe.load(str(tmp_path / "tokenizer.json"), 40)


def test_load_nothing(tmp_path: Path):
    with pytest.raises(InputError, match="No such file or directory; give 'bpe' or a tokenizer.json"):
        bpe.load(str(tmp_path / "none.json"), 40)


def test_load_without_end_of_text(tmp_path: Path):
    spec = json.loads(bpe.train(TEXTS, 40).to_str().replace("<eos>", "<stop>"))
    (tmp_path / "tokenizer.json").write_text(json.dumps(spec))
    with pytest.raises(InputError, match="has no end-of-text token: it needs one of <eos>, "):
        bpe.load(str(tmp_path / "tokenizer.json"), 40)


def test_load_gpt_neox(shared_data: Path, tmp_path: Path):
    path = tmp_path / "tokenizer.json"
    path.write_bytes(gzip.decompress((shared_data / "tokenizers" / "20B_tokenizer.json.gz").read_bytes()))
    tokenizer = bpe.load(str(path), 50304)
    assert isinstance(tokenizer, Tokenizer) and bpe.eos_id(tokenizer) == 0
    assert tokenizer.encode("Hello world").ids == [12092, 1533]
