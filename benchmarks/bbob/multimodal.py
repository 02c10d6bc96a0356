"""The functions 3, 4 and 15 to 24: many minima. All are 0 at the lowest."""

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.bbob.instance import LUNACEK, Instance
from benchmarks.bbob.transforms import asymmetric, conditioning, oscillate, penalty, root
from benchmarks.bbob.unimodal import valley

WEIERSTRASS = np.arange(12)
KATSUURA = 2.0 ** np.arange(1, 33)


def rastrigin(x: jax.Array, at: Instance) -> jax.Array:
    """3, separable."""
    z = asymmetric(oscillate(x - at["x_opt"]), 0.2)
    return _rastrigin(conditioning(10.0, x.size) * z)


def bueche_rastrigin(x: jax.Array, at: Instance) -> jax.Array:
    """4, separable; every second entry is stretched tenfold on one side."""
    z = oscillate(x - at["x_opt"])
    stretched = (z > 0) & (np.arange(x.size) % 2 == 0)
    z = jnp.where(stretched, 10.0, 1.0) * conditioning(10.0, x.size) * z
    return _rastrigin(z) + 100 * penalty(x)


def rastrigin_rotated(x: jax.Array, at: Instance) -> jax.Array:
    """15."""
    z = asymmetric(oscillate(at["r"] @ (x - at["x_opt"])), 0.2)
    return _rastrigin(at["r"] @ (conditioning(10.0, x.size) * (at["q"] @ z)))


def weierstrass(x: jax.Array, at: Instance) -> jax.Array:
    """16: rugged on all scales; its minima are many and equal."""
    z = at["q"] @ oscillate(at["r"] @ (x - at["x_opt"]))
    z = at["r"] @ (conditioning(1 / 100, x.size) * z)
    heights, waves = 0.5**WEIERSTRASS, 3.0**WEIERSTRASS
    rough = jnp.sum(heights * jnp.cos(2 * jnp.pi * waves * (z[:, None] + 0.5)))
    lowest = np.sum(heights * np.cos(np.pi * waves))
    return 10 * (rough / x.size - lowest) ** 3 + 10 / x.size * penalty(x)


def schaffers(x: jax.Array, at: Instance, condition: float = 10.0) -> jax.Array:
    """17."""
    z = at["q"] @ asymmetric(at["r"] @ (x - at["x_opt"]), 0.5)
    squares = (conditioning(condition, x.size) * z) ** 2
    pairs = squares[:-1] + squares[1:]
    waves = root(pairs, 0.25) * (1 + jnp.sin(50 * root(pairs, 0.1)) ** 2)
    return jnp.mean(waves) ** 2 + 10 * penalty(x)


def schaffers_ill_conditioned(x: jax.Array, at: Instance) -> jax.Array:
    """18."""
    return schaffers(x, at, 1000.0)


def griewank_rosenbrock(x: jax.Array, at: Instance) -> jax.Array:
    """19: waves along Rosenbrock's valley."""
    s = valley(max(1.0, x.size**0.5 / 8) * (at["q"] @ x) + 0.5)
    return 10 * jnp.mean(s / 4000 - jnp.cos(s)) + 10


def schwefel(x: jax.Array, at: Instance) -> jax.Array:
    """20: the second best minimum is far from the best."""
    height = 2 * jnp.abs(at["x_opt"])
    mirrored = 2 * jnp.sign(at["x_opt"]) * x
    chained = mirrored.at[1:].add(0.25 * (mirrored - height)[:-1])
    z = 100 * (conditioning(10.0, x.size) * (chained - height) + height)
    waves = z * jnp.sin(root(jnp.abs(z)))
    return 4.189828872724339 - jnp.mean(waves) / 100 + 100 * penalty(z / 100)


def gallagher(x: jax.Array, at: Instance) -> jax.Array:
    """21 with 101 peaks, 22 with 21 narrow ones."""
    squares = at["scales"] * (at["q"] @ x - at["centres"]) ** 2
    values = at["heights"] * jnp.exp(-jnp.sum(squares, 1) / (2 * x.size))
    return oscillate(10 - jnp.max(values)) ** 2 + penalty(x)


def katsuura(x: jax.Array, at: Instance) -> jax.Array:
    """23: kinks on all scales."""
    z = at["r"] @ (conditioning(100.0, x.size) * (at["q"] @ (x - at["x_opt"])))
    scaled = KATSUURA * z[:, None]
    kinks = jnp.sum(jnp.abs(scaled - jnp.floor(scaled + 0.5)) / KATSUURA, 1)
    product = jnp.prod((1 + np.arange(1, x.size + 1) * kinks) ** (10 / x.size**1.2))
    return 10 / x.size**2 * (product - 1) + penalty(x)


def lunacek(x: jax.Array, at: Instance) -> jax.Array:
    """24: two funnels with waves; the wider one has the higher minimum."""
    width = 1 - 1 / (2 * np.sqrt(x.size + 20) - 8.2)
    second = -np.sqrt((LUNACEK**2 - 1) / width)
    mirrored = 2 * jnp.sign(at["x_opt"]) * x
    z = at["r"] @ (conditioning(100.0, x.size) * (at["q"] @ (mirrored - LUNACEK)))
    funnels = jnp.minimum(
        jnp.sum((mirrored - LUNACEK) ** 2),
        x.size + width * jnp.sum((mirrored - second) ** 2),
    )
    return funnels + 10 * jnp.sum(1 - jnp.cos(2 * jnp.pi * z)) + 1e4 * penalty(x)


def _rastrigin(z: jax.Array) -> jax.Array:
    return jnp.sum(10 * (1 - jnp.cos(2 * jnp.pi * z)) + z**2)
