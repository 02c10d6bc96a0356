"""Gradient descent and EGD at equal compute, in three stories; run with `python -m demo`."""
