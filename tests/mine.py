"""Two ranks of a tiny model."""

from jaxsat.config import DataConfig, ModelConfig, Run, TrainConfig
from jaxsat.sweep import Sweep, product


def sweeps(scale):
    model = ModelConfig(depth=1, width=8, heads=1, context=16, vocab_size=256)
    train = TrainConfig(steps=20, batch_size=4, warmup_steps=2, checkpoint_every=10)
    base = Run(model, train, DataConfig(("words.txt",), heldout_tokens=256))
    small = product({"model.head_rank": [2, 8], "seed": [0, 1]})
    hot = [{"model.head_rank": 8, "train.learning_rate": 1e30, "allow_divergence": True}]
    return [Sweep("main", base, small), Sweep("hot", base, hot)]
