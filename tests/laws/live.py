"""Exact, deterministic memory, by the name that tests and benchmarks know it by."""

from recursion.memory import LiveBytes as LiveBytes
