"""Exact, deterministic memory, by the name that tests and benchmarks know it by."""

from recursion.analysis.metering import LiveBytes as LiveBytes
