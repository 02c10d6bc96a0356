"""Checks on programs compiled for accelerators that this machine does not have."""
