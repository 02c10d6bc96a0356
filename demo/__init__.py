"""Gradient descent and EGD on scikit-learn's digits at equal compute; run with `python -m demo`."""
