"""Which members have a weight, and which device adds each of them."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from egd_optax.backend.devices import Devices
from egd_optax.core.select import Slots, slots_of


class Terms(NamedTuple):
    """The terms that a device adds up, those with a weight first; `[n]` each.

    Attributes:
        slots: the slot of a member, if it is kept.
        members: its number.
        weights: its weight.
        trips: how many have a weight, on the device with the most of these, int32 `[]`.
    """

    slots: jax.Array
    members: jax.Array
    weights: jax.Array
    trips: jax.Array


def terms_of(
    weights: jax.Array,
    fitness: jax.Array,
    support: int | None,
    slots: Slots | None,
    *,
    pair: int,
    devices: Devices,
) -> Terms:
    """The terms that each device adds up, from the weights of all members, `[n]`.

    Members that are kept are added one by one. If any member can get a weight, the two of a pair
    are one term, for they share a draw.
    """
    if support is None:
        members = jnp.arange(1, weights.size, pair, dtype=jnp.int32)
        signs = jnp.array((1, -1)[:pair], weights.dtype)
        own = weights[1:].reshape(-1, pair) @ signs
    else:
        members = (slots_of(fitness, support) if slots is None else slots).member
        own = jnp.where(members > 0, weights[members], 0)
    return first_those_that_weigh(members, own, devices)


def first_those_that_weigh(members: jax.Array, weights: jax.Array, devices: Devices) -> Terms:
    """The terms of a device, of the numbers and weights of all members, `[n]`."""
    slots = devices.rank() + devices.size * jnp.arange(devices.share(weights.size))
    weights = weights.at[slots].get(mode="fill", fill_value=0)
    members = members.at[slots].get(mode="fill", fill_value=1)
    order = jnp.argsort(weights == 0, stable=True)
    # As many trips on each device: XLA may communicate in them, along other axes.
    count = devices.most(jnp.sum(weights != 0).astype(jnp.int32))
    return Terms(slots[order], members[order], weights[order], count)
