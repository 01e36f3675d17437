"""Gradient estimators: one file, one way to differentiate a window with respect to the optimizer that ran it."""
