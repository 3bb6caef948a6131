import dataclasses

import hypothesis.strategies as st
import pytest
from hypothesis import given

from jaxsat.config import InputError, Run, override
from jaxsat.sweep import Pack, Sweep, chain, describe_packs, differing_keys, make_packs, product, zipped


def test_product_gives_every_combination_last_key_fastest():
    assert product({"a": [1, 2], "b": [3, 4]}) == [
        {"a": 1, "b": 3},
        {"a": 1, "b": 4},
        {"a": 2, "b": 3},
        {"a": 2, "b": 4},
    ]
    assert product() == [{}] and product({"a": []}) == []


def test_zipped_goes_in_step():
    assert zipped({"a": [1, 2], "b": [3, 4]}) == [{"a": 1, "b": 3}, {"a": 2, "b": 4}]
    assert zipped({}) == []
    with pytest.raises(InputError, match=r"zipped keys have different lengths: \{'a': 2, 'b': 1\}"):
        zipped({"a": [1, 2], "b": [3]})


def test_they_nest():
    pairs = zipped({"model.width": [8, 16], "train.learning_rate": [0.1, 0.2]})
    assert product(pairs, {"seed": [0, 1]}) == [
        {"model.width": 8, "train.learning_rate": 0.1, "seed": 0},
        {"model.width": 8, "train.learning_rate": 0.1, "seed": 1},
        {"model.width": 16, "train.learning_rate": 0.2, "seed": 0},
        {"model.width": 16, "train.learning_rate": 0.2, "seed": 1},
    ]
    assert product({"seed": [0]}, chain([{"a": 1}], [{"a": 2}])) == [{"seed": 0, "a": 1}, {"seed": 0, "a": 2}]
    assert chain(pairs, [{"seed": 5}]) == [*pairs, {"seed": 5}] and chain() == []


def test_later_parts_win():
    assert product({"seed": [0]}, {"seed": [1, 2]}) == [{"seed": 1}, {"seed": 2}]


def test_runs_are_the_base_with_each_point_once_and_in_order():
    sweep = Sweep("s", override(Run(), {"model.depth": 3}), product({"model.width": [16, 8], "seed": [0, 0, 1]}))
    assert [(r.model.depth, r.model.width, r.seed) for r in sweep.runs] == [
        (3, 16, 0),
        (3, 16, 1),
        (3, 8, 0),
        (3, 8, 1),
    ]
    assert Sweep("s", Run()).runs == (Run(),)


def test_points_that_spell_the_same_run_differently_count_once():
    sweep = Sweep("s", Run(), product({"train.learning_rate": [1, 1.0], "data.corpus": ["a", ["a"]]}))
    assert len(sweep.runs) == 1


@pytest.mark.parametrize(
    "point, message",
    [
        (
            {"model.widht": 8},
            "sweep 's', point 1 {'model.widht': 8}: unknown configuration key 'model.widht'; "
            "did you mean 'model.width'?",
        ),
        (
            {"model.head_rank": 99},
            "sweep 's', point 1 {'model.head_rank': 99}: model.head_rank = 99 is above model.width = 64: "
            "a head of width d has rank d at most",
        ),
    ],
)
def test_a_wrong_point_is_named(point, message):
    with pytest.raises(InputError) as e:
        _ = Sweep("s", Run(), [{}, point]).runs
    assert str(e.value) == message


def test_a_sweep_needs_runs():
    with pytest.raises(InputError, match="sweep 's' has no runs"):
        _ = Sweep("s", Run(), []).runs


def test_differing_keys():
    runs = Sweep("s", Run(), product({"model.width": [8, 16], "seed": [0, 1]})).runs
    assert differing_keys(runs) == ["model.width", "seed"]
    assert differing_keys(runs[:1]) == []


def test_packs_hold_what_one_program_can_train():
    points = product({"model.width": [16, 8], "model.head_rank": [2, 8], "seed": [0, 1]})
    runs = Sweep("s", Run(), [*points, {"model.width": 16}, {"model.width": 16, "train.steps": 99}]).runs
    packs = make_packs(runs)
    assert [len(p.runs) for p in packs] == [4, 4, 1, 1]  # a full head and another length are other programs
    assert sorted(r.id for p in packs for r in p.runs) == sorted(r.id for r in runs)
    assert [(p.model.width, p.model.head_rank) for p in packs] == [(16, 8), (8, 8), (16, None), (16, None)]
    assert describe_packs(packs) == "10 runs in 4 packs (4, 4, 1, 1) of 3 shapes"


def test_packs_are_of_nearly_equal_size_and_named_by_their_runs():
    runs = Sweep("s", Run(), product({"seed": range(10), "train.learning_rate": [0.1]})).runs
    assert [len(p.runs) for p in make_packs(runs, lambda run, n_runs: (1, 4))] == [3, 4, 3]
    assert Pack(runs[:1]).id == runs[0].id
    assert len({Pack(runs[i:j]).id for i in range(9) for j in range(i + 2, 11)}) == 45


def test_packs_fill_the_devices_and_what_is_left_is_a_pack_of_its_own():
    runs = Sweep("s", Run(), product({"seed": range(13), "train.learning_rate": [0.1]})).runs
    packs = make_packs(runs, lambda run, n_runs: (4, 8))
    assert [len(p.runs) for p in packs] == [8, 4, 1]
    assert [run for p in packs for run in p.runs] == list(runs)


@given(n_runs=st.integers(1, 60), multiple=st.sampled_from([1, 2, 4, 8]), times=st.integers(1, 4))
def test_no_pack_is_larger_than_what_fits(n_runs, multiple, times):
    runs = [dataclasses.replace(Run(), seed=seed) for seed in range(n_runs)]
    packs = make_packs(runs, lambda run, n: (multiple, multiple * times))
    assert [run for p in packs for run in p.runs] == runs
    assert all(len(p.runs) % multiple == 0 for p in packs[:-1]) and max(len(p.runs) for p in packs) <= multiple * times


@pytest.mark.parametrize(
    "wrong, problem",
    [
        (lambda: product({"seed": 3}), r"seed = 3: an axis is a list of values, such as \[3\]"),
        (lambda: product({"model.norm": "rms"}), "model.norm = 'rms': an axis is a list"),
        (lambda: zipped({"seed": [1], "data_seed": 2}), "data_seed = 2: an axis"),
        (lambda: Sweep("main", Run(), {"seed": [0, 1]}).runs, r"points must be a list .* as product\(\{...\}\) gives"),
        (lambda: Sweep(Run(), [{}]), "needs a name, a base Run and points"),
    ],
)
def test_a_slip_in_a_sweep_is_named(wrong, problem):
    with pytest.raises(InputError, match=problem):
        wrong()
