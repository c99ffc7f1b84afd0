"""Co-registration: how the MSI lies on the HSI; measured, modelled, and decided on.

In: a pair of scenes on nested grids, the search range, the PSF. Out: `Registration`, the displacement with the decision
accept, warn or refuse and the figures behind it; table and figure of the tie points.
Must not know: jobs, clusters (it is handed a parallel `map`), what fuses.

    views        both images on the HSI's own pixels, block by block
    search       whole-pixel moves, by correlation
    tie_points   what remains in each window, by the forward model
    response     what an MSI band sees of the HSI's spectrum, learned
    fit          none, shift, affine or smooth field: what predicts the tie points best
    dense_field  a field from every pixel
    decision     which tie points count; accept, warn, refuse
    blocks       all of that for the blocks of a scene, here or on workers
    estimate     the steps in order
    record report   the record; table and figure

A module uses only those above it.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
