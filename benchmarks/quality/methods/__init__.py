"""The methods; one family a file."""

from collections.abc import Iterable

from benchmarks.quality.methods import (
    adapting,
    carried,
    deciding,
    devices,
    directions,
    gradient,
    learning,
    policies,
    presets,
    shares,
    straight_through,
    strategies,
    variants,
)
from benchmarks.quality.methods.method import Method


def _by_name(methods: Iterable[Method]) -> dict[str, Method]:
    return {method.name: method for method in methods}


def _past_edges(methods: Iterable[Method]) -> Iterable[Method]:
    """Tuned until no setting lies at an edge: what presets are compared with."""
    return (method._replace(past_edges=True) for method in methods)


METHODS = _by_name(
    (
        *_past_edges(
            method
            for family in (gradient, straight_through, devices, strategies)
            for method in family.METHODS
        ),
        *presets.METHODS,
        *adapting.METHODS,
    )
)

# Changes to cycles on straight-through gradients.
DIRECTIONS = _by_name(directions.METHODS)

# Runs of another length.
CARRIED = _by_name(carried.METHODS)

# Whether to evolve, decided within a run.
DECIDING = _by_name(deciding.METHODS)

# What policies are found with; none of the others.
POLICIES = _by_name(_past_edges(policies.METHODS))

# Cycles on a share of the compute, and their controls.
SHARES = _by_name(shares.METHODS)

# Members that learn, and their controls.
LEARNING = _by_name(learning.METHODS)

# What the ablation runs besides, against the metric preset.
VARIANTS = _by_name(variants.METHODS)
