"""The flow `fuse-scene`: one pair of scenes to one published product, a task per stage.

    prefect deployment run fuse-scene/fuse-scene --param 'config={"hsi": {...}, "msi": {...}, "output": "..."}'

Tasks exchange a handle on the job's folder, never arrays. What is done is in the job's own ledger, so a flow that dies
is simply run again: finished tiles are skipped, whatever became of Prefect's database.
"""

# No `from __future__ import annotations` here: Prefect resolves the parameters' types when it serves the flow.
from uuid import UUID

from prefect import flow, get_run_logger, task
from prefect.artifacts import create_progress_artifact, update_progress_artifact
from prefect.cache_policies import NO_CACHE

from hyperfuse.catalogs.errors import ExpectedSkip
from hyperfuse.flows.prefect.artifacts import ended, ended_as, forwarded_logs, key_of, run_name, show_product
from hyperfuse.pipeline.config import RunConfig
from hyperfuse.pipeline.job.folder import StagedJob
from hyperfuse.pipeline.products.product import Product
from hyperfuse.pipeline.progress import Pace
from hyperfuse.pipeline.run import OpenRun, fuse_tiles, open_run, publish_product, stage_pair

_STEP_PERCENT = 2.0


@task(name="stage", cache_policy=NO_CACHE, persist_result=False)
def stage_task(opened: OpenRun) -> StagedJob:
    """Co-register and stage both images."""
    return stage_pair(opened)


@task(name="fuse", cache_policy=NO_CACHE, persist_result=False)
def fuse_task(job: StagedJob, opened: OpenRun) -> None:
    """Fuse the tiles that are not in the ledger."""
    fuse_tiles(job, opened.progress)


@task(name="publish", cache_policy=NO_CACHE, persist_result=False)
def publish_task(job: StagedJob, opened: OpenRun) -> Product:
    """Write, verify and publish the product."""
    return publish_product(job, started=opened.started, progress=opened.progress)


@flow(name="fuse-scene", flow_run_name=run_name, persist_result=False)
def fuse_scene(config: RunConfig) -> str:
    """Fuse a low-resolution hyperspectral and a high-resolution multispectral scene.

    The result is the product's folder; the message of the final state says how good the product is, or why there was nothing to do.
    """
    logger = get_run_logger()
    with forwarded_logs():
        try:
            with open_run(config, progress=_ProgressArtifact(key_of("fuse-scene", config.output))) as opened:
                job: StagedJob = stage_task(opened)
                fuse_task(job, opened)
                product: Product = publish_task(job, opened)
        except ExpectedSkip as skip:
            # Nothing to do is not a failure: a nightly schedule meets finished products every night.
            logger.warning("skipped: %s", skip)
            return ended_as(f"nothing to do: {skip}", config.output)
    _report(product)
    logger.info("published %s", product.path)
    return ended(product)


class _ProgressArtifact:
    """The progress of the longest stage, tile by tile, in the UI; a call costs 9 ms, so small steps are dropped."""

    def __init__(self, key: str) -> None:
        self._key = key
        self._artifact: UUID | None = None
        self._shown = -_STEP_PERCENT

    def __call__(self, stage: str, done: int, total: int, pace: Pace | None = None) -> None:
        """See `pipeline.progress.Progress`."""
        if stage != "fuse":
            return
        told = f"tiles fused: {done} of {total}" + (f" ({pace})" if pace else "")
        percent = 100.0 * done / max(total, 1)
        if percent - self._shown < _STEP_PERCENT and done < total:
            return
        self._shown = percent
        if self._artifact is None:
            made = create_progress_artifact(progress=percent, key=f"{self._key}-tiles", description=told)
            self._artifact = made if isinstance(made, UUID) else None
        else:
            update_progress_artifact(artifact_id=self._artifact, progress=percent, description=told)


def _report(product: Product) -> None:
    facts = product.provenance["product"]
    method, registration = product.provenance["method"], product.provenance["registration"]
    rows = {
        "product": str(product.path),
        "method": method["name"],
        "grid": f"{facts['shape'][0]} x {facts['shape'][1]} px",
        "bands": f"{len(facts['wavelength_nm'])} ({facts['wavelength_nm'][0]:.0f}-{facts['wavelength_nm'][-1]:.0f} nm)",
        "valid": f"{100 * facts['valid_fraction']:.2f} %",
        "registration": f"{registration['decision']}: {registration['reason']}",
        "tiles": f"{product.provenance['tiles']['finished']} ({product.provenance['tiles']['resumed']} resumed)",
        "quality": product.provenance["quality"]["state"],
        "job": product.job_key,
    }
    show_product(product, rows, key=key_of("fuse-scene", product.path))
