"""The base optimizer as a black box.

reset       the state of the base after a jump
dependence  what a traced function can depend on; which leaves the base never moves
arguments   who takes which of the arguments of `update`
leaves      parameters, updates and masked places as flat lists; which leaves mutate
"""
