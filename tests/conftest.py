"""Settings that hold for all tests."""

from __future__ import annotations

import os

# Small tensors gain nothing from threads, and threads that wait actively for each other cost minutes on a busy machine.
os.environ.setdefault("OMP_NUM_THREADS", "1")
