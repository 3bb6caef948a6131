"""One odd-shaped model of each family, drawn with nothing at a special value, as a folder that we wrote."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest

from jaxsat import interop, model
from jaxsat.config import ModelConfig
from jaxsat.interop.names import shapes
from jaxsat.model import llama, neox

SHAPE = dict(depth=3, width=24, heads=4, ffn_width=44, vocab_size=91, context=64, scan_layers=True)
LEARNED = SHAPE | dict(norm="layer", bias=True, positions="learned")
FAMILIES = {
    "gpt_neox": neox(**SHAPE | dict(rotary_fraction=0.4)),
    "gpt2": ModelConfig(activation="gelu_tanh", tied_head=True, **LEARNED),
    "opt": ModelConfig(activation="relu", tied_head=True, **LEARNED),
    "llama": llama(kv_heads=2, bias=True, rotary_base=500.0, **SHAPE),
    "mistral": llama(kv_heads=1, head_width=10, **SHAPE | dict(heads=5)),
    "gemma": llama(
        norm="rms_unit_offset", kv_heads=1, head_width=10, tied_head=True, scaled_embedding=True,
        **SHAPE | dict(activation="geglu"),
    ),
}  # fmt: skip
families = pytest.mark.parametrize("family", FAMILIES)


def draw(config: ModelConfig, seed: int = 0) -> model.Params:
    """Gains off one (of Gemma off zero), biases off zero."""
    rng = np.random.default_rng(seed)
    gain = float(config.norm != "rms_unit_offset")
    return jax.tree_util.tree_map_with_path(
        lambda path, a: np.float32(gain * (path[-1].key == "scale") + 0.2 * rng.normal(size=a.shape)), shapes(config)
    )


def same(a: model.Params, b: model.Params) -> None:
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(lambda x, y: np.testing.assert_array_equal(np.asarray(x), np.asarray(y)), a, b)


def change(folder: Path, **keys: object) -> None:
    """Other values in config.json; of None a key is removed."""
    path = folder / "config.json"
    data = json.loads(path.read_text()) | keys
    path.write_text(json.dumps({key: value for key, value in data.items() if value is not None}))


@pytest.fixture(params=FAMILIES)
def written(request, tmp_path) -> tuple[ModelConfig, model.Params, Path]:
    config = FAMILIES[request.param]
    params = draw(config)
    interop.write(config, params, None, tmp_path / "model")
    return config, params, tmp_path / "model"


@pytest.fixture
def llama_folder(tmp_path) -> Path:
    interop.write(FAMILIES["llama"], draw(FAMILIES["llama"]), None, tmp_path / "model")
    return tmp_path / "model"
