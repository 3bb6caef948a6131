"""The state of a pack before its first step: drawn from seeds, or taken from checkpoints of other runs."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from etils import epath

from jaxsat.checkpoints import Store, cut_head, find_run
from jaxsat.config import InputError, Layout, Run
from jaxsat.parallel import make_mesh, per_run, put, state_shardings
from jaxsat.sweep import Pack
from jaxsat.train.step import Hyper, Program, State, abstract_state, hypers, initializer
from jaxsat.train.task import Task


def first_state(
    pack: Pack, program: Program, mesh: jax.sharding.Mesh, hyper: Hyper, out: epath.Path | None, layout: Layout
) -> State:
    """Each parent lies under `out`. Raises InputError where it does not, at that step, or has other shapes."""
    state, start = initializer(program, mesh)(hyper), pack.runs[0].start
    if start.run is None:
        return state
    if out is None:
        raise InputError(f"run {pack.runs[0].id} starts from run {start.run}: train it in the directory that holds it")
    read = functools.cache(
        functools.partial(_read, out=out, layout=layout, task=program.task)
    )  # several may have one parent
    took = []
    for run in pack.runs:
        parent, theirs = find_run(out, run.start.run)
        found = read(theirs, start.step, "optimizer" in start.kept)
        took.append({name: _cut(parent, _run_of(tree, theirs.runs.index(parent))) for name, tree in found.items()})
    kept = ["params", "optimizer"] if "optimizer" in start.kept else ["params"]
    for name in kept:
        own = [_fitted(run, theirs[name], jax.tree.map(lambda x: x.shape[1:], state[name]))
               for run, theirs in zip(pack.runs, took)]  # fmt: skip
        stacked_K = jax.tree.map(lambda *xs: jnp.stack(xs), *own)
        state[name] = jax.device_put(stacked_K, state_shardings(mesh, stacked_K))
    return state | {"step": state["step"] + jnp.int32(pack.runs[0].first_step)}


def _read(pack: Pack, step: int, optimizer: bool, out: epath.Path, layout: Layout, task: Task) -> dict[str, Any]:
    """Parameters of every run of a pack, and the optimizer's state of each. It is another pack than that which starts
    from it, of more runs or fewer, so of the layout only the model's axis is taken."""
    mesh = make_mesh(pack, Layout(model=layout.model))
    hyper = jax.tree.map(lambda x: put(x, per_run(mesh)), hypers(pack.runs))
    abstract = abstract_state(Program.of(pack, task=task), mesh, hyper)
    with Store(out / "checkpoints" / pack.id, [run.id for run in pack.runs]) as store:
        if optimizer:
            state = store.state(step, abstract)
            return {"params": state["params"], "optimizer": state["optimizer"]}
        return {"params": store.params(step, abstract["params"])}


def _run_of(tree_K: Any, k: int) -> Any:
    return jax.tree.map(lambda x: x[k], tree_K)


def _cut(run: Run, tree: Any) -> Any:
    """`cut_head` of the parameters, and of each tree of their shapes in an optimizer's state."""
    is_params = lambda node: isinstance(node, dict) and "head" in node
    return jax.tree.map(lambda node: cut_head(run.model, node) if is_params(node) else node, tree, is_leaf=is_params)


def _fitted(run: Run, tree: Any, shapes: Any) -> Any:
    """`tree` with a factored head made as wide as it is stored in the pack. Raises InputError for other shapes."""

    def fit(path: tuple[Any, ...], x: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        name = jax.tree_util.keystr(path, simple=True, separator=".")
        stored = run.model.head_rank and name.endswith(("head.a", "head.b"))
        axis = x.ndim - 1 if name.endswith("a") else 0
        expected = tuple(run.model.rank if stored and i == axis else n for i, n in enumerate(shape))
        if x.shape != expected:
            raise InputError(f"run {run.id} starts from run {run.start.run}, whose {name} is {x.shape}, not {expected}")
        return jnp.pad(x, [(0, n - m) for m, n in zip(x.shape, shape)]) if stored else x

    try:
        return jax.tree.map_with_path(fit, tree, shapes, is_leaf=lambda x: isinstance(x, jax.Array))
    except ValueError as e:
        problem = str(e).splitlines()[0]
        raise InputError(f"run {run.id} starts from run {run.start.run}, of another kind of model: {problem}") from None
