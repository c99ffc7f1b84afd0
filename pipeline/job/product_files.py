"""Names of the files of a product."""

from __future__ import annotations

PROVENANCE = "provenance.json"


PROV = "prov.json"
"""The same as W3C PROV-JSON."""


CRATE = "ro-crate-metadata.json"
"""The same as RO-Crate."""


QA = "qa.json"
"""Scores, gates and their definitions, written by `pipeline.quality.assessment`."""


REPORT = "report.html"
"""The report to look at, written by `pipeline.reports.product_page`."""


THUMBNAIL = "thumbnail.png"


MANIFEST = "manifest.json"


FLAGS = "quality_flags.tif"
"""Bits that tell of single pixels, written by `pipeline.products.flags`."""
