import dataclasses
import json
from math import prod

import jax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxsat.config import InputError, ModelConfig, Run, validate
from jaxsat.model import PYTHIA, count_parameters, flops_per_token, init, llama, neox, pythia

# Totals of the published checkpoints (EleutherAI/pythia-*), padded vocabulary and both embeddings included.
PUBLISHED = {
    "14m": 14_067_712,
    "31m": 30_494_720,
    "70m": 70_426_624,
    "160m": 162_322_944,
    "410m": 405_334_016,
    "1b": 1_011_781_632,
    "1.4b": 1_414_647_808,
    "2.8b": 2_775_208_960,
    "6.9b": 6_857_302_016,
    "12b": 11_846_072_320,
}


def sizes(config: ModelConfig) -> dict[str, int]:
    """Array sizes by their first key, from the shapes alone: nothing is allocated."""
    params = jax.eval_shape(lambda: init(config, jax.random.key(0)))
    return {name: sum(prod(a.shape) for a in jax.tree.leaves(part)) for name, part in params.items()}


@st.composite
def model_configs(draw):
    heads = draw(st.integers(1, 6))
    width = heads * draw(st.integers(2, 9))
    head = draw(st.sampled_from(["linear", "mixture", "nonlinear"]))
    tied = head != "nonlinear" and draw(st.booleans())
    ranks = {"linear": st.none() | st.integers(1, width), "nonlinear": st.integers(1, 60)}
    return ModelConfig(
        depth=draw(st.integers(1, 3)),
        width=width,
        heads=heads,
        kv_heads=draw(st.sampled_from([None, *(k for k in range(1, heads + 1) if heads % k == 0)])),
        head_width=draw(st.none() | st.integers(2, 9)),
        ffn_width=draw(st.none() | st.integers(1, 40)),
        context=draw(st.integers(1, 30)),
        vocab_size=draw(st.integers(1, 70)),
        head_rank=None if tied else draw(ranks.get(head, ranks["linear"])),
        tied_head=tied,
        head=head,
        head_softmaxes=draw(st.integers(1, 5)) if head == "mixture" else 4,
        norm=draw(st.sampled_from(["rms", "layer", "rms_unit_offset"])),
        activation=draw(st.sampled_from(["swiglu", "geglu", "gelu", "gelu_tanh", "relu"])),
        positions=draw(st.sampled_from(["rotary", "learned"])),
        parallel_residual=draw(st.booleans()),
        bias=draw(st.booleans()),
    )


@settings(max_examples=25, deadline=None)
@given(model_configs())
def test_counts_are_those_of_the_arrays(config):
    validate(Run(model=config))
    arrays, counts = sizes(config), count_parameters(config)
    assert counts.total == sum(arrays.values())
    assert counts.embedding == arrays["embedding"] + arrays.get("positions", 0)
    assert counts.head == arrays.get("head", 0)
    assert counts.nonembedding == arrays["blocks"] + arrays["final_norm"]


@pytest.mark.parametrize("size", PYTHIA)
def test_pythia_counts_to_the_published_total(size):
    assert count_parameters(pythia(size)).total == PUBLISHED[size]


def test_pythia_nonembedding_counts():
    """Biderman et al. 2023, table 1: the non-embedding parameters of 70M, 1.0B and 12B."""
    assert count_parameters(pythia("70m")).nonembedding == 18_915_328
    assert count_parameters(pythia("1b")).nonembedding == 805_736_448
    assert count_parameters(pythia("12b")).nonembedding == 11_327_027_200


def test_pythia_arrays_are_the_count():
    assert sum(sizes(pythia("12b")).values()) == PUBLISHED["12b"]


def test_pythia_shapes_are_those_of_the_training_configs(shared_data):
    upstream = json.loads((shared_data / "pythia_evals" / "pythia_configs.json").read_text())
    for size, shape in PYTHIA.items():
        c = upstream[f"pythia-{size}"]
        assert shape == tuple(int(c[key]) for key in ("num-layers", "hidden-size", "num-attention-heads"))
        assert pythia(size).context == int(c["max-position-embeddings"])
        assert pythia(size).rotary_fraction == float(c.get("rotary-pct", 0.25))


def test_pythia_takes_other_keys_and_names_a_wrong_size():
    assert pythia("70m", head_rank=64, vocab_size=1024) == dataclasses.replace(
        pythia("70m"), head_rank=64, vocab_size=1024
    )
    with pytest.raises(InputError, match="unknown Pythia size '70M'; did you mean '70m'"):
        pythia("70M")


def test_families_take_overrides():
    assert neox(bias=False).bias is False and neox().parallel_residual
    assert llama(kv_heads=2).kv_heads == 2 and llama().activation == "swiglu"


def test_flops_by_hand():
    # 6 x (blocks + head) + 12 L d T, for L=1, d=4, f=16, V=10, T=3, no biases: blocks 4 16 + 2 64 + 3 4 = 204.
    c = ModelConfig(depth=1, width=4, heads=1, vocab_size=10, context=3)
    assert flops_per_token(c) == 6 * (204 + 40) + 12 * 4 * 3
    assert flops_per_token(dataclasses.replace(c, tied_head=True)) == flops_per_token(c)
    assert flops_per_token(dataclasses.replace(c, head_rank=2)) == 6 * (204 + 2 * 14) + 12 * 4 * 3
    # A mixture of 3: its matrix thrice, 3 of 4 x 4 and one of 4 x 3. Bottlenecks are matrices like others.
    mixture = dataclasses.replace(c, head="mixture", head_softmaxes=3)
    assert flops_per_token(mixture) == 6 * (204 + 3 * 40 + 3 * 16 + 12) + 12 * 4 * 3
    assert flops_per_token(dataclasses.replace(mixture, tied_head=True)) == flops_per_token(mixture)
    assert flops_per_token(dataclasses.replace(c, head="nonlinear", head_rank=9)) == 6 * (204 + 9 * 14) + 12 * 4 * 3
