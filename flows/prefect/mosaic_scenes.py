"""The flow `mosaic-scenes`: several fused products to one area product, a task per stage.

    prefect deployment run mosaic-scenes/mosaic-scenes --param 'config={"products": ["...", "..."], "output": "..."}'

The ledger lies beside the data: a flow that dies is run again and skips the blocks that are finished.
"""

# No `from __future__ import annotations` here: Prefect resolves the parameters' types when it serves the flow.
from prefect import flow, get_run_logger, task
from prefect.cache_policies import NO_CACHE

from hyperfuse.catalogs.errors import ExpectedSkip
from hyperfuse.flows.prefect.artifacts import ended, ended_as, forwarded_logs, key_of, run_name, show_product
from hyperfuse.pipeline.mosaic.run import AreaRun, blend_area, open_area, publish_area
from hyperfuse.pipeline.mosaic.settings import AreaConfig
from hyperfuse.pipeline.products.product import Product


@task(name="blend", cache_policy=NO_CACHE, persist_result=False)
def blend_task(run: AreaRun) -> None:
    """Blend the blocks that are not in the ledger."""
    blend_area(run)


@task(name="publish", cache_policy=NO_CACHE, persist_result=False)
def publish_task(run: AreaRun) -> Product:
    """Read back and publish the area."""
    return publish_area(run)


@flow(name="mosaic-scenes", flow_run_name=run_name, persist_result=False)
def mosaic_scenes(config: AreaConfig) -> str:
    """Blend several fused products into one area product; the result is its folder."""
    logger = get_run_logger()
    with forwarded_logs():
        try:
            with open_area(config) as run:
                blend_task(run)
                product: Product = publish_task(run)
        except ExpectedSkip as skip:
            logger.warning("skipped: %s", skip)
            return ended_as(f"nothing to do: {skip}", config.output)
    _report(product)
    logger.info("published %s", product.path)
    return ended(product)


def _report(product: Product) -> None:
    facts, seams = product.provenance["product"], product.provenance["seams"]
    rows = {
        "product": str(product.path),
        "grid": f"{facts['shape'][0]} x {facts['shape'][1]} px, {facts['crs']}",
        "bands": f"{len(facts['wavelength_nm'])} ({facts['wavelength_nm'][0]:.0f}-{facts['wavelength_nm'][-1]:.0f} nm)",
        "valid": f"{100 * facts['valid_fraction']:.2f} %",
        "products": ", ".join(entry["id"] for entry in product.provenance["inputs"]),
        **{
            f"{pair['first']} / {pair['second']}": f"{pair['pixels']} px, up to {pair['largest_mean']:.4g} in the mean"
            for pair in seams["pairs"]
        },
    }
    show_product(product, rows, key=key_of("mosaic-scenes", product.path))
