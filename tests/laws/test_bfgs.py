import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsat.laws.bfgs import minimise


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def rosenbrock(x_P, which):
    return (1 - x_P[0]) ** 2 + 100 * (x_P[1] - x_P[0] ** 2) ** 2 + which.astype(x_P.dtype)


def solve(value, x, free=None, which=None, **options):
    x = np.asarray(x, float)
    free = np.ones(x.shape, bool) if free is None else np.broadcast_to(free, x.shape)
    which = np.zeros(len(x), int) if which is None else which
    options = {"tolerance": 1e-20, "h_PxP": np.eye(x.shape[1])} | options
    run = jax.jit(lambda x, free, which: minimise(value, x, free, which, len(x), **options))
    return jax.tree.map(np.asarray, run(x, free, which))


@pytest.mark.parametrize("lanes", [3, 64])
def test_every_problem_is_solved_whatever_the_number_of_lanes(lanes):
    starts = np.random.default_rng(0).uniform(-2, 2, (20, 2))
    found = solve(rosenbrock, starts, which=np.arange(20), lanes=lanes)
    np.testing.assert_allclose(found.x_KxP, 1, atol=1e-4)  # 1e-10 of f, which is up to 19, by a valley this flat
    np.testing.assert_allclose(found.f_K, np.arange(20), atol=1e-8)
    assert found.converged_K.all()


def test_coordinates_that_are_not_free_stay():
    found = solve(rosenbrock, [[3.0, -1.0], [0.5, 2.0]], free=[True, False])
    np.testing.assert_array_equal(found.x_KxP[:, 1], [-1, 2])
    x_0 = found.x_KxP[:, 0]
    np.testing.assert_allclose(-2 * (1 - x_0) - 400 * x_0 * (found.x_KxP[:, 1] - x_0**2), 0, atol=1e-3)


def test_near_absolute_values_are_minimised_at_the_median():
    data = np.array([0.0, 1.0, 2.5, 7.0, 100.0])

    def value(x_P, which):
        r = jnp.abs(data - x_P[0])
        return jnp.where(r < 1e-6, r * r / 2e-6, r - 5e-7).sum()

    np.testing.assert_allclose(solve(value, [[-50.0], [0.9], [300.0]]).x_KxP, 2.5, atol=1e-5)


def test_running_out_of_turns_and_starting_where_there_is_no_value_are_not_convergence():
    assert not solve(rosenbrock, [[-1.2, 1.0]], max_turns=5).converged_K[0]
    nowhere = solve(lambda x_P, which: jnp.log(x_P[0]) ** 2, [[-1.0], [2.0]])
    np.testing.assert_array_equal(nowhere.converged_K, [False, True])
    assert nowhere.f_K[0] == np.inf


def test_the_estimate_found_at_one_minimum_saves_turns_at_the_next():
    """A stretched bowl: six evaluations are too few from the unit matrix, and enough from the curvature found."""
    bowl = lambda x_P, which: ((x_P - which.astype(float)) ** 2 * jnp.array([1.0, 1e4])).sum()
    found = solve(bowl, [[3.0, -2.0]])
    np.testing.assert_allclose(found.h_KxPxP[0], np.diag([0.5, 0.5e-4]), rtol=1e-3, atol=1e-6)
    known = found.h_KxPxP[0]
    again = [solve(bowl, [[3.0, -2.0]], which=np.array([1]), max_turns=6, h_PxP=h) for h in (np.eye(2), known)]
    assert [bool(a.converged_K[0]) for a in again] == [False, True]


def test_less_precision_ends_earlier_and_still_near():
    loose, tight = (solve(rosenbrock, [[-1.2, 1.0]], which=np.array([5]), precision=p) for p in (1e-2, 1e-10))
    assert 5 + 1e-8 > tight.f_K[0] and 5.01 < loose.f_K[0] < 5 + 24.2 and loose.converged_K[0]
