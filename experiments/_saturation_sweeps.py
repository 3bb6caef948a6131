"""What `saturation` trains."""

from collections.abc import Callable

from jaxsat import model
from jaxsat.config import DataConfig, ModelConfig, Run, TrainConfig, override
from jaxsat.experiments._saturation import PAPER_TOKENS_PER_PARAMETER
from jaxsat.model import PYTHIA, llama, pythia
from jaxsat.sweep import Point, Sweep, chain, product, zipped


def sweeps(scale: str) -> list[Sweep]:
    """`main`: width x head rank x seed, equal tokens; `budget`: shorter runs, for the law's D axis; `probe`: what
    weight decay does to the spectrum of a full head. By `--only`: `cause`, other settings at equal tokens; `remedies`,
    other heads; `optimizer`, AdamW and Muon; `saturating`, what the paper's small models went through."""
    match scale:
        case "laptop":
            shape = ModelConfig(vocab_size=1024, context=64)
            train = TrainConfig(steps=1500, batch_size=16, warmup_steps=30, schedule="linear", final_lr=0.0)
            base, widths, seeds = Run(shape, train), (8, 16, 32, 64), (0, 1)
            repeated = widths[:2]  # second seeds of all ranks at 32 and 64 too: a minute more, the same verdicts
            ranks = {8: (2, 4, 8), 16: (2, 4, 8, 16), 32: (2, 4, 8, 16, 32), 64: (4, 8, 16, 32, 64)}
            budgets, probe = (375, 750), dict(steps=7500, rates=(0.04, 0.12))
        case "workstation":  # 3.1 epochs of 5.3 M tokens; the probe 3.7
            shape = llama(depth=4, vocab_size=8192, context=256)
            train = TrainConfig(steps=1000, batch_size=64, warmup_steps=50, schedule="linear", final_lr=0.0)
            base = Run(shape, train, DataConfig(("bible_web", "bible_basic", "docs")))
            widths, seeds = (64, 128, 256, 512), (0, 1, 2)
            repeated = widths
            ranks = {d: tuple(2**i for i in range(3, 10) if 2**i <= d) for d in widths}
            budgets, probe = (250, 500), dict(steps=1200, rates=(0.006, 0.02))
        case "pod":
            return [_pythia_sweep()]
    shapes = {
        d: {"model.width": [d], "model.heads": [max(1, d // 16)], "train.learning_rate": [0.384 / d]} for d in widths
    }
    full = [product(shapes[d], {"model.head_rank": [d], "seed": seeds}) for d in widths]
    seeds_of = {d: seeds if d in repeated else seeds[:1] for d in widths}
    lower = [product(shapes[d], {"model.head_rank": ranks[d][:-1], "seed": seeds_of[d]}) for d in widths]
    shorter = [product(points, {"train.steps": budgets}) for points in full[:-1]]
    smallest = product(
        shapes[widths[0]],
        {"model.head_rank": [None], "train.steps": [probe["steps"]], "train.schedule": ["cosine"]},
        {"train.final_lr": [0.1], "train.weight_decay": [0.0, 0.1], "train.learning_rate": probe["rates"]},
        {"train.checkpoint_every": [probe["steps"] // 24], "seed": [0, 1]},
    )
    return [
        Sweep("main", base, chain(*lower, *full)),
        Sweep("budget", base, chain(*shorter)),
        Sweep("probe", base, smallest),
        Sweep("cause", base, _causes(base, widths[1])),
        Sweep("remedies", base, _remedies(base, shapes[widths[2]], widths[2])),
        Sweep("known_rank", base, _drawn("known_rank", shapes[widths[2]], KNOWN_RANKS, {"model.vocab_size": [512]})),
        Sweep("spam", base, _drawn("spam", shapes[widths[1]], {"model.vocab_size": [256, 1024, 4096]})),
        Sweep("optimizer", base, product(chain(*(product(shapes[d]) for d in widths[:3])), SHORT(base), OPTIMIZERS)),
        *([_saturating()] if scale == "workstation" else []),
    ]


SEEDS = {"seed": [0, 1, 2, 3]}  # an even number fills packs on two devices: three would be two programs
SHORT = lambda base: SEEDS | {"train.steps": [base.train.steps // 2]}
OPTIMIZERS = {"train.optimizer": ["adamw", "muon"]}


def _causes(base: Run, width: int) -> list[Point]:
    """Half the tokens of `base` in all of them; Kulkarni et al. vary the same three."""
    batch, steps = base.train.batch_size, base.train.steps
    return product(
        {"model.width": [width], "model.heads": [max(1, width // 16)], "seed": [0, 1]},
        zipped({"train.batch_size": [batch // 2, batch, 2 * batch], "train.steps": [steps, steps // 2, steps // 4]}),
        {"train.learning_rate": [share * 0.384 / width for share in (0.25, 1, 2.5)]},
        {"train.weight_decay": [0.0, 0.1, 0.5]},
    )


def _remedies(base: Run, shape: dict, width: int) -> list[Point]:
    """A linear head of a quarter of the width, and others of as many parameters, or of as many training FLOPs."""
    model_of = lambda point: override(base, {"model.width": width} | point).model
    linear = {"model.head_rank": width // 4}
    mixture = {"model.head": "mixture", "model.head_softmaxes": 2}

    def matching(count: Callable[[ModelConfig], int]) -> Point:
        ranks = [mixture | {"model.head_rank": r} for r in range(1, width + 1)]
        return min(ranks, key=lambda point: abs(count(model_of(point)) - count(model_of(linear))))

    total = lambda config: model.count_parameters(config).total
    heads = [linear, linear | {"model.head": "nonlinear"}, matching(total), matching(model.flops_per_token)]
    return product(shape, SHORT(base), heads)


KNOWN_RANKS = {"model.head_rank": [2, 4, 6, 8, 12, 16, 32]}


def _drawn(task: str, *parts: dict) -> list[Point]:
    """On a language that is drawn, always new: 1.5 M tokens at the laptop scale."""
    return product({"task": [task]}, SEEDS, *parts)


def _saturating() -> Sweep:
    """21,000 tokens a parameter of a text that is read once, in bytes' place 512 tokens, at a constant rate: what the
    paper's smallest went through. 1.3 and 3.5 B tokens a run; not run yet."""
    base = Run(
        llama(depth=2, vocab_size=512, context=128),
        TrainConfig(batch_size=256, warmup_steps=400, schedule="constant"),
        DataConfig(("c4/en",)),
    )
    points = []
    for d in (32, 64):
        at = {"model.width": d, "model.heads": d // 16, "train.learning_rate": 0.192 / d}
        n = model.count_parameters(override(base, at).model).total
        steps = -(-PAPER_TOKENS_PER_PARAMETER * n // (256 * 128))
        points += product([at | {"train.steps": steps, "train.checkpoint_every": steps // 64}], {"seed": [0, 1, 2]})
    return Sweep("saturating", base, points)


def _pythia_sweep() -> Sweep:
    """The Pythia shapes and recipe (Biderman et al. 2023): 143 000 steps of 1024 rows of 2048 tokens, here of C4."""
    rates = {"14m": 1e-3, "31m": 1e-3, "70m": 1e-3, "160m": 6e-4, "410m": 3e-4, "1b": 3e-4, "1.4b": 2e-4}
    train = TrainConfig(steps=143_000, batch_size=1024, warmup_steps=1430, checkpoint_every=1000)
    base = Run(pythia("14m", compute_dtype="bfloat16"), train, DataConfig(("c4/en",)))
    sizes = {"model.depth": 0, "model.width": 1, "model.heads": 2}
    axes = {key: [PYTHIA[size][i] for size in rates] for key, i in sizes.items()}
    return Sweep("main", base, zipped(axes | {"train.learning_rate": list(rates.values())}))
