"""What a method may do for its budget, in sample-forwards: one sample through the model once."""

from typing import NamedTuple

from benchmarks.quality.problem import Problem

# The backward pass costs about two forward passes.
FORWARDS_PER_GRADIENT = 3


class Ledger(NamedTuple):
    """The prices of one method.

    Attributes:
        step: price of a gradient step, 0 of a step without a gradient.
        cycle: price of an evolution cycle, 0 for a method without cycles.
        evolve_every: steps between cycles.
    """

    step: int
    cycle: int = 0
    evolve_every: int = 1

    def spent(self, steps: int) -> int:
        """Sample-forwards after `steps` steps and the cycles that fell due."""
        return steps * self.step + steps // self.evolve_every * self.cycle

    def steps_within(self, budget: int) -> int:
        """The most steps for which `spent` stays within the budget."""
        period = self.spent(self.evolve_every)
        periods, rest = divmod(budget, period)
        # The last step of a period is followed by a cycle, for which the rest is too small.
        most = self.evolve_every - 1
        return periods * self.evolve_every + (min(rest // self.step, most) if self.step else most)


def generation_price(
    population_size: int, samples: int, *, antithetic: bool = False, compares: bool = True
) -> int:
    """The price of one generation of a cycle.

    Args:
        population_size: members, each evaluated on `samples`.
        samples: of the batch that fitness is taken over.
        antithetic: whether members come in pairs; the parent is then evaluated besides.
        compares: whether the rule of acceptance has the child evaluated too, and that parent.
    """
    more = 1 + antithetic if compares else 0
    return (population_size + more) * samples


def descent(problem: Problem, gradients: int = 1) -> Ledger:
    """The prices of plain gradient descent, with so many gradients a step."""
    return Ledger(gradients * FORWARDS_PER_GRADIENT * problem.batch_size)


def evolution(problem: Problem, evolve_every: int, generation: int, generations: int = 1) -> Ledger:
    """The prices of gradient descent with a cycle of some generations every few steps."""
    return Ledger(descent(problem).step, generation * generations, evolve_every)


def within(budget: int, price: int) -> int:
    """How often a price can be paid, once at least."""
    return max(budget // price, 1)
