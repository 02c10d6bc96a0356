"""Noise: how the members of a population differ from their parent.

>>> from egd_optax import egd, noise
>>> tx = egd(0.1, noise=noise.low_rank(rank=2))

Subclass `Noise` for another distribution. Heavy tails, for example, of a normal number divided by
the root mean square of three others:

>>> import jax, jax.numpy as jnp
>>> class StudentT(noise.Noise):
...   def normals(self, leaf):
...     return leaf.shape, (3, *leaf.shape)
...   def form(self, parts, leaf):
...     numerator, others = parts
...     return numerator / jnp.sqrt(jnp.mean(others**2, 0)) / 3**0.5
>>> tx = egd(0.1, noise=StudentT())

The library keeps its promises for it. The bits are the same in all memory modes, in batches, in
mirrored pairs, over a mesh and after a resume.
"""

from egd_optax.noise.gaussian import gaussian
from egd_optax.noise.interface import Noise
from egd_optax.noise.lattice import lattice
from egd_optax.noise.low_rank import low_rank
from egd_optax.noise.outcome import Outcome
from egd_optax.noise.rademacher import rademacher
from egd_optax.noise.separable import separable

__all__ = ["Noise", "Outcome", "gaussian", "lattice", "low_rank", "rademacher", "separable"]
