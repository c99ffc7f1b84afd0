"""Area mosaics: several fused products on one grid, blended by distance to their edges.

In: published products. Out: one published product of the area they cover.
Must not know: how the products were fused.

    settings    what decides an area mosaic
    inputs      published products as scenes; the bands that they share; the common grid
    feather     how far a pixel lies from the edge of a product and from what is invalid in it
    blend       one block of the area from all products that reach into it
    seams       what can be seen of the joins
    record      the area on disk: a staging folder, its record, its layout
    run         the steps in order: check, stage, blend, publish

A module uses only those above it.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
