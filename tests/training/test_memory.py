from __future__ import annotations

import subprocess
import sys

HELD = """
import torch
from training.memory import peak_memory_mb
torch.cuda.is_available = lambda: False
before = peak_memory_mb()
held = torch.ones(75_000_000)
del held
print(before, peak_memory_mb())
"""


def test_the_peak_counts_what_was_held_and_is_held_no_more() -> None:
    """In a process of its own: this one may have held more before."""
    done = subprocess.run([sys.executable, "-c", HELD], capture_output=True, text=True, check=True)
    before, after = map(float, done.stdout.split())
    assert before > 50 and 290 < after - before < 400
