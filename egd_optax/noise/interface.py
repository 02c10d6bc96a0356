"""`Noise`, the class of all noises."""

from collections.abc import Callable
from typing import Any

import jax
from jax import lax
import jax.numpy as jnp
import optax

from egd_optax._checks import check_flag, check_static_number
from egd_optax._written import settle
from egd_optax.backend import xla
from egd_optax.backend.arithmetic import wide_dtype
from egd_optax.backend.products import product, sum_of_products
from egd_optax.noise.outcome import Outcome

# Arrays of random numbers that the noise of one leaf is made of.
Parts = tuple[jax.Array, ...]


class Noise:
    """The noise of one leaf is `std * form(numbers)`; subclass it for another noise.

    The library draws the numbers, and rounds the noise so that every device gets the same bits. It
    replaces noise that is not finite by zero. Every method has a default. `normals` asks for one
    normal number for each parameter, and `form` returns it. `std` is `sigma` times the root mean
    square of the leaf.

    Decorate a subclass that has settings with `@dataclasses.dataclass(frozen=True)`, so that it is
    compared and hashed by value. Give it no `__call__`: `optax.inject_hyperparams` would take it
    for a schedule.

    Attributes:
        relative: whether `sigma` is a fraction of the root mean square of a leaf. If False, it is
            in units of the parameters.
        min_scale: floor of that root mean square, in units of the parameters. With it leaves
            initialised to zero move.
        has_factors: whether `factors` returns any. Members can then be evaluated without being
            formed.

    Example:
        Noise that is the same for all columns of a matrix, a number for each row.

        >>> import jax, jax.numpy as jnp, optax
        >>> from egd_optax import evolve, noise
        >>> class WholeRows(noise.Noise):
        ...   def normals(self, leaf):
        ...     return (leaf.shape[:1],)
        ...   def form(self, parts, leaf):
        ...     return jnp.broadcast_to(parts[0].reshape(-1, *[1] * (leaf.ndim - 1)), leaf.shape)
        >>> tx = evolve(optax.sgd(0.0), evolve_every=1, noise=WholeRows())
        >>> params = jnp.ones((3, 4))
        >>> updates, _ = tx.update(params, tx.init(params), params, value_fn=jnp.sum)
        >>> bool((updates == updates[:, :1]).all())
        True
    """

    relative: bool = True
    min_scale: float = 1e-3
    has_factors: bool = False

    def init(self, params: optax.Params) -> Any:
        """Returns the state of the noise at the start of a run; by default none.

        Args:
            params: the parameters, with `optax.MaskedNode` for leaves that do not mutate.
        """
        del params
        return ()

    def sigma(self, sigma: jax.Array, state: Any) -> jax.Array:
        """Returns the sigma of a generation, `[]`, from the one that `evolve` was given."""
        del state
        return sigma

    def reads(self, base_state: optax.OptState, state: Any) -> optax.Params | None:
        """Returns arrays that `std` reads, one for each leaf of the parameters; None for nothing.

        Args:
            base_state: the state of the base optimizer after the step.
            state: of the noise.
        """
        del base_state, state
        return None

    def std(self, leaf: jax.Array, sigma: jax.Array, read: jax.Array | None) -> jax.Array:
        """Returns the standard deviation of the noise of a leaf, `[]`, or of each of its entries.

        Args:
            leaf: a leaf of the parent.
            sigma: `[]`, of a real dtype that the leaf is computed in.
            read: the same leaf of `reads`, or None.
        """
        del read
        if not self.relative:
            return sigma
        squares = jnp.square(jnp.abs(leaf).astype(sigma.dtype))
        return relative_std(self, sigma, jnp.mean(squares))

    def bounds(self, leaf: Any) -> tuple[int, int] | None:
        """Returns the least and the greatest value of an integer leaf; by default None.

        A subclass that defines it moves integer leaves of at most 8 bits that `mutable` selects.
        Their noise is rounded to whole steps at random, and clipped; see `noise.lattice`. Its
        standard deviation is in steps.

        Args:
            leaf: shape and dtype of the leaf.
        """
        del leaf
        return None

    def normals(self, leaf: jax.ShapeDtypeStruct) -> tuple[tuple[int, ...], ...]:
        """Returns the shapes of the standard normal numbers that the noise of a leaf is made of.

        Noise that is made of fewer numbers than its leaf has entries is never held: members and
        sums are formed from the numbers.

        Args:
            leaf: shape and dtype of the leaf; a complex leaf comes as a real one, twice, and an
                integer one as one of float32.
        """
        return (leaf.shape,)

    def draw(self, key: jax.Array, leaf: jax.Array) -> Parts:
        """Draws numbers of another distribution, in place of `normals`; the parts of `form`.

        The library calls it if a subclass defines it. It compiles once for each leaf.

        Args:
            key: threefry key of this cycle, member and leaf, for `jax.random`.
            leaf: the leaf of the parent; for its shape and dtype.
        """
        raise NotImplementedError

    def form(self, parts: Parts, leaf: jax.Array) -> jax.Array:
        """Returns noise of unit variance, of the shape of the leaf.

        By default the product of the `factors`, or the first of the parts.

        Args:
            parts: arrays of the shapes of `normals`, float32 or wider; or what `draw` returned.
            leaf: the leaf of the parent; for its shape and dtype.
        """
        factors = self.factors(parts, leaf)
        return parts[0] if factors is None else product(*factors, leaf)

    def form_sum(self, parts: Parts, weights: jax.Array, leaf: jax.Array) -> jax.Array:
        """Returns the sum of weight * `form` over some members.

        By default one product of the `factors` of all. Without factors it depends on the memory
        that the noise takes. If it takes at most as much as its numbers, members are summed
        together, else one after the other.

        Args:
            parts: of each of them, with a leading axis `[n]`.
            weights: `[n]`, of the dtype of the sum.
            leaf: the leaf of the parent; for its shape and dtype.
        """
        factors = jax.vmap(lambda parts: self.factors(parts, leaf))(parts)
        if factors is not None:
            return sum_of_products(*factors, weights, leaf)

        def form(parts: Parts) -> jax.Array:
            formed = self.form(parts, leaf).astype(weights.dtype)
            # Else an entry that is infinite in one member would be lost for all of them.
            return jnp.where(jnp.isfinite(formed), formed, jnp.zeros_like(formed))

        if sum(part.size for part in parts) >= weights.size * leaf.size:
            formed = jax.vmap(form)(parts)  # no more than the numbers that are held
            return jnp.tensordot(weights, formed, axes=1, precision=lax.Precision.HIGHEST)

        def term(index: jax.typing.ArrayLike) -> jax.Array:
            noise = form(tuple(part[index] for part in parts))
            return xla.round_for_fma(weights[index] * noise)

        return xla.loop(1, weights.size, lambda index, total: total + term(index), term(0))

    def factors(self, parts: Parts, leaf: Any) -> tuple[jax.Array, jax.Array] | None:
        """Returns two arrays; the noise is the sum of their products over the last axis.

        Members of noise that has factors can be evaluated without being formed. If they are
        formed, the factors are rounded to half of their digits, so that each product is exact.

        Args:
            parts: as those of `form`.
            leaf: shape and dtype of the leaf.

        Returns:
            Two arrays with the axes of the leaf and a last axis `[rank]`. Each axis is as long as
            that of the leaf, or one. None if the noise of this leaf has no factors.
        """
        del parts, leaf
        return None

    statistic: Callable[[jax.Array], jax.Array] | None = None
    """Maps noise of unit variance to an array like it, which is summed as the noise is."""

    def adapt(self, state: Any, outcome: Outcome) -> Any:
        """Returns the next state, after a generation."""
        del outcome
        return state


def check_scale(noise: Noise) -> None:
    """Checks the settings that every noise has."""
    check_flag("relative", noise.relative)
    settle(noise, min_scale=check_static_number("min_scale", noise.min_scale, zero=True))


def moves_integers(noise: Noise) -> bool:
    """Whether a noise says how integer leaves move."""
    return type(noise).bounds is not Noise.bounds


def has_factors(noise: Noise, leaf: jax.ShapeDtypeStruct) -> bool:
    """Whether a leaf can be evaluated as the parent's leaf and two factors."""
    # A sum of products of floats of a few digits differs from the float that it rounds to.
    if not jnp.issubdtype(leaf.dtype, jnp.floating) or jnp.finfo(leaf.dtype).bits < 16:
        return False
    return noise.has_factors and _factors_like(noise, leaf) is not None


def _factors_like(noise: Noise, leaf: jax.ShapeDtypeStruct) -> Any:
    """Shapes and dtypes of the factors of a leaf, None if it has none."""
    if type(noise).factors is Noise.factors:
        return None
    parts = tuple(jax.ShapeDtypeStruct(shape, jnp.float32) for shape in noise.normals(leaf))
    return jax.eval_shape(lambda *parts: noise.factors(parts, leaf), *parts)


def is_entrywise(noise: Noise, leaf: jax.ShapeDtypeStruct) -> bool:
    """Whether each entry of a leaf has a number of its own, times one standard deviation for all.

    Nothing is known of a noise that forms a leaf in its own way.
    """
    plain = ("std", "draw", "form", "form_sum", "statistic")
    if any(getattr(type(noise), name) is not getattr(Noise, name) for name in plain):
        return False
    return noise.normals(leaf) == (leaf.shape,) and _factors_like(noise, leaf) is None


def relative_std(noise: Noise, sigma: jax.Array, mean_square: jax.Array) -> jax.Array:
    """Sigma times a root mean square, at least `min_scale`."""
    least = jnp.asarray(noise.min_scale, sigma.dtype)
    return sigma * jnp.maximum(jnp.sqrt(mean_square), least)


def checked_form(noise: Noise, formed: Any, like: jax.Array) -> jax.Array:
    """Noise of a block in float32 or wider, refused by name if it is none."""
    if jnp.shape(formed) != like.shape:
        raise ValueError(
            f"`noise` must be of the shape of its leaf, {like.shape[1:]}, got "
            f"{jnp.shape(formed)[1:]} from {noise!r}."
        )
    dtype = jnp.result_type(formed)
    if not jnp.issubdtype(dtype, jnp.floating):
        raise TypeError(
            f"`noise` must be real floating-point numbers for a leaf of {like.dtype}, got {dtype} "
            f"from {noise!r}."
        )
    return jnp.asarray(formed, jnp.promote_types(dtype, wide_dtype(like.dtype)))
