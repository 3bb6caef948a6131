"""Runs that start from a checkpoint of another."""

import shutil

import jax
import numpy as np
import pytest

from jaxsat.checkpoints import Store, find_run, load_run
from jaxsat.config import InputError, Layout, override
from jaxsat.parallel import pack_layout
from jaxsat.sweep import Pack, make_packs
from jaxsat.train import read_metrics, train_pack

ALL = ("optimizer", "schedule", "data")


@pytest.fixture(scope="module")
def trunk(tiny_run):
    return override(tiny_run, {"train.schedule": "constant", "seed": 3})


@pytest.fixture(scope="module")
def out(trunk, tiny_corpus, tmp_path_factory):
    """A trunk and a run of smaller rank in one pack."""
    out = tmp_path_factory.mktemp("trunk")
    train_pack(Pack((override(trunk, {"model.head_rank": 2}), trunk)), tiny_corpus, out, starts=(20, 40))
    return out


def losses(out, run):
    return {line["step"]: line["loss"] for line in read_metrics(out / "runs" / run.id) if "loss" in line}


def equal(ours, theirs):
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(ours), jax.device_get(theirs))


def test_all_kept_is_the_run_that_was_never_left(out, trunk, tiny_corpus):
    branch = trunk.branch(20, {}, ALL)
    train_pack(Pack((branch,)), tiny_corpus, out)
    whole, again = losses(out, trunk), losses(out, branch)
    assert again == {step: loss for step, loss in whole.items() if step > 20} and len(again) == 40
    for step in (20, 40, 60):
        equal(load_run(out, branch.id, step)[1], load_run(out, trunk.id, step)[1])
    with Store(out / "checkpoints" / branch.id) as store:
        assert store.steps == [20, 40, 60]


def test_several_start_from_a_run_that_is_alone(trunk, tiny_corpus, tmp_path):
    """Their pack lies over more devices than its."""
    alone = override(trunk, {"train.steps": 20})
    runs = [override(alone.branch(20, {"train.steps": 30}, ()), {"seed": seed}) for seed in (0, 1)]
    (pack,) = make_packs(runs)
    assert pack_layout(pack, Layout()).pack == 2
    for each in (Pack((alone,)), pack):
        train_pack(each, tiny_corpus, tmp_path)
    for run in runs:
        equal(load_run(tmp_path, run.id, 0)[1], load_run(tmp_path, alone.id, 20)[1])


@pytest.mark.slow
def test_cooldowns_of_one_trunk(out, trunk, tiny_corpus):
    """In one pack; both begin where the trunk was, and their rate falls to 0."""
    values = {"train.schedule": "linear", "train.decay_fraction": 1 / 3, "train.final_lr": 0.0, "train.steps": 60}
    runs = [override(trunk.branch(40, values, ALL), {"train.weight_decay": decay}) for decay in (0.1, 0.2)]
    (pack,) = make_packs(runs)
    train_pack(pack, tiny_corpus, out)
    first = losses(out, trunk)[41]
    assert [losses(out, run)[41] for run in runs] == pytest.approx([first, first], rel=1e-6)
    for run in runs:
        rate = {line["step"]: line["learning_rate"] for line in read_metrics(out / "runs" / run.id) if "loss" in line}
        assert rate[41] == pytest.approx(run.train.learning_rate * 0.95) and rate[60] == 0


@pytest.mark.parametrize("kept", [(), ("optimizer",), ("data",), ("schedule",)])
def test_what_is_not_kept_begins_afresh(out, trunk, tiny_corpus, kept):
    branch = trunk.branch(20, {"train.steps": 30, "seed": 9}, kept)
    train_pack(Pack((branch,)), tiny_corpus, out)
    first = 20 if "schedule" in kept else 0
    found = losses(out, branch)
    assert sorted(found) == list(range(first + 1, 31))
    equal(load_run(out, branch.id, first)[1], load_run(out, trunk.id, 20)[1])
    rates = {line["step"]: line["learning_rate"] for line in read_metrics(out / "runs" / branch.id) if "loss" in line}
    assert rates[first + 1] == pytest.approx(trunk.train.learning_rate * (1 if first else 0.2))  # warm-up of 5 steps
    same_text = override(branch, {"start.kept": ("data",)}), override(branch, {"start.kept": ()})
    assert same_text[0].id != same_text[1].id


def test_stopped_and_continued(out, trunk, tiny_corpus, tmp_path):
    branch = trunk.branch(20, {"train.steps": 44}, ALL)
    train_pack(Pack((branch,)), tiny_corpus, out)
    shutil.rmtree(out / "checkpoints" / branch.id / "44")
    before = losses(out, branch)
    train_pack(Pack((branch,)), tiny_corpus, out)
    assert losses(out, branch) == before


@pytest.mark.parametrize("keeps", [False, True])
def test_the_optimizer_of_an_older_step_was_kept_or_is_asked_for(trunk, tiny_corpus, tmp_path, keeps):
    run = override(trunk, {"keep_optimizer": keeps, "train.steps": 50})
    train_pack(Pack((run,)), tiny_corpus, tmp_path)
    branch = Pack((run.branch(20, {"train.steps": 21}, ALL),))
    if keeps:
        train_pack(branch, tiny_corpus, tmp_path)
    else:
        with pytest.raises(InputError, match="/20 has parameters alone: the optimizer is kept of the newest two"):
            train_pack(branch, tiny_corpus, tmp_path)


def test_a_rank_starts_from_its_own(out, trunk, tiny_corpus):
    small = override(trunk, {"model.head_rank": 2})
    branch = small.branch(60, {"train.steps": 2})
    train_pack(Pack((branch, trunk.branch(60, {"train.steps": 2}))), tiny_corpus, out)
    equal(load_run(out, branch.id, 0)[1], load_run(out, small.id, 60)[1])


@pytest.mark.slow
@pytest.mark.parametrize(
    "head, ranks", [("mixture", (4, 2)), pytest.param("nonlinear", (20, 3), marks=pytest.mark.slow)]
)
def test_a_rank_of_any_head_starts_from_its_own(trunk, tiny_corpus, tmp_path, head, ranks):
    values = {"model.head": head, "train.steps": 2, "train.warmup_steps": 0}
    runs = [override(trunk, values | {"model.head_rank": rank}) for rank in ranks]
    branches = [run.branch(2, {"train.steps": 1}, kept=("optimizer",)) for run in runs]
    for pack in make_packs(runs + branches):
        assert len(pack.runs) == 2
        train_pack(pack, tiny_corpus, tmp_path)
    for run, branch, rank in zip(runs, branches, ranks):
        params = load_run(tmp_path, run.id, 2)[1]
        equal(load_run(tmp_path, branch.id, 0)[1], params)
        assert params["head"]["a"].shape == (8, rank) and ("latent" in params["head"]) == (head == "mixture")


@pytest.mark.parametrize(
    "values, problem",
    [
        ({"model.head_rank": 3}, r"whose head.a is \(8, 4\), not \(8, 3\)"),
        ({"model.width": 16}, r"whose .* is .*8.*, not .*16"),
        ({"model.tied_head": True, "model.head_rank": None}, "of another kind of model"),
        ({"start.step": 21}, "no checkpoint of step 21"),
        ({"start.run": "nobody"}, "holds no checkpoint of run nobody"),
    ],
)
def test_a_start_that_cannot_be(out, trunk, tiny_corpus, values, problem):
    run = override(trunk.branch(20, {"train.steps": 22}), values)
    with pytest.raises(InputError, match=problem):
        train_pack(Pack((run,)), tiny_corpus, out)
    with pytest.raises(InputError, match="holds no checkpoint of run"):
        find_run(out / "runs", run.id)


def test_parents_are_never_in_one_pack_with_children(trunk):
    child = trunk.branch(20, {"train.steps": 22})
    grandchild = child.branch(20, {"train.steps": 22})
    assert [len(pack.runs) for pack in make_packs([grandchild, child, trunk])] == [1, 1, 1]
