"""Sweeps of small language models over depth, width and head rank: train, measure, fit, and see why they stop
improving."""

from jaxsat.config import DataConfig, InputError, ModelConfig, Run, TrainConfig
from jaxsat.sweep import Sweep, chain, product, zipped

__all__ = ["DataConfig", "InputError", "ModelConfig", "Run", "Sweep", "TrainConfig", "chain", "product", "zipped"]
