"""HyperFuse: low-resolution hyperspectral and high-resolution multispectral scenes in, georeferenced products out.

The folders beside this one are its packages: `hyperfuse.catalogs` (what exists and how to open it), `hyperfuse.models` (fusion
methods, arrays only), `hyperfuse.pipeline` (the work), `hyperfuse.flows` (command line and Prefect). Names below are loaded
when they are first used: importing this module loads neither torch nor Prefect.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
