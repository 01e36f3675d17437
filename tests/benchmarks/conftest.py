"""Benchmarks are no installed package: the root of the repository is put last on the path, behind what is installed."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[2]))
