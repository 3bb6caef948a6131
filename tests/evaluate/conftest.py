"""A small model far from uniform, a tokenizer of its own, and its log-probabilities by the definition."""

from collections.abc import Callable

import jax
import numpy as np
import pytest
from tokenizers import Tokenizer

from jaxsat import model
from jaxsat.config import ModelConfig
from jaxsat.corpus import tokenizer as bpe

WORDS = ["sun", "moon", "stars", "sea", "stone", "tree", "river", "and", "the", "of"]
SMALL = ModelConfig(depth=1, width=16, heads=2, context=40, vocab_size=64)


def draw(config: ModelConfig, scale: float = 3) -> model.Params:
    drawn = jax.jit(model.init, static_argnums=0)(config, jax.random.key(0))
    return jax.tree.map(lambda x: scale * x, drawn)


def uncached_logits(config: ModelConfig, params: model.Params) -> Callable[[list[int]], np.ndarray]:
    """logits_TxV of a text of any length, in one program."""
    whole = jax.jit(lambda tokens: model.logits(config, params, tokens))

    def logits_of(tokens: list[int]) -> np.ndarray:
        row = np.zeros((1, config.context), np.int32)
        row[0, : len(tokens)] = tokens
        return np.float64(whole(row)[0, : len(tokens)])

    return logits_of


@pytest.fixture(scope="session")
def small() -> tuple[ModelConfig, model.Params]:
    return SMALL, draw(SMALL)


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    text = [" ".join(np.random.default_rng(i).choice(WORDS, 30)) + "\n" for i in range(50)]
    return bpe.train(text, SMALL.vocab_size)


@pytest.fixture(scope="session")
def logits_of(small) -> Callable[[list[int]], np.ndarray]:
    return uncached_logits(*small)


@pytest.fixture(scope="session")
def log_p(logits_of) -> Callable[[list[int], list[int]], np.ndarray]:
    """log_p_T of the tokens of a continuation, float64, from the model's logits."""

    def log_p_of(context: list[int], continuation: list[int]) -> np.ndarray:
        logits_TxV = logits_of([*context, *continuation][:-1])[len(context) - 1 :]
        logits_TxV -= logits_TxV.max(-1, keepdims=True)
        log_p_TxV = logits_TxV - np.log(np.exp(logits_TxV).sum(-1, keepdims=True))
        return np.take_along_axis(log_p_TxV, np.array(continuation)[:, None], axis=1)[:, 0]

    return log_p_of
