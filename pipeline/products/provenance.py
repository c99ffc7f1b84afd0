"""The record of how a product came to be: everything needed to compute it again, and to trust it."""

from __future__ import annotations

import platform
import socket
import sys
from datetime import datetime
from importlib.metadata import version
from typing import Any

import rasterio
from pyproj import CRS

from hyperfuse.catalogs.times import rfc3339
from hyperfuse.models import method
from hyperfuse.pipeline.fusion.residual import load_gate
from hyperfuse.pipeline.job.completeness import MosaicSummary
from hyperfuse.pipeline.job.encoding import NODATA
from hyperfuse.pipeline.job.folder import StagedJob
from hyperfuse.pipeline.job.records import code_version, samples_code

SCHEMA = "hyperfuse-provenance/1"
_PACKAGES = ("hyperfuse", "numpy", "torch", "xarray", "dask", "zarr", "rasterio", "pyproj", "odc-geo", "scipy")


def provenance(
    job: StagedJob, summary: MosaicSummary, *, started: datetime, ended: datetime, effort: dict[str, Any]
) -> dict[str, Any]:
    """The record of a finished job, plain JSON.

    Parameters
    ----------
    job : StagedJob
    summary : MosaicSummary
    started, ended : datetime
        UTC, of the run that finished it.
    effort : dict
        Tiles that an earlier run had finished, and the pace of the run that fused the rest.
    """
    record, staged = job.record, job.staged
    card = method(job.config.network).card
    return {
        "schema": SCHEMA,
        "job_key": record.key,
        "samples": {"key": record.samples, "code": samples_code()},
        "product": product_facts(job, summary),
        "inputs": {
            role: scene.model_dump(mode="json") | {"excluded_bands_nm": _excluded(scene.bands, sums.kept)}
            for role, scene, sums in (("hsi", record.hsi, staged.hsi), ("msi", record.msi, staged.msi))
        },
        "config": job.config.model_dump(mode="json"),
        "registration": staged.registration.model_dump(mode="json"),
        "observation": {
            "ratio": record.grid.ratio,
            "psf": "gaussian",
            **staged.observation.model_dump(mode="json"),
            "lead": list(record.grid.lead),
        },
        "harmony": staged.harmony and staged.harmony.model_dump(mode="json"),
        "method": {
            "name": job.config.network,
            "title": card.title,
            "paper": card.paper,
            "code": card.code,
            "weights_sha256": record.weights["sha256"] if record.weights else None,
            "weights": record.weights,
            "base": job.spec.base,
            "learned": (gate := load_gate(job)) and gate.to_json(),
            "parameters": job.spec.parameters,
            "precision": " and ".join(summary.precisions),
            "exact_tiling": job.spec.exact,
            "halo": job.spec.halo,
            "strict": job.config.strict,
        },
        "tiles": {
            "core": job.plan.core,
            "shape": list(job.plan.shape),
            "finished": summary.n_tiles,
            "resumed": effort["tiles"],
            "redundancy": round(job.plan.redundancy, 4),
        },
        "pace": {key: value for key, value in effort.items() if key != "tiles"},
        "software": {
            "code_version": code_version(),
            "python": sys.version.split()[0],
            "gdal": rasterio.__gdal_version__,
            **{name: version(name) for name in _PACKAGES},
        },
        "facility": {"host": socket.gethostname(), "platform": platform.platform(), "devices": summary.devices},
        "started": rfc3339(started),
        "ended": rfc3339(ended),
    }


def product_facts(job: StagedJob, summary: MosaicSummary) -> dict[str, Any]:
    """What anybody can check on the product itself, without the job."""
    grid, bands = job.record.grid, job.bands
    integer = job.config.publish.dtype == "int16"
    return {
        "name": job.name,
        "crs": grid.crs,
        "crs_wkt": CRS.from_user_input(grid.crs).to_wkt(),
        "shape": list(grid.shape),
        "transform": list(grid.affine),
        "wavelength_nm": [float(v) for v in bands.center_nm],
        "fwhm_nm": bands.to_json()["fwhm_nm"],
        "source_band": [int(v) for v in bands.source_band],
        "quantity": job.record.hsi.quantity,
        "unit": job.record.hsi.unit,
        "dtype": job.config.publish.dtype,
        "scale": job.staged.scale if integer else 1.0,
        "offset": 0.0,
        "nodata": NODATA if integer else None,
        "valid_fraction": summary.valid_fraction,
        "clipped_samples": summary.clipped,
        "formats": list(job.config.publish.formats),
        "overviews": job.config.publish.overviews,
        **({"error_scale": job.error_scale if integer else 1.0} if job.config.publish.uncertainty else {}),
    }


def _excluded(bands: dict[str, list[Any]], kept: list[int]) -> list[float]:
    good = [i for i, flag in enumerate(bands["good"]) if flag]
    used = {good[k] for k in kept}
    return [nm for i, nm in enumerate(bands["center_nm"]) if i not in used]
