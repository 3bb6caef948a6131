import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsat.config import InputError, ModelConfig
from jaxsat.evaluate import generate, generate_tokens
from jaxsat.evaluate.generation import _draw, _generate, tokens_with
from tests.evaluate.conftest import draw, uncached_logits
from tests.model.test_cache import SWITCHES

RNG = np.random.default_rng(0)
PROMPTS = [RNG.integers(0, 64, n).tolist() for n in (1, 7, 3, 30, 2)]


def greedy(logits_of, prompt, n, ends=()):
    ids = []
    while len(ids) < n and not (ids and ids[-1] in ends):
        ids.append(int(logits_of([*prompt, *ids])[-1].argmax()))
    return ids


@pytest.mark.parametrize("switches", [
    pytest.param(of, id=name, marks=[pytest.mark.slow] * (name == "gpt2")) for name, of in SWITCHES.items()
])  # fmt: skip
def test_greedy_tokens_are_those_of_the_uncached_model(switches):
    config = ModelConfig(depth=2, width=24, heads=4, context=40, vocab_size=64, **switches)
    params = draw(config, 2)
    logits_of = uncached_logits(config, params)
    found = generate_tokens(config, params, PROMPTS, [9, 12, 1, 20, 12])
    expected = [greedy(logits_of, prompt, n) for prompt, n in zip(PROMPTS, (9, 12, 1, 11, 12))]  # 30 + 11 fill it
    assert found == expected and len(set(sum(found, []))) > 5


def test_a_long_prompt_is_read_in_chunks_and_fills_the_context():
    config = ModelConfig(depth=1, width=16, heads=2, context=300, vocab_size=64)
    params = draw(config)
    prompts = [RNG.integers(0, 64, n).tolist() for n in (290, 131, 4)]
    found = generate_tokens(config, params, prompts, 16)
    logits_of = uncached_logits(config, params)
    assert found == [greedy(logits_of, prompt, n) for prompt, n in zip(prompts, (11, 16, 16))]
    assert len(generate_tokens(config, params, [prompts[0] + prompts[2] * 2 + [1, 2]], 5)[0]) == 1


def test_a_row_ends_with_the_first_of_the_ends(small, logits_of):
    free = generate_tokens(*small, PROMPTS, 10)
    ends = {free[1][2], free[2][0]}
    found = generate_tokens(*small, PROMPTS, 10, ends=ends)
    assert found == [greedy(logits_of, prompt, min(10, 41 - len(prompt)), ends) for prompt in PROMPTS]
    assert len(found[2]) == 1 and len(found[1]) <= 3


def test_the_loop_ends_when_all_rows_have(small):
    """Otherwise it would go on to the limit: the first token of one row is its end, and no second one is drawn."""
    (free,) = generate_tokens(*small, PROMPTS[1:2], 4)
    ends_V = np.isin(np.arange(64), free[0])
    rows = np.int32([PROMPTS[1]]), np.int32([0]), np.int32([4]), np.int32([0])
    unused = jax.random.key(0), (jnp.float32(0), jnp.int32(1), jnp.float32(1))
    tokens_BxN = _generate(small[0], 16, "greedy", small[1], *rows, ends_V, *unused)
    assert tokens_BxN[0, 0] == free[0] and not tokens_BxN[0, 1:].any()


def test_rows_do_not_know_of_each_other(small, monkeypatch):
    drawn = dict(temperature=1.5, top_k=20, top_p=0.9, seed=3)
    together = [generate_tokens(*small, PROMPTS, 10), generate_tokens(*small, PROMPTS, 10, **drawn)]
    assert together[0] != together[1]
    assert generate_tokens(*small, PROMPTS[:1], 10, **drawn) == together[1][:1]
    monkeypatch.setattr("jaxsat.evaluate.generation.MAX_ROWS", 2)
    assert [generate_tokens(*small, PROMPTS, 10), generate_tokens(*small, PROMPTS, 10, **drawn)] == together
    assert generate_tokens(*small, PROMPTS[::-1], 10) == together[0][::-1]
    assert generate_tokens(*small, PROMPTS, 10, **drawn | {"seed": 4}) != together[1]
    twice = generate_tokens(*small, PROMPTS[:1] * 2, 10, **drawn)
    assert twice[0] != twice[1], "two rows of one prompt are drawn apart"


def test_a_cache_that_is_too_large_takes_fewer_rows_at_once(small, monkeypatch):
    expected = generate_tokens(*small, PROMPTS, 10)
    monkeypatch.setattr("jaxsat.evaluate.generation.CACHE_BYTES", 1)
    assert generate_tokens(*small, PROMPTS, 10) == expected


@pytest.mark.parametrize(
    "temperature, top_k, top_p, kept",
    [(1.0, 6, 1.0, [0, 1, 2, 3, 4, 5]), (2.0, 3, 1.0, [0, 1, 2]), (1.0, 6, 0.85, [0, 1, 2]), (1.0, 2, 0.99, [0, 1]),
     (1.0, 6, 1e-6, [0]), (1.0, 6, 0.5, [0]), (1e-30, 6, 1.0, [0]), (1.0, 6, 0.5001, [0, 1]), (1.0, 99, 1.0, range(6))],
)  # fmt: skip
def test_tokens_are_drawn_from_the_softmax_of_those_that_are_kept(temperature, top_k, top_p, kept):
    p_V = np.array([0.5, 0.25, 0.125, 0.0625, 0.03125, 0.03125])
    order = np.array([3, 0, 5, 1, 4, 2])  # the likeliest is token 3, and so on
    logits_V = np.zeros(6, np.float32)
    logits_V[order] = np.log(p_V)
    settings = jnp.float32(temperature), jnp.int32(top_k), jnp.float32(top_p)
    draw = jax.jit(jax.vmap(lambda key: _draw(True, *settings, key, logits_V)))
    drawn = np.bincount(draw(jax.random.split(jax.random.key(0), 20_000)), minlength=6)[order] / 20_000
    expected = np.where(np.isin(np.arange(6), kept), p_V ** (1 / max(temperature, 1e-2)), 0)
    np.testing.assert_allclose(drawn, expected / expected.sum(), atol=0.015)
    if top_k >= 6 and top_p == 1:
        plain = jax.jit(jax.vmap(lambda key: _draw(False, *settings, key, logits_V)))
        drawn = np.bincount(plain(jax.random.split(jax.random.key(1), 20_000)), minlength=6)[order] / 20_000
        np.testing.assert_allclose(drawn, expected / expected.sum(), atol=0.015)


def test_the_temperature_is_1_where_tokens_are_chosen_among_some_and_else_0(small):
    free = generate_tokens(*small, PROMPTS, 10)
    assert (
        generate_tokens(*small, PROMPTS, 10, top_k=1) == free == generate_tokens(*small, PROMPTS, 10, temperature=0.0)
    )
    assert generate_tokens(*small, PROMPTS, 10, top_k=64) == generate_tokens(
        *small, PROMPTS, 10, temperature=1.0, top_p=1.0
    )
    assert generate_tokens(*small, PROMPTS, 10, top_p=1.0) != free


def test_text_goes_on_after_its_prompt(small, tokenizer, logits_of):
    prompts = ["the sun", "", "the moon and"]
    found = generate(*small, tokenizer, prompts, 8)
    for prompt, text in zip(prompts, found):
        ids = tokenizer.encode(prompt).ids or [0]
        new = greedy(logits_of, ids, 8, ends=[0])
        assert tokenizer.decode([*ids, *new], skip_special_tokens=False).removesuffix("<eos>").endswith(text)
        assert text == tokenizer.decode([i for i in new if i != 0], skip_special_tokens=False)
    assert tokens_with(tokenizer, ["\n"]) == tokenizer.encode("\n").ids


@pytest.mark.parametrize(
    "wrong, said",
    [
        (dict(prompts=[]), "no prompts: give one at least"),
        (dict(prompts=[[1], []]), "prompt 1 has 0 tokens: must be 1 to model.context = 40"),
        (dict(prompts=[[1] * 41]), "prompt 0 has 41 tokens"),
        (dict(prompts=[[64]]), "token id 64: the model's are 0 to 63"),
        (dict(n_tokens=0), "n_tokens = 0: must be at least 1"),
        (dict(n_tokens=[1, 2]), r"n_tokens = \[1, 2\]: must be at least 1, one for all prompts or one for each"),
        (dict(temperature=-1.0), "temperature = -1.0: must be a finite number, at least 0"),
        (dict(temperature=float("nan")), "temperature = nan"),
        (dict(top_k=0), "top_k = 0: must be at least 1"),
        (dict(top_p=0.0), "top_p = 0.0: must be above 0, and 1 at most"),
        (dict(top_p=1.5), "top_p = 1.5"),
    ],
)
def test_settings_that_cannot_be_are_refused(small, wrong, said):
    asked = dict(prompts=[[1]], n_tokens=4) | wrong
    with pytest.raises(InputError, match=said):
        generate_tokens(*small, asked.pop("prompts"), asked.pop("n_tokens"), **asked)
