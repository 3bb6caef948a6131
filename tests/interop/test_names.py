import jax
import pytest

from jaxsat import interop
from jaxsat.interop.names import entries, shapes
from tests.interop.conftest import FAMILIES, families


@families
def test_every_parameter_has_one_tensor(family):
    config = FAMILIES[family]
    found = [path for entry in entries(family, config) for path in entry.paths]
    flat, _ = jax.tree_util.tree_flatten_with_path(shapes(config))
    assert sorted(found) == sorted(tuple(key.key for key in path) for path, _ in flat)


@pytest.mark.parametrize(
    "name, step",
    [("step1000", 1000), ("step-1000", 1000), ("step_1000", 1000), ("runs/step=0/", 0), ("checkpoint-1000", 1000),
     ("global_step1000", 1000), ("iter_0001000", 1000), ("1000", 1000), ("step1000-tokens4B", 1000),
     ("stage1-step1000-tokens5B", 1000), ("run2-step30", 30), ("checkpoint-5-step-7", 7), ("hf:a/model-step5@step7", 7),
     ("hf:EleutherAI/pythia-14m@step143000", 143000), ("hf:a/b@512", 512),
     ("main", None), ("step", None), ("step10k", None), ("step1.5", None), ("footstep1000", None), ("model-1000", None),
     ("step1-step2", None), ("v2", None), ("hf:a/step5@main", None), ("step1000/final", None), ("²", None)],
)  # fmt: skip
def test_the_step_of_a_name(name, step):
    assert interop.step_of(name) == step
