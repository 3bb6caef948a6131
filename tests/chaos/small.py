"""A small study that tests of chaos make again and again."""

from pathlib import Path

import numpy as np
import pandas as pd
from etils import epath

from jaxsat.directory import Directory

EXPERIMENT = """
from jaxsat import DataConfig, ModelConfig, Run, Sweep, TrainConfig, product


def sweeps(scale):
    train = TrainConfig(steps={steps}, batch_size=4, warmup_steps=2, checkpoint_every={every})
    base = Run(ModelConfig(depth=1, width=8, heads=1, context=16, vocab_size=256), train,
               DataConfig(("words.txt",), heldout_tokens=256))
    return [Sweep("main", base, product({axes}))]
"""


def write(folder: Path, steps: int = 20, every: int = 10, **axes: list[int]) -> None:
    """small.py and its text; a pack for each width."""
    words = ["sun", "moon", "stars", "sea", "stone", "tree", "river", "and", "the", "of"]
    lines = (" ".join(np.random.default_rng(i).choice(words, 30)) for i in range(200))
    (folder / "words.txt").write_text("\n".join(lines))
    named = {f"model.{name}": values for name, values in ({"head_rank": [2, 4]} | axes).items()}
    (folder / "small.py").write_text(EXPERIMENT.format(steps=steps, every=every, axes=named))


def numbers(out: epath.PathLike) -> pd.DataFrame:
    """All that is measured but times."""
    rows = Directory.open(epath.Path(out)).measurements()
    return rows[~rows["metric"].str.endswith("_latency")].reset_index(drop=True)
