"""What a method may do for its budget, in sample-forwards: one sample through the model once."""

from benchmarks.quality.problem import Problem
from demo.ledger import FORWARDS_PER_GRADIENT, Ledger


def descent(problem: Problem, gradients: int = 1) -> Ledger:
    """The prices of plain gradient descent, with so many gradients a step."""
    return Ledger(gradients * FORWARDS_PER_GRADIENT * problem.batch_size)


def evolution(problem: Problem, evolve_every: int, generation: int, generations: int = 1) -> Ledger:
    """The prices of gradient descent with a cycle of some generations every few steps."""
    return Ledger(descent(problem).step, generation * generations, evolve_every)


def within(budget: int, price: int) -> int:
    """How often a price can be paid, once at least."""
    return max(budget // price, 1)
