"""What runs of our flows show in Prefect: the pipeline's log, a table of the product and a picture of it."""

from __future__ import annotations

import base64
import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import cast

from prefect.artifacts import create_markdown_artifact, create_table_artifact
from prefect.logging.handlers import APILogHandler
from prefect.runtime import flow_run
from prefect.states import Completed

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


def key_of(flow: str, output: Path) -> str:
    """Key of a scene's artifacts, the same in every run of it: small letters, digits and dashes are all that Prefect takes."""
    return f"{flow}-{re.sub('[^a-z0-9]+', '-', output.name.lower()).strip('-') or 'product'}"


def run_name() -> str:
    """Name of a flow's run: that of the product's folder."""
    config = flow_run.parameters.get("config")
    output = config.get("output") if isinstance(config, Mapping) else getattr(config, "output", None)
    return Path(str(output)).name if output else "run"


def ended(product: Product) -> str:
    """How a run that published ended, in the words of the product: an automation can act on them."""
    quality = product.provenance.get("quality") or {}
    told = "; ".join(quality.get("warnings", []))
    state = str(quality.get("state", "published"))
    return ended_as(f"{state}: {told}" if told else state, product.path)


def ended_as(message: str, output: Path) -> str:
    """The folder of a product, for a flow to return; its final state has the message."""
    # Prefect takes a state that a flow returns for its own, and hands what it holds to who called the flow.
    return cast("str", Completed(message=message, data=str(output)))


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
