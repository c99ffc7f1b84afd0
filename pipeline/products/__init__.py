"""From a finished mosaic to a published product: written, read back, sealed, renamed into place.

In: a `Draft` (job, mosaic, provenance). Out: a `Product`, complete or absent at every moment.
Must not know: how tiles were made, how pages look.

    draft         what writers are given, and the assets that they give
    writers       one file per format
    provenance prov_rocrate   the record; the same as W3C PROV and RO-Crate
    thumbnail     a small picture
    commit        parent folder, disk, the rename
    publish       the steps in order; `verify`
    product       a published product, for whoever reads it
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
