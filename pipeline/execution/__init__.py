"""Where tiles are fused: in this process, or on the workers of a Dask cluster.

In: batches of tiles of a staged job. Out: the same tiles in the ledger, or the error of the first that failed; tiles that
kill workers are set aside.
Must not know: what is computed for a tile, what becomes of it.

    cluster      a local Dask cluster, or the one of an address
    exchange     what workers without a shared folder are given, and what they bring back
    quarantine   tiles that killed workers
    engine       batches to whoever is free
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
