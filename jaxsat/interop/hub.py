"""Models of the Hugging Face hub, with its own client (extra `hub`): `hf:ORG/NAME`, or `hf:ORG/NAME@REVISION`.

Nothing here is done unless such a name is given.
"""

import contextlib
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path

from jaxsat.config import InputError, ModelConfig
from jaxsat.interop import tensors
from jaxsat.interop.families import read_config

HUB = "hf:"


def parse(place: str) -> tuple[str, str]:
    """(ORG/NAME, revision). Raises InputError."""
    found = re.fullmatch(rf"{HUB}([\w.-]+/[\w.-]+)(?:@([\w./-]+))?", place)
    if not found:
        raise InputError(f"{place} is no name of the hub: give {HUB}ORG/NAME or {HUB}ORG/NAME@REVISION")
    return found[1], found[2] or "main"


def revisions(place: str) -> list[str]:
    """The branches and tags of a model. Raises InputError."""
    name, _ = parse(place)
    with _errors(place) as api:
        refs = api.list_repo_refs(name)
    return [ref.name for ref in (*refs.branches, *refs.tags)]


@contextlib.contextmanager
def local(place: str) -> Iterator[str]:
    """The folder that `place` is; of a name of the hub one that holds it for as long as it is asked for. Raises
    InputError."""
    if not place.startswith(HUB):
        yield place
        return
    with tempfile.TemporaryDirectory(prefix="jaxsat-hub-") as folder:
        _fetch(place, Path(folder), ("config.json", "tokenizer.json", tensors.INDEX, ".safetensors"))
        yield folder


def peek(place: str) -> ModelConfig:
    """The configuration of a model that is not fetched. Raises InputError."""
    if not place.startswith(HUB):
        path = Path(place) / "config.json"
        return read_config(tensors.read_json(path), str(path))[1]
    with tempfile.TemporaryDirectory(prefix="jaxsat-hub-") as folder:
        _fetch(place, Path(folder), ("config.json",))
        return read_config(tensors.read_json(Path(folder) / "config.json"), f"{place}: config.json")[1]


def _fetch(place: str, folder: Path, wanted: tuple[str, ...]) -> None:
    """The files of these endings, of those that lie at the top."""
    name, revision = parse(place)
    with _errors(place) as api:
        info = api.model_info(name, revision=revision)
        files = [f.rfilename for f in info.siblings if "/" not in f.rfilename and f.rfilename.endswith(wanted)]
        if tensors.INDEX in files or "model.safetensors" in files:  # Mistral's have it all once more
            files = [f for f in files if not f.startswith("consolidated")]
        if ".safetensors" in wanted and not any(f.endswith(".safetensors") for f in files):
            raise InputError(f"{place} has no *.safetensors: of its kinds of weights only these are read")
        for file in files:
            api.hf_hub_download(name, file, revision=info.sha, local_dir=folder)


@contextlib.contextmanager
def _errors(place: str) -> Iterator["huggingface_hub.HfApi"]:  # noqa: F821
    try:
        import huggingface_hub
        from huggingface_hub.errors import HTTPError
    except ModuleNotFoundError as e:
        raise InputError(f"{place} is on the hub, and {e.name} is not installed: pip install 'jaxsat[hub]'") from None
    try:
        yield huggingface_hub.HfApi()
    except (HTTPError, OSError, ValueError) as e:
        lines = [line for line in str(e).splitlines() if line.strip()]
        raise InputError(f"{place} could not be fetched: {type(e).__name__}: {lines[0] if lines else ''}") from None
