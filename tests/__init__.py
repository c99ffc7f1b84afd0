"""Tests; `ROOT` is the repository, `DATA` the folder of real images beside it that some of them read."""

from pathlib import Path

ROOT = Path(__file__).parents[1]
DATA = ROOT.parent / "shared" / "data"
