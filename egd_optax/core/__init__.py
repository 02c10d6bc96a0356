"""The algorithm: (mutate -> evaluate -> select -> recombine) x generations, then accept.

Imports run down this list. No file knows how XLA or devices lay out the work: see `backend`.

programs      cycles outside of jit, compiled once
pairs         the fitness differences of mirrored pairs, measured and predicted
cycle         generations around the parameters after the base step
generation    one round
acceptance    child, best member or parent
strategy      the step along the weighted sum, and what a strategy keeps
judge         the fitness by which these are compared
stage         what all stages of a generation know
combine       the weighted sum of the noise, and the child
evaluate      all candidates -> fitness
unformed      members that are evaluated as their factors
weights       fitness -> weights
elites        which members are kept
fitness       value_fn -> a number that can be compared
trial         a user's noise is tried out on an example
population    candidates, drawn from keys
perturbation  the noise of one draw in each block
mutable       which leaves mutate
spec          plain data
counted       which evaluations count
auxiliary     what `value_fn` returns beside the fitness
"""
