import dataclasses
import hashlib
import json
import typing

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxsat.config import (
    LONGEST,
    DataConfig,
    InputError,
    ModelConfig,
    Run,
    TrainConfig,
    checkpoint_steps,
    dumps,
    flatten,
    from_dict,
    override,
    validate,
)


def configs(cls: type) -> st.SearchStrategy:
    """Any well-typed configuration, sensible or not."""
    leaf = {
        int: st.integers(0, 10**6),
        float: st.floats(0, 1e6),
        bool: st.booleans(),
        str: st.text(),
        int | None: st.none() | st.integers(0, 10**6),
        str | None: st.none() | st.text(),
        tuple[str, ...]: st.lists(st.text(), max_size=3).map(tuple),
        tuple[int, ...]: st.lists(st.integers(0, 10**6), max_size=3).map(tuple),
    }

    def strategy(hint):
        if dataclasses.is_dataclass(hint):
            return configs(hint)
        if typing.get_origin(hint) is tuple and hint not in leaf:
            return st.lists(strategy(typing.get_args(hint)[0]), max_size=3).map(tuple)
        return leaf[hint] if hint in leaf else st.sampled_from(typing.get_args(hint))

    return st.builds(cls, **{name: strategy(hint) for name, hint in typing.get_type_hints(cls).items()})


@given(configs(Run))
def test_json_round_trip_gives_the_same_run(run):
    back = from_dict(Run, json.loads(dumps(run)))
    assert back == run and back.id == run.id and hash(back) == hash(run)


@given(configs(Run))
def test_flatten_is_undone_by_override(run):
    assert override(Run(), flatten(run)) == run


# As they were when ids began to be hashes of what differs from them. A changed default changes the meaning of every id
# on disk; a new field goes below, with the default under which the old runs were trained.
DEFAULTS = {
    "model.depth": 2,
    "model.width": 64,
    "model.heads": 4,
    "model.kv_heads": None,
    "model.head_width": None,
    "model.ffn_width": None,
    "model.context": 64,
    "model.vocab_size": 1024,
    "model.head_rank": None,
    "model.tied_head": False,
    "model.head": "linear",
    "model.head_softmaxes": 4,
    "model.norm": "rms",
    "model.norm_eps": 1e-05,
    "model.activation": "gelu",
    "model.positions": "rotary",
    "model.rotary_fraction": 1.0,
    "model.rotary_base": 10000.0,
    "model.scaled_embedding": False,
    "model.parallel_residual": False,
    "model.bias": False,
    "model.scan_layers": False,
    "model.compute_dtype": "float32",
    "train.steps": 1500,
    "train.batch_size": 16,
    "train.learning_rate": 0.006,
    "train.warmup_steps": None,
    "train.schedule": "cosine",
    "train.decay_fraction": 0.2,
    "train.final_lr": 0.1,
    "train.optimizer": "adamw",
    "train.weight_decay": 0.1,
    "train.init_scale": 1.0,
    "train.beta1": 0.9,
    "train.beta2": 0.95,
    "train.eps": 1e-08,
    "train.clip_norm": 1.0,
    "train.checkpoint_every": 250,
    "data.corpus": ("bible_web", "bible_basic"),
    "data.tokenizer": "bpe",
    "data.heldout_fraction": 0.02,
    "data.heldout_tokens": 50000,
    "data.heldout": (),
    "data.weights": (),
    "seed": 0,
    "data_seed": None,
    "task": "",
    "start.run": None,
    "start.step": None,
    "start.kept": (),
    "imported.name": None,
    "imported.steps": (),
    "imported.tokens_per_step": 1,
    "allow_divergence": False,
    "keep_optimizer": False,
}


def test_defaults_are_frozen():
    assert flatten(Run()) == DEFAULTS


def test_ids_hash_what_differs_from_the_defaults():
    assert Run().id == hashlib.sha256(b"{}").hexdigest()[:12]
    run = override(Run(), {"model.head_rank": 8, "seed": 1})
    assert run.id == hashlib.sha256(b'{"model.head_rank":8,"seed":1}').hexdigest()[:12]
    assert override(run, {"model.head_rank": None, "seed": 0}).id == Run().id


def test_numbers_of_numpy_are_numbers():
    point = {"seed": np.int64(3), "train.learning_rate": np.float32(0.5), "model.width": np.arange(32, 65, 32)[1]}
    run = override(Run(), point)
    assert run == override(Run(), {"seed": 3, "train.learning_rate": 0.5, "model.width": 64}) and type(run.seed) is int


def test_defaults_do_not_contradict():
    for steps in (1, 5, 20, 299, 300):
        assert validate(Run(train=TrainConfig(steps=steps))).train.warmup == min(30, steps // 10)
    with pytest.raises(InputError, match="train.warmup_steps = 30 is above train.steps = 20"):
        validate(Run(train=TrainConfig(steps=20, warmup_steps=30)))


@pytest.mark.parametrize(
    "key, meant",
    [("train.lr", "train.learning_rate"), ("train.wd", "train.weight_decay"), ("lr", "train.learning_rate"),
     ("model.d_model", "model.width"), ("model.n_layers", "model.depth"), ("train.bs", "train.batch_size"),
     ("model.rank", "model.head_rank"), ("model.widht", "model.width")],
)  # fmt: skip
def test_the_key_that_was_meant_is_suggested(key, meant):
    with pytest.raises(InputError, match=f"did you mean {meant!r}"):
        override(Run(), {key: 1})


def test_equal_runs_have_equal_ids():
    one = Run(train=TrainConfig(learning_rate=1), data=DataConfig(corpus=("a",)))
    assert one == Run(train=TrainConfig(learning_rate=1.0), data=DataConfig(corpus=("a",)))
    assert one.id == Run(train=TrainConfig(learning_rate=1.0), data=DataConfig(corpus=("a",))).id
    assert one.id == from_dict(Run, {"train": {"learning_rate": 1}, "data": {"corpus": "a"}}).id


OTHER = {int: 7, float: 0.125, bool: True, str: "other", int | None: 4, str | None: "other",
         tuple[str, ...]: ("other",), tuple[int, ...]: (3, 4), tuple[float, ...]: (0.5, 0.5)}  # fmt: skip


@pytest.mark.parametrize("key", flatten(Run()))
def test_every_key_changes_the_id(key):
    section, _, name = key.rpartition(".")
    cls = typing.get_type_hints(Run)[section] if section else Run
    hint = typing.get_type_hints(cls)[name]
    value = "optimizer" if name == "kept" else OTHER[hint] if hint in OTHER else typing.get_args(hint)[-1]
    assert override(Run(), {key: value}).id != Run().id


@pytest.mark.parametrize(
    "data, message",
    [
        ({"model": {"widht": 8}}, "unknown configuration key 'model.widht'; did you mean 'model.width'?"),
        ({"modle": {"width": 8}}, "unknown configuration key 'modle.width'; did you mean 'model.width'?"),
        ({"train": {"lr": 1.0}}, "unknown configuration key 'train.lr'; did you mean 'train.learning_rate'?"),
        ({"zzz": 1}, "unknown configuration key 'zzz'; known: allow_divergence, data.corpus, "),
        ({"model": {"width": 8.5}}, "model.width = 8.5: must be of type int"),
        ({"model": {"width": "8"}}, "model.width = '8': must be of type int"),
        ({"model": {"width": None}}, "model.width = None: must be of type int"),
        ({"model": {"head_rank": "full"}}, "model.head_rank = 'full': must be of type int"),
        ({"model": {"scan_layers": 1}}, "model.scan_layers = 1: must be of type bool"),
        ({"seed": True}, "seed = True: must be of type int"),
        ({"train": {"learning_rate": True}}, "train.learning_rate = True: must be of type float"),
        ({"train": {"learning_rate": "6e-3"}}, "train.learning_rate = '6e-3': must be of type float"),
        ({"model": {"norm": "batch"}}, "model.norm = 'batch': must be one of 'rms', 'layer'"),
        ({"data": {"corpus": 3}}, "data.corpus = 3: must be a list"),
        ({"data": {"corpus": [3]}}, "data.corpus = 3: must be of type str"),
        ([1], "Run must be an object, not [1]"),
        ({"train": {"learning_rate": 10**400}}, "train.learning_rate = 10000000000000000000...: must be a number"),
    ],
)
def test_wrong_keys_and_types_are_named(data, message):
    with pytest.raises(InputError) as e:
        from_dict(Run, data)
    assert str(e.value).startswith(message) and "\n" not in str(e.value)


def test_a_message_is_one_line_whatever_it_quotes():
    assert str(InputError("a\nb\udcff \x1b−é")) == r"a\nb\udcff \x1b−é"
    long = str(InputError(f"where: {'x' * 1000}: mend it"))
    assert len(long) == LONGEST and long.startswith("where: xx") and long.endswith("xx: mend it") and " ... " in long


def test_lossless_conversions():
    run = from_dict(Run, {"model": {"width": 128.0}, "train": {"learning_rate": 1}, "data": {"corpus": ["a", "b"]}})
    assert run.model.width == 128 and isinstance(run.model.width, int)
    assert isinstance(run.train.learning_rate, float) and run.data.corpus == ("a", "b")
    assert from_dict(Run, {"data": {"corpus": "mine.txt"}}).data.corpus == ("mine.txt",)
    with pytest.raises(InputError, match="file.json must be an object"):
        from_dict(Run, "text", where="file.json")


@pytest.mark.parametrize(
    "values, message",
    [
        ({"model.depth": 0}, "model.depth = 0: must be at least 1"),
        ({"model.head_rank": 0}, "model.head_rank = 0: must be at least 1"),
        ({"train.batch_size": -4}, "train.batch_size = -4: must be at least 1"),
        ({"train.warmup_steps": -1}, "train.warmup_steps = -1: must be at least 0"),
        ({"seed": -1}, "seed = -1: must be at least 0"),
        ({"seed": 2**32}, f"seed = {2**32}: must be below 2^32"),
        ({"data_seed": 2**32}, f"data_seed = {2**32}: must be below 2^32"),
        ({"train.learning_rate": float("nan")}, "train.learning_rate = nan: must be a finite number, at least 0"),
        ({"train.clip_norm": float("inf")}, "train.clip_norm = inf: must be a finite number, at least 0"),
        ({"train.weight_decay": -0.1}, "train.weight_decay = -0.1: must be a finite number, at least 0"),
        ({"train.beta2": 1.0}, "train.beta2 = 1.0: must be below 1"),
        (
            {"model.width": 48, "model.heads": 5},
            "model.width = 48 is not divisible by model.heads = 5: try model.heads = 4",
        ),
        (
            {"model.width": 48, "model.heads": 9},
            "model.width = 48 is not divisible by model.heads = 9: try model.heads = 8",
        ),
        (
            {"model.width": 48, "model.heads": 2**31 - 1},
            f"model.width = 48 is not divisible by model.heads = {2**31 - 1}: try model.heads = 48",
        ),
        ({"model.heads": 2**31}, f"model.heads = {2**31}: must be below 2^31"),
        (
            {"train.steps": 2**30, "train.checkpoint_every": 1},
            f"train.checkpoint_every = 1: of train.steps = {2**30} more than 1000000 checkpoints would be kept",
        ),
        ({"model.kv_heads": 3}, "model.heads = 4 is not divisible by model.kv_heads = 3"),
        (
            {"model.head_rank": 65},
            "model.head_rank = 65 is above model.width = 64: a head of width d has rank d at most",
        ),
        (
            {"model.head_rank": 4, "model.tied_head": True},
            "model.head_rank = 4 with model.tied_head: a tied head is the embedding and cannot be factored",
        ),
        (
            {"model.head": "nonlinear"},
            "model.head = 'nonlinear' with model.head_rank = None, model.tied_head = False: it needs a head_rank, the "
            "width of its bottleneck, and matrices of its own",
        ),
        (
            {"model.head": "nonlinear", "model.head_rank": 4, "model.tied_head": True},
            "model.head = 'nonlinear' with model.head_rank = 4, model.tied_head = True: it needs a head_rank, the "
            "width of its bottleneck, and matrices of its own",
        ),
        (
            {"model.head": "mixture", "model.head_rank": 65},
            "model.head_rank = 65 is above model.width = 64: a head of width d has rank d at most",
        ),
        (
            {"model.head_softmaxes": 2},
            "model.head_softmaxes = 2 with model.head = 'linear': only a 'mixture' has several",
        ),
        ({"model.head_softmaxes": 0}, "model.head_softmaxes = 0: must be at least 1"),
        ({"model.rotary_fraction": 1.5}, "model.rotary_fraction = 1.5 of 16 dimensions a head: needs at least 2"),
        ({"model.rotary_fraction": 0.1}, "model.rotary_fraction = 0.1 of 16 dimensions a head: needs at least 2"),
        ({"data.heldout_fraction": 1.0}, "data.heldout_fraction = 1.0: must lie between 0 and 1"),
        ({"train.decay_fraction": 1.25}, "train.decay_fraction = 1.25: must lie between 0 and 1"),
        ({"train.warmup_steps": 1501}, "train.warmup_steps = 1501 is above train.steps = 1500"),
        ({"data.corpus": ()}, "data.corpus is empty: name at least one corpus or file"),
    ],
)
def test_validate_says_what_where_and_what_would_be_right(values, message):
    run = override(Run(), values)
    with pytest.raises(InputError) as e:
        validate(run)
    assert str(e.value) == message


def test_validate_returns_a_good_run():
    for run in (
        Run(),
        override(Run(), {"model.positions": "learned", "model.heads": 64}),
        override(Run(), {"model.head_rank": 64, "train.warmup_steps": 0, "train.decay_fraction": 0.0}),
        override(Run(), {"model.head": "nonlinear", "model.head_rank": 2000}),
        override(Run(), {"model.head": "mixture", "model.tied_head": True, "model.head_softmaxes": 1}),
    ):
        assert validate(run) is run


def test_rank_is_at_most_width_and_vocabulary():
    assert ModelConfig(width=64).rank == 64
    assert ModelConfig(width=64, head_rank=8).rank == 8
    assert ModelConfig(width=64, vocab_size=10).rank == 10
    assert ModelConfig(width=64, head_rank=8, head="mixture").rank == 8
    assert ModelConfig(width=64, head_rank=100, vocab_size=90, head="nonlinear").rank == 100


def test_tokens_per_step():
    assert override(Run(), {"train.batch_size": 3, "model.context": 5}).tokens_per_step == 15


@pytest.mark.parametrize(
    "steps, every, expected",
    [
        (1, 250, (0, 1)),
        (10, 250, (0, 1, 2, 4, 8, 10)),
        (16, 250, (0, 1, 2, 4, 8, 16)),
        (1000, 250, (0, 1, 2, 4, 8, 16, 32, 64, 128, 250, 500, 750, 1000)),
        (20, 8, (0, 1, 2, 4, 8, 16, 20)),
        (3, 1, (0, 1, 2, 3)),
    ],
)
def test_checkpoint_schedule(steps, every, expected):
    assert checkpoint_steps(TrainConfig(steps=steps, checkpoint_every=every)) == expected


def test_checkpoint_schedule_of_pythia():
    """Biderman et al. 2023, section 2: 0, 1, 2, 4, ..., 512, then every 1000 to 143000: 154 checkpoints."""
    steps = checkpoint_steps(TrainConfig(steps=143_000, checkpoint_every=1000))
    assert len(steps) == 154 and steps[:12] == (0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1000)


def test_a_branch_starts_from_a_checkpoint():
    trunk = Run(train=TrainConfig(steps=100, checkpoint_every=50, schedule="constant"))
    cooldown = trunk.branch(50, {"train.schedule": "linear", "train.steps": 60}, kept=("optimizer", "schedule", "data"))
    assert cooldown.start.run == trunk.id and validate(cooldown).checkpoint_steps == (50, 60)
    tuned = trunk.branch(50, {"train.steps": 4})
    assert tuned.checkpoint_steps == (0, 1, 2, 4) and len({trunk.id, cooldown.id, tuned.id}) == 3
    for values, problem in (
        ({"start.step": None}, "a start needs both run and step"),
        ({"start.run": None}, "a start needs both run and step"),
        ({"start.kept": ("schedule",), "train.steps": 50}, "train.steps = 50: must be above start.step = 50"),
        ({"start.kept": ("rate",)}, "must be one of 'optimizer', 'schedule', 'data'"),
    ):
        with pytest.raises(InputError, match=problem):
            validate(trunk.branch(50, values))


def test_an_imported_series_grows_under_its_name():
    run = override(Run(), {"imported.name": "pythia-14m", "imported.steps": (0, 1000), "data.corpus": ()})
    more = override(run, {"imported.steps": (0, 1000, 2000), "imported.tokens_per_step": 2**21})
    assert run.id == more.id != override(run, {"imported.name": "pythia-31m"}).id
    assert validate(more).last_step == 2000 and more.checkpoint_steps == (0, 1000, 2000)
    assert (run.tokens_per_step, more.tokens_per_step) == (1, 2**21)
    assert more.branch(1000, {"data.corpus": ("a.txt",)}).imported.name is None
