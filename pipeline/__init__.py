"""The work: two scenes in, one published product out.

`run` is the way of a scene; the rooms below it are its stages, see `CONTRIBUTING.md` for the map.
"""

import os

import lazy_loader

# OpenMP reads this when torch loads it. Threads that spin while they wait for each other take the cores from those that read
# and write: a fusion then takes 1.2 to 1.5 times its forward instead of 1.1 (`make bench`).
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
