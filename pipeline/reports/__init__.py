"""HTML pages, figures and records for readers, from what the pipeline has measured.

    product_page       `report.html` of one product, from its job, verdict and provenance
    comparison_page    `comparison.html` of two to eight products, from `compare`
    index_page         `index.html` of a folder of products
    evaluation_figure  PNG of an evaluation, from its rows
    describe           metadata and quicklook of an input scene

    html               jinja2 environment, and the tables that pages share
    color_maps         arrays as pictures
    spectra            spectra packed for a page
    pictures arrows    composites, spectra and tie points of a job
    compare difference what the samples of products differ by
    scores             the figures by which products are compared

A page shows what `qa.json` and the provenance record hold; nothing is judged here, and products are not changed. Pages are
templates in `templates`, filled with dataclasses: Python builds no HTML.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
