"""Measurements, each a command: ``python -m benchmarks.memory``. Run from the root of a checkout."""
