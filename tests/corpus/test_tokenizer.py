import gzip
import json
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

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
    with pytest.raises(InputError, match="largest id 39: model.vocab_size must be at least 40, and is 39"):
        bpe.load(str(path), 39)


def test_load_without_settings_that_lose_text(tmp_path: Path):
    """Truncated, padded, sampled, and with its end of text and its unknown listed as common words."""
    tokenizer = bpe.train(TEXTS, 40)
    spec = json.loads(tokenizer.to_str())
    spec["truncation"] = {"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0}
    spec["padding"] = {"strategy": {"Fixed": 99}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 0}
    spec["padding"] |= {"pad_type_id": 0, "pad_token": "<eos>"}
    spec["model"]["dropout"] = 0.5
    for token in spec["added_tokens"]:
        token["special"] = False
    (tmp_path / "tokenizer.json").write_text(json.dumps(spec))
    loaded = bpe.load(str(tmp_path / "tokenizer.json"), 40)
    assert loaded.to_str() == tokenizer.to_str()
    for text in [*TEXTS, "low <eos> new <unk> wide"]:
        ids = loaded.encode(text).ids
        assert ids == loaded.encode(text).ids == tokenizer.encode(text).ids and 0 not in ids


def test_ids_with_holes(tmp_path: Path):
    spec = json.loads(bpe.train(TEXTS, 40).to_str())
    spec["model"]["vocab"]["l"] = 1000
    (tmp_path / "tokenizer.json").write_text(json.dumps(spec))
    with pytest.raises(InputError, match="largest id 1000: model.vocab_size must be at least 1001, and is 512"):
        bpe.load(str(tmp_path / "tokenizer.json"), 512)
    loaded = bpe.load(str(tmp_path / "tokenizer.json"), 1001)
    assert loaded.get_vocab_size() == 40 and bpe.size(loaded) == 1001 and 1000 in loaded.encode("l").ids


def lost(tokenizer: Tokenizer, text: str) -> tuple[int, int]:
    return bpe.lost(tokenizer, bpe.unk_id(tokenizer), text, tokenizer.encode(text).ids)


def test_what_is_lost():
    trained = bpe.train(TEXTS, 40)
    assert lost(trained, "low, naïve  \n newer") == (0, 14)
    assert lost(trained, unicodedata.normalize("NFD", "naïve")) == (1, 6 - 1)  # of two characters, one form: ï
    assert lost(trained, "low €low") == (1, 7)
    assert lost(trained, "") == lost(trained, " \n") == (0, 0)
    dropping = Tokenizer(models.BPE({"<eos>": 0, "a": 1, "b": 2, "ab": 3}, [("a", "b")]))
    assert bpe.unk_id(dropping) is None and lost(dropping, "ab cab ac") == (2, 7)
    words = Tokenizer(models.WordLevel({"<eos>": 0, "the": 1, "?": 2}, unk_token="?"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    assert bpe.unk_id(words) == 2 and lost(words, "the dog the") == (3, 9)
    words.normalizer = normalizers.Lowercase()
    assert lost(words, "The the") == (1, 6)
    pieces = Tokenizer(models.Unigram([("<unk>", -9.0), ("▁", -2.0), ("▁a", -1.0), ("b", -1.0)], unk_id=0))
    pieces.pre_tokenizer, pieces.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    assert bpe.unk_id(pieces) == 0 and lost(pieces, "ab abc ab") == (1, 7)


@pytest.mark.parametrize(
    "content", [b"", b"{", b'{"version": "1.0"}', b'{"model": {"type": "Magic"}}', b"\xff\xfe\x00"]
)
def test_load_what_is_not_a_tokenizer(tmp_path: Path, content: bytes):
    (tmp_path / "tokenizer.json").write_bytes(content)
    with pytest.raises(InputError, match=r"tokenizer\.json is not a tokenizer\.json of the tokenizers library"):
        bpe.load(str(tmp_path / "tokenizer.json"), 40)


def test_a_text_that_cannot_be_encoded_is_named():
    words = Tokenizer(models.WordLevel({"the": 0}, unk_token="<unk>"))
    assert [encoding.ids for encoding in bpe.encode(words, ["the"])] == [[0]]
    with pytest.raises(InputError, match="cannot encode 'sun' ...: WordLevel error: Missing .UNK. token"):
        bpe.encode(words, ["sun", "the"])
    assert bpe.size(Tokenizer(models.BPE())) == 0


def test_load_nothing(tmp_path: Path):
    with pytest.raises(InputError, match="No such file or directory; give 'bpe', 'words' or a tokenizer.json"):
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
    assert tokenizer.encode("Hello world").ids == [12092, 1533] and bpe.size(tokenizer) == 50277
    assert bpe.unk_id(tokenizer) is None
    for text in ("Hello <|endoftext|> world", "naïve ﬁn 東京 🙂 \t½\n"):
        ids = tokenizer.encode(text).ids
        assert 0 not in ids and bpe.lost(tokenizer, None, text, ids)[0] == 0
