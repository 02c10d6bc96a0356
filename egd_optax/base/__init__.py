"""The base optimizer as a black box.

arguments      who takes which of the arguments of `update`
dependence     what a traced function can depend on
frozen_leaves  which leaves the base never moves
reset          the state of the base after a jump
trees          parameters, updates and masked places as flat lists
"""
