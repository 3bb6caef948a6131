"""One cache for all tests of this room, and the two Bibles prepared once in it."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from jaxsat.config import DataConfig
from jaxsat.corpus import Corpus, prepare


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    path = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAXSAT_CACHE", str(path))
        patch.delenv("TFDS_DATA_DIR", raising=False)
        yield path


@pytest.fixture(scope="session")
def bibles(cache: Path) -> Corpus:
    return prepare(DataConfig(), vocab_size=512, context=64)


@pytest.fixture
def lines(tmp_path: Path) -> Callable[..., DataConfig]:
    """A corpus of the given texts, one a line of a file of its own."""

    def write(*texts: str, **data) -> DataConfig:
        path = tmp_path / f"{len(list(tmp_path.iterdir()))}.txt"
        path.write_text("\n".join(texts))
        return DataConfig(corpus=(str(path),), **data)

    return write
