"""Grids and the samples on them: where the product lies, how it is cut, and the one resampling.

In: scenes with a GeoBox, a displacement, the size of a tile. Out: the nested coarse and fine grid, tiles as rectangles of
integers, samples of a scene on a grid.
Must not know: how sensors see (PSF, SRF), jobs on disk, methods.

    box           rectangles of pixels
    grids         the common grids of a pair
    displacement  the move of the MSI against the HSI: shift, affine, smooth field
    resample      samples of a scene on a grid, displacement folded in: the only resampling of a run
    tiling        which product pixels a tile writes, and which coarse pixels it reads
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
