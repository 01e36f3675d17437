"""Exact, deterministic memory, by the name that tests and benchmarks know it by."""

from recursion.analysis.memory import LiveBytes as LiveBytes
