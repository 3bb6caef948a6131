import json

import numpy as np
import pytest

from jaxsat import interop
from jaxsat.config import InputError, ModelConfig
from jaxsat.corpus import tokenizer as bpe
from jaxsat.interop import tensors
from tests.interop.conftest import FAMILIES, draw, same

CONFIG = FAMILIES["llama"]


def test_a_folder_that_is_not_empty_is_left_alone(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="is there and not empty: choose another folder, or remove it"):
        interop.write(CONFIG, draw(CONFIG), None, tmp_path)
    with pytest.raises(InputError, match="notes.txt is there and not empty"):
        interop.write(CONFIG, draw(CONFIG), None, tmp_path / "notes.txt")
    assert [p.name for p in tmp_path.iterdir()] == ["notes.txt"]


def test_an_empty_folder_and_one_below_others_that_are_not_there_are_filled(tmp_path):
    (tmp_path / "empty").mkdir()
    for folder in (tmp_path / "empty", tmp_path / "a" / "b"):
        interop.write(CONFIG, draw(CONFIG), None, folder)
        same(interop.open(folder).params(), draw(CONFIG))
        assert sorted(p.name for p in folder.parent.iterdir() if p.name.startswith(".")) == []


def test_what_is_refused_or_fails_leaves_nothing(tmp_path, monkeypatch):
    with pytest.raises(InputError, match="model.activation = 'gelu' cannot be written"):
        interop.write(ModelConfig(), draw(ModelConfig()), None, tmp_path / "model")
    with pytest.raises(ValueError, match=r"model.norm.weight is float64 of \(24,\), not float32"):
        interop.write(CONFIG, draw(CONFIG) | {"final_norm": {"scale": np.ones(24)}}, None, tmp_path / "model")
    with pytest.raises(InputError, match="the tokenizer is no tokenizer.json"):
        interop.write(CONFIG, draw(CONFIG), "{", tmp_path / "model")
    assert not list(tmp_path.iterdir())


def test_what_a_killed_process_left_is_in_nobodys_way(tmp_path):
    (tmp_path / ".model.partial").mkdir()
    (tmp_path / ".model.partial" / "model.safetensors").write_text("half")
    interop.write(CONFIG, draw(CONFIG), None, tmp_path / "model")
    assert [p.name for p in tmp_path.iterdir()] == ["model"]
    assert len(tensors.find(interop.open(tmp_path / "model").folder)) == 3 + 16 * 3


def test_the_tokenizer_comes_along(tmp_path):
    tokenizer = bpe.train(["the sun and the moon"] * 5, 40)
    interop.write(CONFIG, draw(CONFIG), tokenizer.to_str(), tmp_path / "model")
    found = interop.open(tmp_path / "model").tokenizer
    assert bpe.load(str(found), CONFIG.vocab_size).encode("the moon").ids == tokenizer.encode("the moon").ids
    assert json.loads((tmp_path / "model" / "config.json").read_text())["eos_token_id"] == bpe.eos_id(tokenizer)
