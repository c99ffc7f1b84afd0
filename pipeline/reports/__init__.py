"""Pages and pictures for people: the report of a product, comparisons, an index of products.

In: a job or a published product with its records. Out: HTML files that need nothing else.
Must not know: how scores are computed, how products are published.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
