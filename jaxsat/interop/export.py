"""A model of ours as a folder that transformers loads."""

import json
from collections.abc import Iterator

import numpy as np
from etils import epath
from tokenizers import Tokenizer

from jaxsat import model
from jaxsat.config import InputError, ModelConfig
from jaxsat.corpus.tokenizer import eos_id
from jaxsat.interop import names, tensors
from jaxsat.interop.families import write_config


def write(config: ModelConfig, params: model.Params, tokenizer: str | None, folder: epath.PathLike) -> None:
    """Writes model.safetensors, config.json and, where `tokenizer` (the text of a tokenizer.json) is given, the files
    of a tokenizer. The folder is there when all of it is.

    Raises InputError for a model that none of transformers' families can express, and a folder that is not empty.
    """
    data, folder = write_config(config), epath.Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{folder} is there and not empty: choose another folder, or remove it")
    entries = list(names.entries(data["model_type"], config))
    shapes = {name: entry.shape for entry in entries for name in entry.names(config)}
    end = _end_of_text(tokenizer) if tokenizer else None
    data |= dict.fromkeys(("bos_token_id", "pad_token_id"), None) | {"eos_token_id": end and end[1]}
    partial = folder.parent / f".{folder.name}.partial"
    if partial.exists():  # of a process that was killed
        partial.rmtree()
    partial.mkdir(parents=True)
    try:
        tensors.write(partial / "model.safetensors", shapes, _arrays(entries, config, params))
        if tokenizer:
            (partial / "tokenizer.json").write_text(tokenizer)
            about = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": config.context}
            about |= {"clean_up_tokenization_spaces": False} | ({"eos_token": end[0]} if end else {})
            (partial / "tokenizer_config.json").write_text(json.dumps(about, indent=1) + "\n")
        (partial / "config.json").write_text(json.dumps(data, indent=1) + "\n")
        if folder.exists():
            folder.rmdir()
        partial.rename(folder)
    except BaseException:
        partial.rmtree()
        raise


def _arrays(entries: list[names.Entry], config: ModelConfig, params: model.Params) -> Iterator[np.ndarray]:
    for entry in entries:
        leaves = []
        for path in entry.paths:
            leaf = params
            for key in path:
                leaf = leaf[key]
            leaves.append(leaf)
        for i, _ in enumerate(entry.names(config)):
            yield entry.write([np.asarray(leaf[i] if "{}" in entry.name else leaf) for leaf in leaves])


def _end_of_text(tokenizer: str) -> tuple[str, int] | None:
    """(token, id)"""
    try:
        found = Tokenizer.from_str(tokenizer)
    except Exception as e:  # all that the Rust library raises
        raise InputError(f"the tokenizer is no tokenizer.json: {e}") from None
    try:
        end = eos_id(found)
    except InputError:
        return None
    return found.id_to_token(end), end
