"""The methods; one family a file."""

from benchmarks.quality.methods import gradient, presets, straight_through, strategies
from benchmarks.quality.methods.method import Method

METHODS: dict[str, Method] = {
    method.name: method
    for family in (gradient, straight_through, strategies, presets)
    for method in family.METHODS
}
