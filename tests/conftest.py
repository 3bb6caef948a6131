"""Strict JAX for every test: several fake CPU devices, no silent promotion of ranks or types, one compilation cache."""

import os
import shutil
import tempfile
from pathlib import Path

os.environ["NPROC"] = "32"  # threads for 8 devices, two programs in flight: XLA's pool of 2 stops for good
os.environ["OPENBLAS_NUM_THREADS"] = "1"  # as in the command line

import jax  # noqa: E402
import numpy as np
import pytest
from etils import epath

from jaxsat.config import Run, override
from jaxsat.corpus import Corpus, prepare
from jaxsat.sweep import Pack
from jaxsat.train import train_pack

pytest_plugins = ["tests.studies"]

jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")
# One cache of compiled programs for all workers, and for the processes that tests start: of all programs, which makes
# tests of training a fifth faster than of those that take half a second.
if "JAXSAT_TEST_COMPILED" not in os.environ:
    os.environ["JAXSAT_TEST_COMPILED"] = tempfile.mkdtemp(prefix="jaxsat-compiled-")
COMPILED = os.environ["JAXSAT_TEST_COMPILED"]
jax.config.update("jax_compilation_cache_dir", COMPILED)
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


def pytest_unconfigure(config: pytest.Config) -> None:
    if not hasattr(config, "workerinput"):
        shutil.rmtree(COMPILED, ignore_errors=True)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real data for checks, beside the checkout or at JAXSAT_SHARED_DATA; never part of the project."""
    root = Path(os.environ.get("JAXSAT_SHARED_DATA", Path(__file__).parents[2] / "shared" / "data"))
    if not root.is_dir():
        pytest.skip(f"no shared data at {root}: set JAXSAT_SHARED_DATA")
    return root


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A model of a few thousand parameters that trains in a second, on a corpus of its own."""
    text = tmp_path_factory.mktemp("text") / "corpus.txt"
    words = ["sun", "moon", "stars", "sea", "stone", "tree", "river", "and", "the", "of"]
    text.write_text("\n".join(" ".join(np.random.default_rng(i).choice(words, 30)) for i in range(300)))
    model = {"depth": 1, "width": 8, "heads": 2, "context": 16, "vocab_size": 64, "head_rank": 4}
    model |= {"norm": "layer", "bias": True}
    train = {"steps": 60, "batch_size": 8, "warmup_steps": 5, "checkpoint_every": 20, "learning_rate": 1e-2}
    point = {f"model.{k}": v for k, v in model.items()} | {f"train.{k}": v for k, v in train.items()}
    return override(Run(), point | {"data.corpus": [str(text)], "data.heldout_tokens": 600})


@pytest.fixture(scope="session")
def tiny_corpus(tiny_run: Run, tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAXSAT_CACHE", str(tmp_path_factory.mktemp("cache")))
        return prepare(tiny_run.data, tiny_run.model.vocab_size, tiny_run.model.context)


@pytest.fixture(scope="session")
def tiny_pack(tiny_run: Run) -> Pack:
    """Three runs that differ in all that the runs of a pack may differ in."""
    points = (
        {},
        {"seed": 1, "model.head_rank": 2, "train.weight_decay": 0.5},
        {"seed": 2, "data_seed": 7, "train.learning_rate": 3e-3, "train.weight_decay": 0.0, "train.init_scale": 1.5},
    )
    return Pack(tuple(override(tiny_run, point) for point in points))


@pytest.fixture(scope="session")
def trained(tiny_pack: Pack, tiny_corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> epath.Path:
    """The output directory of `tiny_pack`, trained without interruption. Copy it before changing it."""
    out = epath.Path(tmp_path_factory.mktemp("trained"))
    train_pack(tiny_pack, tiny_corpus, out)
    return out
