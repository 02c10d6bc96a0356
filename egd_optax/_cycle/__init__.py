"""What a cycle does: (mutate -> evaluate -> select -> recombine -> accept) x generations.

Data only flows down this list; no file imports from one above it.

programs    cycles outside of jit, compiled once
pairs       what a gradient predicts of mirrored pairs, and what their fitness says
cycle       generations around the parent, and where they lead
generation  one round
evaluation  formed or factored, and how many at a time
score       all members -> fitness
batches     some members at a time, on each device
unformed    members that are evaluated as their factors
total       the child: the parent plus the sum of weight * (member - parent)
strategy    the child through an optax transformation, and what a strategy keeps
storage     where the k best members live
elites      which members these are
weights     fitness -> weights
accept      child, best member or parent
place       one device, or members divided over many
members     drawn from keys, mirrored in pairs
draws       what the noise of all leaves of a member is made of
numbers     the normal numbers of many leaves, in one draw
parts       the noise of one leaf: rounded, checked, formed, summed
fitness     value_fn -> a number that can be compared
counted     which evaluations count
axes        mapped axes, named or forgotten
reset       the base optimizer after a jump
frozen      which leaves the base never moves
constant    derivatives of a step
arguments   who takes which of the arguments of `update`
dependence  what the base can depend on
parent      the parameters after the base step, and which leaves mutate
stacks      small leaves side by side
threefry    the random numbers
platform    which one a program is for
xla         what the compiler would do otherwise
spec        plain data
auxiliary   what `value_fn` returns beside the fitness
"""

from egd_optax._cycle.arguments import check_spelling, for_line_search, taken_by
from egd_optax._cycle.auxiliary import Aux, Auxiliary, shapes_of
from egd_optax._cycle.cycle import CycleInfo, in_dtypes, info_like, no_cycle_yet, run_cycle_if
from egd_optax._cycle.evaluation import at_once, reason_to_form, rows_of
from egd_optax._cycle.frozen import Frozen
from egd_optax._cycle.members import has_factors
from egd_optax._cycle.pairs import correlation, differences_around
from egd_optax._cycle.parent import mutating_leaves
from egd_optax._cycle.programs import Programs
from egd_optax._cycle.reset import Reset, forget_the_point, reset_after_jump
from egd_optax._cycle.spec import STRAIGHT, CycleSpec, Objectives, StrategyState
from egd_optax._cycle.strategy import check_strategy_state, strategy_state_of
from egd_optax._cycle.xla import impossible

__all__ = [
    "STRAIGHT",
    "Aux",
    "Auxiliary",
    "CycleInfo",
    "CycleSpec",
    "Frozen",
    "Objectives",
    "Programs",
    "Reset",
    "StrategyState",
    "at_once",
    "check_spelling",
    "check_strategy_state",
    "correlation",
    "differences_around",
    "for_line_search",
    "forget_the_point",
    "has_factors",
    "impossible",
    "in_dtypes",
    "info_like",
    "mutating_leaves",
    "no_cycle_yet",
    "reason_to_form",
    "reset_after_jump",
    "rows_of",
    "run_cycle_if",
    "shapes_of",
    "strategy_state_of",
    "taken_by",
]
