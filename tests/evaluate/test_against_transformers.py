"""Exported models write in transformers what they write here."""

import jax
import numpy as np
import pytest

from jaxsat import interop
from jaxsat.evaluate import generate_tokens
from tests.interop.conftest import FAMILIES, draw

torch = pytest.importorskip("torch", reason="torch is not installed: pip install 'jaxsat[bench]'")
transformers = pytest.importorskip("transformers", reason="transformers is not installed: pip install 'jaxsat[bench]'")


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_tokens_are_those_of_transformers(family, tmp_path):
    config = FAMILIES[family]
    params = jax.tree.map(lambda x: 2 * x, draw(config))
    interop.write(config, params, None, tmp_path / "model")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "model").eval()
    prompts = [np.random.default_rng(n).integers(0, config.vocab_size, n).tolist() for n in (1, 20, 44)]
    settings = dict(do_sample=False, max_new_tokens=20, min_new_tokens=20, pad_token_id=0)
    expected = [theirs.generate(torch.tensor([prompt]), **settings)[0, len(prompt) :].tolist() for prompt in prompts]
    assert generate_tokens(config, params, prompts, 20) == expected
    assert len({token for tokens in expected for token in tokens}) > 6
