"""The public model families as configurations."""

from typing import Any

from jaxsat.config import ModelConfig, unknown

# depth, width, heads (Biderman et al. 2023, table 1).
PYTHIA = {
    "14m": (6, 128, 4),
    "31m": (6, 256, 8),
    "70m": (6, 512, 8),
    "160m": (12, 768, 12),
    "410m": (24, 1024, 16),
    "1b": (16, 2048, 8),
    "1.4b": (24, 2048, 16),
    "2.8b": (32, 2560, 32),
    "6.9b": (32, 4096, 32),
    "12b": (36, 5120, 40),
}


def neox(**keys: Any) -> ModelConfig:
    """GPT-NeoX (Black et al. 2022): parallel residual, a quarter of each head rotated, LayerNorm, biases, GELU."""
    switches = dict(parallel_residual=True, rotary_fraction=0.25, norm="layer", bias=True, activation="gelu")
    return ModelConfig(**(switches | keys))


def llama(**keys: Any) -> ModelConfig:
    """Llama (Touvron et al. 2023): RMSNorm, SwiGLU, full rotary, no biases."""
    return ModelConfig(**(dict(norm="rms", activation="swiglu", bias=False) | keys))


def pythia(size: str, **keys: Any) -> ModelConfig:
    """A Pythia shape. V = 50304 is the padded vocabulary up to 1.4b; the larger models pad further."""
    if size not in PYTHIA:
        raise unknown("Pythia size", size, PYTHIA)
    depth, width, heads = PYTHIA[size]
    vocab_size = {"2.8b": 50304, "6.9b": 50432, "12b": 50688}.get(size, 50304)
    shape = dict(depth=depth, width=width, heads=heads, vocab_size=vocab_size, context=2048, scan_layers=True)
    return neox(**(shape | keys))
