import pytest
from etils import epath

from jaxsat.corpus import Corpus
from jaxsat.sweep import Pack
from jaxsat.train import train_pack


@pytest.fixture(scope="session")
def solo(tiny_pack: Pack, tiny_corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> epath.Path:
    """The second run of `tiny_pack`, trained alone: its head is stored at its own rank 2, on one device."""
    out = epath.Path(tmp_path_factory.mktemp("solo"))
    train_pack(Pack(tiny_pack.runs[1:2]), tiny_corpus, out)
    return out
