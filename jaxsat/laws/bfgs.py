"""Many small minimisations in one program: BFGS in lanes that refill.

A lane holds one problem and makes one function evaluation a turn, wherever its line search is; a lane that ends takes
the next problem. So slow problems do not hold up the others, as they do under a vmapped `while_loop`: on the 240 rows
of the Chinchilla replication 4500 starts take about as long as 30 under `vmap` of `optax.lbfgs` with its zoom search.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array


class Minima(NamedTuple):
    x_KxP: Array
    f_K: Array
    converged_K: Array  # bool
    h_KxPxP: Array  # estimates of the inverse Hessian


class _Lane(NamedTuple):
    """A minimisation under way. Its line search looks for a step along p in (low, high)."""

    problem: Array  # its number; n_problems and above: none left
    x_P: Array
    f: Array
    g_P: Array
    h_PxP: Array  # estimate of the inverse Hessian
    p_P: Array
    step: Array
    low: Array
    high: Array
    turns: Array
    converged: Array
    done: Array


def minimise(
    value: Callable[[Array, Array], Array],
    x_KxP: Array,
    free_KxP: Array,
    which_K: Array,
    n_problems: Array,
    *,
    h_PxP: Array,
    precision: Array | float = 1e-10,
    tolerance: Array | float,
    lanes: int = 256,
    max_turns: int = 2000,
) -> Minima:
    """Minima of `value(x_P, which)` from the first `n_problems` of K starts, over the coordinates where `free_KxP`.

    BFGS that keeps its whole estimate of the inverse Hessian (P is a handful: smaller than the history of L-BFGS), with
    the weak Wolfe line search by bisection of Lewis & Overton (2013), which suits Huber terms, near-absolute values.
    The estimate begins as `h_PxP`, less where the first step would be longer than 1. Converged: the next step promises
    a decrease g'Hg/2 below precision f + tolerance, or rounding ends the line search with a promise below 1e-6 f +
    tolerance. Otherwise a problem stops, unconverged, after `max_turns` evaluations. `n_problems` and `precision` are
    numbers in the program, not its shape, so that one program serves several sets of problems.
    """
    size, n_coords = x_KxP.shape
    value_and_grad = jax.value_and_grad(value)

    def start(problem: Array) -> _Lane:
        zero, zeros, none_left = jnp.zeros(()), jnp.zeros(n_coords), problem >= n_problems
        x = x_KxP[jnp.minimum(problem, size - 1)]
        return _Lane(problem, x, zero, zeros, h_PxP, zeros, zero, zero, zero, jnp.zeros((), int), ~none_left, none_left)

    def turn(lane: _Lane) -> _Lane:
        k = jnp.minimum(lane.problem, size - 1)
        x = lane.x_P + lane.step * lane.p_P
        f, g = value_and_grad(x, which_K[k])
        f, g = jnp.where(jnp.isfinite(f), f, jnp.inf), jnp.where(free_KxP[k], g, 0.0)
        first = lane.turns == 0  # the value at the start itself: a step of 0
        slope = lane.g_P @ lane.p_P
        enough = first | (f <= lane.f + 1e-4 * lane.step * slope)
        accept = enough & (first | (g @ lane.p_P >= 0.9 * slope))

        s, y = x - lane.x_P, g - lane.g_P
        curved = s @ y > 0
        u, hy = s / jnp.where(curved, s @ y, 1.0), lane.h_PxP @ y
        rank_two = jnp.outer(s + (y @ hy) * u, u) - jnp.outer(hy, u) - jnp.outer(u, hy)
        h = lane.h_PxP + jnp.where(curved, rank_two, 0.0)
        h = jnp.where(first, h_PxP * jnp.minimum(1.0, 1 / jnp.linalg.norm(h_PxP @ g)), h)
        moved = (x, f, g, h, -h @ g)
        x, f_now, g, h, p = (jnp.where(accept, a, b) for a, b in zip(moved, lane[1:6]))

        low, high = jnp.where(enough, lane.step, lane.low), jnp.where(enough, lane.high, lane.step)
        narrower = jnp.where(jnp.isinf(high), 2 * lane.step, (low + high) / 2)
        step, low, high = (jnp.where(accept, a, b) for a, b in zip((1.0, 0.0, jnp.inf), (narrower, low, high)))
        rounding = ~accept & (step * jnp.abs(p) <= 1e-15 * (1 + jnp.abs(x))).all()
        promise = -(g @ p) / 2
        converged = (promise <= tolerance + f_now * precision) | rounding & (promise <= tolerance + f_now * 1e-6)
        ended = converged | rounding | (lane.turns >= max_turns) | first & jnp.isinf(f)
        return _Lane(lane.problem, x, f_now, g, h, p, step, low, high, lane.turns + 1, converged, lane.done | ended)

    def body(state: tuple[_Lane, Minima, Array]) -> tuple[_Lane, Minima, Array]:
        lanes_W, minima, upcoming = state
        lanes_W = jax.vmap(turn)(lanes_W)
        ended_W = lanes_W.done & (lanes_W.problem < n_problems)
        to_W = jnp.where(ended_W, lanes_W.problem, size)
        found = Minima(lanes_W.x_P, lanes_W.f, lanes_W.converged, lanes_W.h_PxP)
        minima = jax.tree.map(lambda all_, new: all_.at[to_W].set(new, mode="drop"), minima, found)
        fresh_W = jax.vmap(start)(upcoming + jnp.cumsum(ended_W) - 1)
        refill = jax.vmap(lambda ended, new, old: jax.tree.map(lambda a, b: jnp.where(ended, a, b), new, old))
        return refill(ended_W, fresh_W, lanes_W), minima, upcoming + ended_W.sum()

    nothing = jnp.zeros((size, n_coords, n_coords))
    minima = Minima(x_KxP, jnp.full(size, jnp.inf), jnp.zeros(size, bool), nothing)
    state = jax.vmap(start)(jnp.arange(lanes)), minima, jnp.array(lanes)
    return jax.lax.while_loop(lambda s: ~s[0].done.all(), body, state)[1]
