"""Towers on a GPU, a pretended one: what `on_a_device` holds, in a process of its own.

Torch counts its devices when it first goes backward, so the device has to be there before any other test.
"""

import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent


def test_on_a_device():
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "on_a_device.py"]
    done = subprocess.run(command, cwd=HERE, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
    assert " passed" in done.stdout
