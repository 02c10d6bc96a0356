"""The algorithm: (mutate -> evaluate -> select -> recombine) x generations, then accept.

Imports run down this list. No file knows how XLA or devices lay out the work: see `backend`.

cycle         generations around the parameters after the base step
generation    one round
stage         the data that all stages of a generation share
judge         parent, best member and child are compared
strategy      the step along the weighted sum, and the state of a strategy
combine       the weighted sum of the noise, and the child
evaluate      all candidates -> fitness
unformed      members that are evaluated as their factors
info          the arguments of a cycle, its results, and its report
norm          how far a cycle moved the parameters
select        fitness -> weights; which members are kept
fitness       value_fn -> a number that can be compared
population    candidates, drawn from keys
blocks        leaves and their base updates in blocks
perturbation  the noise of one draw in each block
deviation     the standard deviation of the noise in each block
residual      the fractions of integer leaves
bounds        the least and the greatest values of parameters
spec          plain data
auxiliary     the aux that `value_fn` returns with the fitness
"""
