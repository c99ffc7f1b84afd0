"""The chosen method on windows of the staged pair: its weights, its passes over the scene, its tiles.

In: a staged job, a device. Out: fused tiles in the job's array, with their records in the ledger.
Must not know: which process or cluster asks for which tile, how products are judged or published.

    device           CPU or CUDA, and memory
    weights          weight files: shipped, given, converted
    method           the loaded method on one window
    passes           first pass (statistics of the scene) and coarse pass (features of a two-rate network)
    back_projection strict   agreement with the HSI within its noise
    residual         whether a learned residual is applied; `quality.residual_decision` decides
    packing          fused samples as they are stored
    tile_fuser       read, compute, encode and write tiles at the same time
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
