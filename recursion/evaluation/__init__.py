"""Evaluation: held-out problems, tuned baselines, statistics."""
