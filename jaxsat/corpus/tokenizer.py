"""Byte-level BPE: trained on the training split, or read from a tokenizer.json."""

from collections.abc import Iterable
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from jaxsat.config import InputError

EOS, UNK = "<eos>", "<unk>"
END_OF_TEXT = (EOS, "<|endoftext|>", "</s>", "<|end_of_text|>", "<eod>")


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
    if (size := tokenizer.get_vocab_size()) > vocab_size:
        raise InputError(f"model.vocab_size = {vocab_size}: must be at least {size}, the bytes of the corpus and 2")
    return tokenizer


def load(path: str, vocab_size: int) -> Tokenizer:
    """The tokenizer.json at `path`. Raises InputError when it is not one, is too large, or has no end of text."""
    try:
        tokenizer = Tokenizer.from_str(Path(path).read_text())
    except OSError as e:
        raise InputError(f"data.tokenizer = {path!r}: {e.strerror}; give 'bpe' or a tokenizer.json") from None
    except Exception as e:  # all that the Rust library raises
        raise InputError(f"{path} is not a tokenizer.json of the tokenizers library: {e}") from None
    if (size := tokenizer.get_vocab_size()) > vocab_size:
        raise InputError(f"{path} has {size} entries: model.vocab_size = {vocab_size} must be at least that")
    eos_id(tokenizer)
    return tokenizer


def eos_id(tokenizer: Tokenizer) -> int:
    """The id of the token that ends a document."""
    for token in END_OF_TEXT:
        if (token_id := tokenizer.token_to_id(token)) is not None:
            return token_id
    raise InputError(f"the tokenizer has no end-of-text token: it needs one of {', '.join(END_OF_TEXT)}")
