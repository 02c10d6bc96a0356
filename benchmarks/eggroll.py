"""EGGROLL's arithmetic for two networks, written by hand as its authors ask a user to.

A member of W + A B^T is evaluated as x W + (x A) B^T (Sarkar et al., `Evolution Strategies at the
Hyperscale <https://arxiv.org/abs/2511.16652>`_, 2025); the population shares the product with W.
"""

from collections.abc import Callable
from typing import Any

import jax
from jax import lax
import jax.numpy as jnp

from benchmarks import measure, models

SIGMA = 0.02
ELITE_FRACTION = 0.25
# Leaves with fewer axes than two have noise of their own, as they have in the library.
Loss = Callable[[Any, Any, tuple[jax.Array, jax.Array]], jax.Array]


def generation(problem: models.Problem, loss: Loss, population: int, chunk: int) -> measure.Run:
    """A run of one generation of mirrored pairs: scores, and the parameters that come of them.

    Args:
        problem: parameters and data.
        loss: the same network, of parameters, their factors (a pair for a matrix, noise for
            any other leaf) and data.
        population: members.
        chunk: members at a time, an even number that divides them.
    """
    leaves, treedef = jax.tree.flatten(problem.params)

    def drawn(stds: list[jax.Array], key: jax.Array) -> Any:
        factors = []
        for at, (leaf, std) in enumerate(zip(leaves, stds, strict=True)):
            own = jax.random.fold_in(key, at)
            if leaf.ndim == 1:
                factors.append(std * jax.random.normal(own, leaf.shape))
                continue
            rows, columns = leaf.shape
            numbers = jax.random.normal(own, (rows + columns,))
            factors.append((std * numbers[:rows], numbers[rows:]))
        return jax.tree.unflatten(treedef, factors)

    def turned(factors: Any, sign: jax.Array) -> Any:
        return jax.tree.map(
            lambda one: (sign * one[0], one[1]) if isinstance(one, tuple) else sign * one,
            factors,
            is_leaf=lambda one: isinstance(one, tuple),
        )

    @jax.jit
    def run(params: Any, batch: Any, key: jax.Array) -> tuple[Any, jax.Array]:
        stds = [
            SIGMA * jnp.maximum(jnp.sqrt(jnp.mean(leaf**2)), 1e-3)
            for leaf in jax.tree.leaves(params)
        ]
        keys = jax.random.split(key, population // 2)
        signs = jnp.array([1.0, -1.0])

        def score(keys: jax.Array) -> jax.Array:
            factors = jax.vmap(lambda key: drawn(stds, key))(keys)
            both = jax.vmap(lambda sign: turned(factors, sign))(signs)
            one = jax.vmap(jax.vmap(lambda factors: loss(params, factors, batch)))
            return one(both).T.reshape(-1)

        scores = lax.map(score, keys.reshape(-1, chunk // 2)).reshape(-1)
        elites = int(ELITE_FRACTION * population)
        _, best = lax.top_k(-scores, elites)
        weights = jnp.zeros(population).at[best].set(1 / elites).reshape(-1, 2) @ signs

        def displaced(leaf: jax.Array, one: Any) -> jax.Array:
            if isinstance(one, tuple):
                return leaf + jnp.einsum("n,nr,nc->rc", weights, *one, precision="highest")
            return leaf + jnp.tensordot(weights, one, 1)

        factors = jax.tree.leaves(
            jax.vmap(lambda key: drawn(stds, key))(keys),
            is_leaf=lambda one: isinstance(one, tuple),
        )
        child = [displaced(*pair) for pair in zip(jax.tree.leaves(params), factors, strict=True)]
        child = jax.tree.unflatten(treedef, child)
        plain = lax.map(lambda at: problem.loss(_one_of(at, params, child), batch), jnp.arange(2))
        return child, jnp.append(scores, plain)

    return lambda: run(problem.params, problem.batch, jax.random.key(0))


def _one_of(at: jax.Array, params: Any, child: Any) -> Any:
    return jax.tree.map(lambda one, other: jnp.where(at == 0, one, other), params, child)


def dense(x: jax.Array, kernel: jax.Array, factors: tuple[jax.Array, jax.Array]) -> jax.Array:
    """The product with W + A B^T."""
    left, right = factors
    return x @ kernel + (x @ left)[..., None] * right


def perceptron(params: Any, factors: Any, batch: tuple[jax.Array, jax.Array]) -> jax.Array:
    """`models.perceptron`, with factors."""
    hidden, targets = batch
    for layer, noise in zip(params, factors, strict=True):
        hidden = jnp.tanh(dense(hidden, layer["w"], noise["w"]) + layer["b"] + noise["b"])
    return jnp.mean((hidden - targets) ** 2)


def transformer(params: Any, factors: Any, batch: tuple[jax.Array, jax.Array]) -> jax.Array:
    """`models.transformer`, with factors."""
    hidden, targets = batch
    for layer, noise in zip(params, factors, strict=True):
        normed = jax.nn.standardize(hidden, axis=-1)
        qkv = dense(normed, layer["qkv"], noise["qkv"])
        qkv = qkv.reshape(*hidden.shape[:2], 3, models.HEADS, -1)
        mixed = jax.nn.dot_product_attention(*jnp.moveaxis(qkv, 2, 0))
        hidden = hidden + dense(mixed.reshape(hidden.shape), layer["out"], noise["out"])
        up = dense(jax.nn.standardize(hidden, axis=-1), layer["up"], noise["up"])
        hidden = hidden + dense(jax.nn.gelu(up), layer["down"], noise["down"])
    return jnp.mean((hidden - targets) ** 2)
