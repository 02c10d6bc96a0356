"""The base optimizer as a black box.

reset       the state of the base after a jump
dependence  which results of a traced function depend on which arguments; what the base does
arguments   which function takes which of the arguments of `update`
leaves      parameters, updates and masked places as flat lists; which leaves mutate
"""
