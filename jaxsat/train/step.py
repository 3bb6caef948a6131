"""One training step, as a pure function of many runs at once.

A `Program` is what is compiled: the shapes and the kind of optimizer. What may differ between the runs of a pack
(`Hyper`) enters as arrays of length K, so one program serves every seed, learning rate, weight decay, head rank and
length. K is 1 for a run trained alone.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxsat import model
from jaxsat.config import ModelConfig, Run, TrainConfig
from jaxsat.parallel import abstract_like, over_runs, state_shardings
from jaxsat.sweep import Pack
from jaxsat.train.task import LANGUAGE_MODEL, Task

State = dict[str, Any]  # params, optimizer: leading axis K; keys_K; step: int32, the same for all


class Hyper(NamedTuple):
    """What differs between the runs of a pack: arrays of length K."""

    seed: jax.Array
    learning_rate: jax.Array
    weight_decay: jax.Array
    warmup_steps: jax.Array
    steps: jax.Array
    init_scale: jax.Array
    rank: jax.Array
    data_seed: jax.Array
    batch_offset: jax.Array


@dataclasses.dataclass(frozen=True)
class Program:
    """What is compiled once for all runs of a pack."""

    model: ModelConfig
    train: TrainConfig  # with the fields of Hyper at fixed values
    remat: str = "none"  # see model.hidden
    task: Task = LANGUAGE_MODEL

    @staticmethod
    def of(pack: Pack, remat: str = "none", task: Task = LANGUAGE_MODEL) -> "Program":
        free = dict(learning_rate=0.0, weight_decay=0.0, init_scale=1.0, warmup_steps=0, steps=1, checkpoint_every=1)
        return Program(pack.model, dataclasses.replace(pack.runs[0].train, **free), remat, task)


def hypers(runs: Sequence[Run]) -> Hyper:
    floats = lambda key: jnp.array([getattr(r.train, key) for r in runs], jnp.float32)
    ints = lambda key: jnp.array([getattr(r.train, key) for r in runs], jnp.int32)
    return Hyper(
        seed=jnp.array([r.seed for r in runs], jnp.uint32),
        learning_rate=floats("learning_rate"),
        weight_decay=floats("weight_decay"),
        warmup_steps=ints("warmup"),
        steps=ints("steps"),
        init_scale=floats("init_scale"),
        rank=jnp.array([r.model.rank for r in runs], jnp.int32),
        data_seed=jnp.array([r.order_seed for r in runs], jnp.uint32),
        batch_offset=jnp.array([r.batch_offset for r in runs], jnp.int32),
    )


def learning_rate(train: TrainConfig, hyper: Hyper, step: jax.Array) -> jax.Array:
    """The rate of the update that leads from `step` to `step` + 1; the last update's is `final_lr` of the peak."""
    step, total, warmup = (x.astype(jnp.float32) for x in (step, hyper.steps, hyper.warmup_steps))
    warm = jnp.minimum(1.0, (step + 1) / jnp.maximum(warmup, 1.0))
    match train.schedule:
        case "constant":
            return hyper.learning_rate * warm
        case "cosine":
            done = jnp.clip((step + 1 - warmup) / jnp.maximum(total - warmup, 1.0), 0.0, 1.0)
            decay = 0.5 * (1 + jnp.cos(jnp.pi * done))
        case "linear":
            decay = jnp.clip((total - step - 1) / jnp.maximum(train.decay_fraction * total, 1.0), 0.0, 1.0)
    return hyper.learning_rate * warm * (train.final_lr + (1 - train.final_lr) * decay)


def _optimizer(train: TrainConfig, weight_decay: jax.Array, rate: jax.Array) -> optax.GradientTransformation:
    scaled = optax.scale_by_adam(train.beta1, train.beta2, train.eps)
    if train.optimizer == "muon":
        scaled = optax.partition({"adam": scaled, "muon": _muon()}, _by_muon)
    return optax.chain(
        optax.clip_by_global_norm(train.clip_norm) if train.clip_norm else optax.identity(),
        scaled,
        optax.add_decayed_weights(weight_decay, mask=_matrices),
        optax.scale(-rate),
    )


def _muon() -> optax.GradientTransformation:
    """The momentum of each matrix orthogonalised (Jordan et al. 2024), its entries as large as AdamW's, so that both
    take one learning rate: 0.2 sqrt(max(in, out)) (Liu et al. 2025, arXiv:2502.16982)."""
    numbers = lambda updates: jax.tree.map(lambda _: optax.contrib.MuonDimensionNumbers(-2, -1), updates)
    scale = lambda w_LxIxO: 0.2 * max(w_LxIxO.shape[-2:]) ** 0.5 * w_LxIxO
    return optax.chain(
        optax.contrib.scale_by_muon(weight_dimension_numbers=numbers),
        optax.stateless(lambda updates, _: jax.tree.map(scale, updates)),
    )


def _by_muon(params: model.Params) -> Any:
    """Which of the two a parameter is left to: muon takes the blocks' matrices, where one layer feeds the next."""
    return jax.tree_util.tree_map_with_path(
        lambda path, _: "muon" if path[0].key == "blocks" and path[-1].key == "kernel" else "adam", params
    )


def _matrices(params: model.Params) -> Any:
    """True for what weight decay acts on: everything but norms and biases."""
    return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key not in ("scale", "bias"), params)


@functools.cache
def initializer(program: Program, mesh: jax.sharding.Mesh) -> Callable[[Hyper], State]:
    """Jitted hyper -> State, created where it will live, never whole on one device."""

    def one(hyper: Hyper) -> tuple[jax.Array, model.Params, Any]:
        key = jax.random.key(hyper.seed)
        drawn = program.task.init(program.model, jax.random.fold_in(key, 0), hyper.rank)
        params = jax.tree.map(lambda w, matrix: w * hyper.init_scale if matrix else w, drawn, _matrices(drawn))
        return key, params, _optimizer(program.train, hyper.weight_decay, hyper.learning_rate).init(params)

    # Run once, in milliseconds: left unoptimised it compiles in 1.2 s instead of 3.7 (depth 2, width 32, 2 cores).
    options = {"xla_backend_optimization_level": 0} if mesh.devices.flat[0].platform == "cpu" else None

    def init(hyper: Hyper) -> State:
        keys_K, params, optimizer = jax.vmap(one)(hyper)
        state = {"params": params, "optimizer": optimizer, "keys_K": keys_K, "step": jnp.int32(0)}
        return jax.lax.with_sharding_constraint(state, state_shardings(mesh, state))

    return jax.jit(init, compiler_options=options)


def abstract_state(program: Program, mesh: jax.sharding.Mesh, hyper: Hyper) -> State:
    """Shapes and shardings of the state, for restoring it; nothing is computed."""
    shapes = jax.eval_shape(initializer(program, mesh), hyper)
    return abstract_like(shapes, state_shardings(mesh, shapes))


@functools.partial(jax.jit, static_argnames=("program", "mesh"), donate_argnames="state")
def train_step(
    program: Program, mesh: jax.sharding.Mesh, state: State, hyper: Hyper, rows_KxBxT1: jax.Array
) -> tuple[State, dict[str, jax.Array]]:
    """One step of every run. Metrics are arrays of length K: loss (nats/token), grad_norm, learning_rate."""

    def one(params, optimizer, hyper, rows_BxT1, step):
        key = jax.random.fold_in(jax.random.key(hyper.data_seed), step + hyper.batch_offset)
        loss_of = lambda params: program.task.loss(program.model, params, rows_BxT1, key, program.remat)
        loss, gradient = jax.value_and_grad(loss_of)(params)
        rate = learning_rate(program.train, hyper, step)
        with jax.numpy_dtype_promotion("standard"):  # optax raises a Python float to the power of an int32
            updates, optimizer = _optimizer(program.train, hyper.weight_decay, rate).update(gradient, optimizer, params)
        metrics = {"loss": loss, "grad_norm": optax.tree.norm(gradient), "learning_rate": rate}
        return optax.apply_updates(params, updates), optimizer, metrics

    step = state["step"]
    stepped = over_runs(mesh, one, shared=1)(state["params"], state["optimizer"], hyper, rows_KxBxT1, step)
    params, optimizer, metrics = stepped
    state = state | {"params": params, "optimizer": optimizer, "step": step + 1}
    return jax.lax.with_sharding_constraint(state, state_shardings(mesh, state)), metrics
