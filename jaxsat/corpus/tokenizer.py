"""Tokenizers: byte-level BPE or words, trained on the training split, or read from a tokenizer.json."""

import itertools
import json
import operator
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from tokenizers import AddedToken, Encoding, Tokenizer, decoders, models, pre_tokenizers, trainers

from jaxsat.config import InputError

EOS, UNK = "<eos>", "<unk>"
END_OF_TEXT = (EOS, "<|endoftext|>", "</s>", "<|end_of_text|>", "<eod>")
BEGIN_OF_TEXT = ("<s>", "<bos>", "<|begin_of_text|>")


def train(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """Byte-level BPE (Radford et al. 2019) of at most `vocab_size` entries: <eos> 0, <unk> 1, bytes, merges.

    The alphabet is the bytes that occur in `texts`: all 256 would spend 180 of 1024 entries on bytes that English text
    never has. A byte outside it is one <unk>. Raises InputError when `vocab_size` cannot hold the alphabet.
    """
    tokenizer = Tokenizer(models.BPE(unk_token=UNK))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=vocab_size, special_tokens=[EOS, UNK], show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    if (entries := size(tokenizer)) > vocab_size:
        raise InputError(f"model.vocab_size = {vocab_size}: must be at least {entries}, the bytes of the corpus and 2")
    return _neutral(tokenizer)


def train_words(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """A token for every word, as white space parts them: <eos> 0, <unk> 1, words by how often they occur. Raises
    InputError when `vocab_size` cannot hold them."""
    parts = pre_tokenizers.WhitespaceSplit()  # whose white space is Unicode's, Python's is a little more
    counts = Counter(word for text in texts for word, _ in parts.pre_tokenize_str(text) if word not in (EOS, UNK))
    if len(counts) + 2 > vocab_size:
        raise InputError(f"model.vocab_size = {vocab_size}: must be at least {len(counts) + 2}, the words and 2")
    words = sorted(counts, key=lambda word: (-counts[word], word))
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate((EOS, UNK, *words))}, unk_token=UNK))
    tokenizer.pre_tokenizer = parts
    tokenizer.add_special_tokens([EOS, UNK])
    return _neutral(tokenizer)


TRAINED = {"bpe": train, "words": train_words}


def load(path: str, vocab_size: int, ends: bool = True) -> Tokenizer:
    """The tokenizer.json at `path`, without settings that lose text or that change from call to call.

    No truncation, padding or sampled merges; a special token written out in a text is text. Raises InputError when it
    is no tokenizer.json, has an id of `vocab_size` or more, or no end of text, which what only scores can do without:
    `ends` False.
    """
    try:
        tokenizer = Tokenizer.from_str(Path(path).read_text())
    except OSError as e:
        raise InputError(f"data.tokenizer = {path!r}: {e.strerror}; give 'bpe', 'words' or a tokenizer.json") from None
    except Exception as e:  # all that the Rust library raises
        raise InputError(f"{path} is not a tokenizer.json of the tokenizers library: {e}") from None
    if ends:
        eos_id(tokenizer)
    if (entries := size(tokenizer)) > vocab_size:
        raise InputError(
            f"{path} has largest id {entries - 1}: model.vocab_size must be at least {entries}, and is {vocab_size}"
        )
    return _neutral(tokenizer)


def size(tokenizer: Tokenizer) -> int:
    """The largest id and 1: what an embedding needs. More than the entries where the ids have holes."""
    return max(tokenizer.get_vocab().values(), default=-1) + 1


def encode(tokenizer: Tokenizer, texts: Sequence[str], special: bool = False) -> list[Encoding]:
    """`special`: with what the tokenizer puts around each. Raises InputError for a text that it cannot encode, as where
    it is to write an unknown token and has none."""
    try:
        return tokenizer.encode_batch_fast(texts, add_special_tokens=special)
    except Exception as e:  # all that the Rust library raises
        raise InputError(f"the tokenizer cannot encode {texts[0]!r:.40} ...: {e}") from None


def end_id(tokenizer: Tokenizer) -> int | None:
    """The id of the token that ends a document, where it has one."""
    found = (tokenizer.token_to_id(token) for token in END_OF_TEXT)
    return next((token_id for token_id in found if token_id is not None), None)


def eos_id(tokenizer: Tokenizer) -> int:
    """The id of the token that ends a document. Raises InputError where there is none."""
    if (token_id := end_id(tokenizer)) is not None:
        return token_id
    raise InputError(f"the tokenizer has no end-of-text token: it needs one of {', '.join(END_OF_TEXT)}")


def own_begin(tokenizer: Tokenizer) -> list[int]:
    """What the tokenizer puts before every text unless told not to: nothing, or its begin token."""
    (encoding,) = encode(tokenizer, ["a"], special=True)
    special = itertools.takewhile(operator.itemgetter(1), zip(encoding.ids, encoding.special_tokens_mask))
    return [token_id for token_id, _ in special]


def begin_ids(tokenizer: Tokenizer) -> list[int]:
    """After what a text is scored that nothing precedes: its own begin token where it has one, else its end-of-text
    token, else id 0."""
    if own := own_begin(tokenizer):
        return own
    named = [i for token in BEGIN_OF_TEXT if (i := tokenizer.token_to_id(token)) is not None]
    return [named[0] if named else end_id(tokenizer) or 0]


def unk_id(tokenizer: Tokenizer) -> int | None:
    """The id of what the tokenizer does not know; None when it has none, and drops it."""
    model = json.loads(tokenizer.to_str())["model"]
    return model["unk_id"] if model["type"] == "Unigram" else tokenizer.token_to_id(model.get("unk_token") or "")


def lost(tokenizer: Tokenizer, unk: int | None, text: str, ids_T: list[int]) -> tuple[int, int]:
    """Of the characters of `text`, how many its `ids_T` do not give back, and how many there are.

    White space is not counted, nor a difference that Unicode calls one of form (NFKC); the characters are counted, not
    aligned. What an `unk` stands for is lost.
    """
    back = tokenizer.decode([i for i in ids_T if i != unk], skip_special_tokens=False)
    given, found = (Counter("".join(unicodedata.normalize("NFKC", t).split())) for t in (text, back))
    return (given - found).total(), given.total()


def _neutral(tokenizer: Tokenizer) -> Tokenizer:
    tokenizer.no_truncation()
    tokenizer.no_padding()
    special = [tokenizer.id_to_token(i) for i in (end_id(tokenizer), unk_id(tokenizer)) if i is not None]
    # Some files list these as common words, which are found in the text; those of a special token need not be.
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    tokenizer.encode_special_tokens = True  # a tokenizer.json does not keep this
    if isinstance(tokenizer.model, models.BPE):
        tokenizer.model.dropout = None
    return tokenizer
