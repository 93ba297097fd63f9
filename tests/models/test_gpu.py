"""The library on a pretend GPU, in a process of its own: it registers a backend for good."""

import subprocess
import sys

import pytest

from tests.pretend_gpu import POSSIBLE, ROOT


@pytest.mark.skipif(not POSSIBLE, reason="this torch lets Python register no backend")
def test_on_a_pretend_gpu() -> None:
    """No CPU tensor, CPU generator or float weight among halves, and no needless wait.

    Sampling, fusing, inverting, scoring, DPO, DDPO and DPOK, LoRA and full, in every precision.
    """
    command = [sys.executable, "-m", "pytest", "-q", "tests/pretend_checks.py"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-1000:]
