"""Accept: the child has to earn its place."""

import jax
import jax.numpy as jnp

# What a generation can end with, in the order in which ties are settled.
PARENT, ELITE, CHILD = range(3)


def accept(
    rule: str, parent: jax.Array, elite: jax.Array, child: jax.Array, moved: jax.Array
) -> jax.Array:
    """Decides what a generation ends with: PARENT, ELITE or CHILD, int32 `[]`.

    Ties go to the parent, then to the elite. A child without finite fitness is never
    taken where it was evaluated; "always" does not look.

    Args:
        rule: "always", "finite", "improved" or "best".
        parent: fitness of the parent, `[]`, +inf where not finite; likewise:
        elite: of the best member.
        child: of the child.
        moved: bool `[]`, whether the child is any other than the parent.
    """
    if rule == "always":
        return jnp.where(moved, CHILD, PARENT)
    if rule == "finite":
        return jnp.where(jnp.isfinite(child) & moved, CHILD, PARENT)
    if rule == "improved":
        return jnp.where(child < parent, CHILD, PARENT)
    return jnp.argmin(jnp.stack([parent, elite, child])).astype(jnp.int32)
