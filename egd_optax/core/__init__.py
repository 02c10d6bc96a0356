"""The algorithm: (mutate -> evaluate -> select -> recombine) x generations, then accept.

Imports run down this list. No file knows how XLA or devices lay out the work: see `backend`.

cycle       generations around the parameters after the base step
generation  one round
combine     the weighted sum of the noise, and the child
evaluate    all candidates -> fitness
elites      which members are kept
fitness     value_fn -> a number that can be compared
auxiliary   what `value_fn` returns beside the fitness
trial       a user's noise is tried out on an example
population  candidates, drawn from keys
spec        plain data
"""
