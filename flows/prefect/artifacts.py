"""What runs of our flows show in Prefect: the pipeline's log, a table of the product and a picture of it."""

from __future__ import annotations

import base64
import logging
from collections.abc import Mapping

from prefect.artifacts import create_markdown_artifact, create_table_artifact
from prefect.logging.handlers import APILogHandler

from hyperfuse.pipeline.job.product_files import THUMBNAIL
from hyperfuse.pipeline.products.product import Product


def show_product(product: Product, rows: Mapping[str, str], *, key: str) -> None:
    """A table and the thumbnail of a product, as the artifacts `<key>-product` and `<key>-quicklook`."""
    create_table_artifact(
        table=[{"item": item, "value": value} for item, value in rows.items()],
        key=f"{key}-product",
        description=product.name,
    )
    picture = base64.b64encode((product.path / THUMBNAIL).read_bytes()).decode()
    create_markdown_artifact(
        markdown=f"![{product.name}](data:image/png;base64,{picture})",
        key=f"{key}-quicklook",
        description=product.name,
    )


class forwarded_logs:  # noqa: N801 (a context manager, named like one)
    """Log records of the pipeline in the run's log, and of further packages."""

    def __init__(self, *packages: str) -> None:
        self._packages = ("hyperfuse.pipeline", "hyperfuse.catalogs", *packages)

    def __enter__(self) -> None:
        self._handler = APILogHandler()
        self._loggers = [logging.getLogger(name) for name in self._packages]
        for logger in self._loggers:
            logger.addHandler(self._handler)
            logger.setLevel(logging.INFO)

    def __exit__(self, *_: object) -> None:
        for logger in self._loggers:
            logger.removeHandler(self._handler)
