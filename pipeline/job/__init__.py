"""One fusion on disk: the hidden folder beside the product, its records, staged images and finished tiles.

In: settings and opened scenes. Out: staged images that a worker anywhere can read, the ledger of finished tiles, the proof
that a mosaic is complete.
Must not know: what a method does with a window, where it runs, formats of products.

    records         what is to be done, and what staging found
    folder          `Job` before staging, `StagedJob` after
    store           Zarr: the only module that imports it
    stage           both images registered, resampled once, and looked at
    encoding        nodata and range of stored samples
    ledger completeness   finished tiles; whether all are there
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
