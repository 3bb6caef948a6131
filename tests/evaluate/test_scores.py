import functools
import operator

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsat import model
from jaxsat.config import InputError, Layout, ModelConfig
from jaxsat.evaluate import check_rows, exact, log_probabilities, token_losses
from jaxsat.parallel import make_mesh, over_runs
from jaxsat.sweep import Pack
from jaxsat.train import Program, hypers, initializer

CONFIG = ModelConfig(depth=1, width=16, heads=2, context=23, vocab_size=50, head_rank=5, positions="learned")
ROWS = np.random.default_rng(0).integers(0, 50, (7, 24))


@pytest.fixture(scope="module")
def params():
    drawn = jax.jit(model.init, static_argnums=0)(CONFIG, jax.random.key(0))
    return jax.tree.map(lambda x: 3 * x, drawn)  # far from uniform


@pytest.fixture(scope="module")
def log_p(params):
    """log_p_NxT by the definition, in float64, from the model's logits."""
    logits = np.float64(jax.jit(model.logits, static_argnums=0)(CONFIG, params, ROWS[:, :-1]))
    logits -= logits.max(-1, keepdims=True)
    all_NxTxV = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    return np.take_along_axis(all_NxTxV, ROWS[:, 1:, None], axis=-1)[..., 0]


def test_losses_are_those_of_the_softmax(params, log_p):
    nats = token_losses(CONFIG, params, ROWS)
    assert nats.dtype == jnp.float32 and log_p.std() > 0.3
    np.testing.assert_allclose(nats, -log_p, rtol=1e-5, atol=1e-5)


def test_a_context_that_is_no_target_is_read_but_not_scored(params, log_p):
    marked = np.where(np.arange(24) < 10, ~ROWS, ROWS)
    nats = token_losses(CONFIG, params, marked)
    assert not nats[:, :9].any()
    np.testing.assert_allclose(nats[:, 9:], -log_p[:, 9:], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("layout", [Layout(), Layout(data=2, model=2)], ids=str)
def test_losses_of_the_runs_of_a_pack_lie_over_the_devices(tiny_pack, layout):
    pack = Pack(tiny_pack.runs[:2])
    mesh = make_mesh(pack, layout)
    state = initializer(Program.of(pack), mesh)(hypers(pack.runs))
    rows = np.random.default_rng(1).integers(0, 64, (4, 17))
    losses_of = functools.partial(token_losses, pack.model)
    found = jax.jit(lambda params, rows: over_runs(mesh, losses_of, shared=1)(params, rows))(state["params"], rows)
    for k in range(2):
        alone = jax.tree.map(operator.itemgetter(k), jax.device_get(state["params"]))
        np.testing.assert_allclose(found[k], token_losses(pack.model, alone, rows), rtol=1e-5)


def test_no_program_holds_the_logits_of_all_tokens():
    config = ModelConfig(depth=1, width=16, heads=2, context=2048, vocab_size=30_000)
    params = jax.eval_shape(lambda: model.init(config, jax.random.key(0)))
    rows = jax.ShapeDtypeStruct((2, 2049), jnp.int32)
    memory = token_losses.lower(config, params, rows).compile().memory_analysis()
    assert memory.temp_size_in_bytes < 2 * 2048 * 30_000 * 4 / 2


def test_products_of_an_evaluation_are_float32_whatever_the_setting(params):
    product = lambda: str(jax.make_jaxpr(lambda x: x @ x)(jnp.ones((2, 2))))
    with jax.default_matmul_precision("bfloat16"):
        losses = str(jax.make_jaxpr(token_losses, static_argnums=0)(CONFIG, params, ROWS))
        with exact():
            log_probabilities(CONFIG, params, ROWS)
            assert "HIGHEST" in product()
        assert "HIGHEST" not in product()
    assert losses.count("dot_general") == losses.count("precision=(Precision.HIGHEST, Precision.HIGHEST)") > 5


def test_log_probabilities_of_all_tokens_and_of_chosen_ones(params, log_p, monkeypatch):
    monkeypatch.setattr("jaxsat.evaluate.scores.BLOCK_TOKENS", 70)  # 7 rows in blocks of 3
    found = log_probabilities(CONFIG, params, ROWS.tolist())
    assert found.shape == (7, 23)
    np.testing.assert_allclose(found, log_p, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(log_probabilities(CONFIG, params, ROWS, [1, 23]), found[:, [0, 22]])
    np.testing.assert_array_equal(log_probabilities(CONFIG, params, ROWS, 5), found[:, [4]])
    each = np.random.default_rng(0).integers(1, 24, (7, 4))
    np.testing.assert_array_equal(log_probabilities(CONFIG, params, ROWS, each), np.take_along_axis(found, each - 1, 1))


def test_what_follows_a_token_changes_nothing(params):
    other = np.where(np.arange(24) > 15, 0, ROWS)
    both = [log_probabilities(CONFIG, params, rows, range(1, 16)) for rows in (ROWS, other)]
    np.testing.assert_array_equal(*both)


@pytest.mark.parametrize(
    "rows, said",
    [
        ([[1, 50]], "token id 50: the model's are 0 to 49; were these rows made by its tokenizer"),
        ([[1, -1]], "token id -1: the model's are 0 to 49"),
        ([[1, 2], [3]], "rows of different lengths: fill the shorter ones up"),
        ([1, 2], r"rows of shape \(2,\): must be N x \(T \+ 1\) token ids"),
        ([[1.0, 2.0]], "rows of type float64: must be integers"),
        ([[1]], r"rows of shape \(1, 1\)"),
        ([], r"rows of shape \(0,\)"),
        ([[1] * 25], "rows of 25 tokens: model.context = 23 takes one more at most"),
    ],
)
def test_rows_that_are_not_the_models_are_refused(rows, said, params):
    with pytest.raises(InputError, match=said):
        log_probabilities(CONFIG, params, rows)


@pytest.mark.parametrize(
    "positions, said",
    [
        ([0], "position 0: must lie between 1 and 23"),
        ([[24]] * 7, "position 24: must lie"),
        ([[1], [2]], r"positions of shape \(2, 1\): must be P or 7 x P"),
        ([], r"positions of shape \(0,\)"),
        ([[1], [2, 3]], "positions of different lengths"),
        ([1.5], "positions of type float64: must be integers"),
    ],
)
def test_positions_outside_the_rows_are_refused(positions, said, params):
    with pytest.raises(InputError, match=said):
        log_probabilities(CONFIG, params, ROWS, positions)


def test_checked_rows_are_the_same_rows():
    np.testing.assert_array_equal(check_rows(CONFIG, ROWS.astype(np.uint16)), ROWS)
