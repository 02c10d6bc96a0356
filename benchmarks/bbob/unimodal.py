"""The functions 1, 2 and 5 to 14: one minimum. All are 0 there."""

import jax
import jax.numpy as jnp

from benchmarks.bbob.instance import Instance
from benchmarks.bbob.transforms import (
    asymmetric,
    conditioning,
    fractions,
    oscillate,
    penalty,
    root,
)


def sphere(x: jax.Array, at: Instance) -> jax.Array:
    """1, separable."""
    return jnp.sum((x - at["x_opt"]) ** 2)


def ellipsoid(x: jax.Array, at: Instance) -> jax.Array:
    """2, separable."""
    return _ellipsoid(x - at["x_opt"])


def linear_slope(x: jax.Array, at: Instance) -> jax.Array:
    """5, separable; its minimum is in a corner of the box, and all beyond."""
    slopes = jnp.sign(at["x_opt"]) * conditioning(100.0, x.size)
    inside = x * at["x_opt"] < 25
    return jnp.sum(5 * jnp.abs(slopes) - slopes * jnp.where(inside, x, at["x_opt"]))


def attractive_sector(x: jax.Array, at: Instance) -> jax.Array:
    """6: one of 2^d sectors is 10,000 times as flat as the others."""
    z = _turned_twice(x - at["x_opt"], at, 10.0)
    steep = jnp.where(z * at["x_opt"] > 0, 100.0, 1.0)
    return root(oscillate(jnp.sum((steep * z) ** 2)), 0.9)


def step_ellipsoid(x: jax.Array, at: Instance) -> jax.Array:
    """7: plateaus; the gradient is 0 but for the penalty and close to the optimum."""
    z = conditioning(10.0, x.size) * (at["q"] @ (x - at["x_opt"]))
    steps = jnp.where(jnp.abs(z) > 0.5, jnp.floor(z + 0.5), jnp.floor(10 * z + 0.5) / 10)
    squares = (at["r"] @ steps) ** 2
    value = jnp.sum(100.0 ** fractions(x.size) * squares)
    return 0.1 * jnp.maximum(jnp.abs(z[0]) * 1e-4, value) + penalty(x)


def rosenbrock(x: jax.Array, at: Instance) -> jax.Array:
    """8."""
    return jnp.sum(valley(_scale(x.size) * (x - at["x_opt"]) + 1))


def rosenbrock_rotated(x: jax.Array, at: Instance) -> jax.Array:
    """9."""
    return jnp.sum(valley(_scale(x.size) * (at["q"] @ x) + 0.5))


def ellipsoid_rotated(x: jax.Array, at: Instance) -> jax.Array:
    """10."""
    return _ellipsoid(at["r"] @ (x - at["x_opt"]))


def discus(x: jax.Array, at: Instance) -> jax.Array:
    """11: one direction is a million times as steep as the others."""
    squares = oscillate(at["r"] @ (x - at["x_opt"])) ** 2
    return 1e6 * squares[0] + jnp.sum(squares[1:])


def bent_cigar(x: jax.Array, at: Instance) -> jax.Array:
    """12: one direction is a million times as flat as the others, on a curve."""
    squares = (at["r"] @ asymmetric(at["r"] @ (x - at["x_opt"]), 0.5)) ** 2
    return squares[0] + 1e6 * jnp.sum(squares[1:])


def sharp_ridge(x: jax.Array, at: Instance) -> jax.Array:
    """13: a ridge with an edge."""
    squares = _turned_twice(x - at["x_opt"], at, 10.0) ** 2
    return squares[0] + 100 * root(jnp.sum(squares[1:]))


def different_powers(x: jax.Array, at: Instance) -> jax.Array:
    """14: the closer to the minimum, the worse the condition."""
    z = jnp.abs(at["r"] @ (x - at["x_opt"]))
    return root(jnp.sum(z ** (2 + 4 * fractions(x.size))))


def valley(z: jax.Array) -> jax.Array:
    """The summands of Rosenbrock's function, `[d - 1]`."""
    return 100 * (z[:-1] ** 2 - z[1:]) ** 2 + (z[:-1] - 1) ** 2


def _ellipsoid(z: jax.Array) -> jax.Array:
    return jnp.sum(1e6 ** fractions(z.size) * oscillate(z) ** 2)


def _turned_twice(x: jax.Array, at: Instance, condition: float) -> jax.Array:
    return at["r"] @ (conditioning(condition, x.size) * (at["q"] @ x))


def _scale(dimension: int) -> float:
    return max(1.0, dimension**0.5 / 8)
