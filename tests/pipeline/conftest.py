"""A finished job, made by hand: everything that `publish` needs, without staging or fusion."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from odc.geo.geobox import GeoBox

from hyperfuse.catalogs.bands import Bands
from hyperfuse.pipeline.config import OutputConfig, RunConfig, SceneConfig, TileConfig
from hyperfuse.pipeline.geometry.grids import GridRecord, NestedGrids
from hyperfuse.pipeline.job import store
from hyperfuse.pipeline.job.completeness import mosaic
from hyperfuse.pipeline.job.encoding import NODATA
from hyperfuse.pipeline.job.folder import Job, StagedJob
from hyperfuse.pipeline.job.ledger import TileRecord
from hyperfuse.pipeline.job.records import ImageSums, InputRecord, JobRecord, StagedRecord
from hyperfuse.pipeline.job.seals import write_record
from hyperfuse.pipeline.job.template import create
from hyperfuse.pipeline.observation.sensor_model import Observation
from hyperfuse.pipeline.products.draft import Draft
from hyperfuse.pipeline.products.provenance import provenance
from hyperfuse.pipeline.registration.record import Registration

SCALE = 1e-4
HSI_TIME = datetime(2026, 6, 1, 10, 30, 5, 250000, tzinfo=UTC)
MSI_TIME = datetime(2026, 6, 2, 10, 40, tzinfo=UTC)
CREATED = datetime(2026, 11, 21, 12, 0, tzinfo=UTC)
ORIGINS = {"EPSG:32633": (500_000.0, 5_000_000.0, 10.0), "EPSG:4326": (14.0, 46.0, 0.0001)}


def truth(n_bands: int, shape: tuple[int, int]) -> np.ndarray[Any, Any]:
    """Physical values, float32, with a corner that is not valid."""
    y, x = np.mgrid[: shape[0], : shape[1]]
    plane = 0.2 + 0.1 * np.sin(x / 17) * np.cos(y / 23)
    cube = plane[None] * np.linspace(0.5, 1.5, n_bands)[:, None, None]
    cube[:, : shape[0] // 5, : shape[1] // 5] = np.nan
    return np.asarray(cube, np.float32)


def build_job(
    parent: Path,
    *,
    name: str = "fused",
    shape: tuple[int, int] = (70, 90),
    n_bands: int = 7,
    crs: str = "EPSG:32633",
    geobox: GeoBox | None = None,
    dtype: str = "int16",
    chunk: int = 32,
    core: int = 64,
    formats: tuple[str, ...] = ("zarr", "cog", "stac"),
    quantity: str = "reflectance",
    hsi_time: datetime | None = HSI_TIME,
    msi_time: datetime | None = MSI_TIME,
    span_nm: tuple[float, float] = (450.0, 900.0),
    cube: np.ndarray[Any, Any] | None = None,
    overviews: bool = False,
) -> Draft:
    """A staging folder with a complete mosaic, and the draft of its product; samples are those of `truth` unless given."""
    if geobox is None:
        left, top, gsd = ORIGINS[crs]
        geobox = GeoBox.from_bbox(
            (left, top - shape[0] * gsd, left + shape[1] * gsd, top), crs, shape=shape, tight=True
        )
    config = RunConfig(
        hsi=SceneConfig(uri="/data/hsi.tif"),
        msi=SceneConfig(uri="/data/msi.tif"),
        output=parent / name,
        method="bicubic",
        tiles=TileConfig(chunk=chunk, core=core, chunk_bands=4),
        publish=OutputConfig(formats=formats, dtype=dtype, overviews=overviews),
    )
    bands = Bands.sort(np.linspace(*span_nm, n_bands + 1), unit="nm", of="test", fwhm=np.full(n_bands + 1, 9.5))
    bands.fwhm_nm[0] = np.nan
    scene = {"sensor": "generic", "sha256": "0" * 64, "quantity": quantity, "crs": crs, "notes": ()}
    unit = "1" if quantity == "reflectance" else "W m-2 sr-1 nm-1"
    hsi, msi = (
        InputRecord(name=role, uri=uri, unit=unit, time=time, gsd_m=gsd, shape=(n, 9, 9), bands=b.to_json(), **scene)
        for role, uri, time, gsd, n, b in (
            ("hsi", "/data/hsi.tif", hsi_time, 30.0, n_bands + 1, bands),
            ("msi", "/data/msi.tif", msi_time, 10.0, 2, bands[[1, 2]] if n_bands > 1 else bands),
        )
    )
    grid = GridRecord.of(NestedGrids(product=geobox, ratio=3, lead=(0, 0)))
    record = JobRecord(key="ab" * 32, samples="ab" * 32, config=config, grid=grid, hsi=hsi, msi=msi, psf_sigma_px=1.4)
    job = Job(parent / f".{name}.abababababab.staging", record)
    job.folder.mkdir()
    (job.folder / "job.json").write_text(record.model_dump_json())
    write_record(job.folder / "staged.json", _staged(n_bands).model_dump_json())
    job = job.as_staged()
    create(job)
    _fill(job, truth(n_bands, shape) if cube is None else cube)
    summary = mosaic(job)
    started = datetime(2026, 11, 21, 11, 0, tzinfo=UTC)
    facts = provenance(job, summary, started=started, ended=CREATED, effort={"tiles": 0})
    return Draft(job=job, summary=summary, provenance=facts, created=CREATED)


def _staged(n_bands: int) -> StagedRecord:
    sums = ImageSums(kept=[], mean=[0.2] * n_bands, low=0.0, high=0.5, valid_fraction=0.96)
    registration = Registration(
        decision="accept", reason="clear peak", model="shift", east=1.0, north=-2.0, east_m=1.0, north_m=-2.0,
        correlation_before=0.8, correlation_after=0.95, band_nm=660.0,
    )  # fmt: skip
    # The first HSI band is not kept: the product's bands are not those of the file.
    hsi = sums.model_copy(update={"kept": list(range(1, n_bands + 1))})
    observation = Observation(
        psf_sigma_px=1.4, psf_origin="sensor", srf=((1.0 / n_bands,) * n_bands,), srf_origin="table", coverage=(1.0,)
    )
    msi = sums.model_copy(update={"kept": [0]})
    return StagedRecord(registration=registration, hsi=hsi, msi=msi, observation=observation, scale=SCALE)


def _fill(job: StagedJob, cube: np.ndarray[Any, Any]) -> None:
    array = store.open_array(job.fused, write=True)
    for tile in job.plan:
        physical = cube[:, *tile.core.slices]
        valid = np.isfinite(physical)
        stored = physical
        if array.dtype == np.int16:
            stored = np.where(valid, np.round(np.nan_to_num(physical) / SCALE), NODATA).astype(np.int16)
        store.write(array, tile.core, stored)
        digest = store.chunks_digest(job.fused, array, tile.core)
        assert digest is not None
        flat = [band[np.isfinite(band)] for band in physical]
        job.ledger.add(
            TileRecord(
                key=tile.key,
                sha256=digest,
                pixels=tile.core.shape[0] * tile.core.shape[1],
                valid=[band.size for band in flat],
                total=[float(band.sum()) for band in flat],
                low=[float(band.min()) if band.size else None for band in flat],
                high=[float(band.max()) if band.size else None for band in flat],
                clipped=0,
                seconds=0.1,
                device="cpu",
            )
        )


@pytest.fixture
def finished_job(tmp_path: Path) -> Callable[..., Draft]:
    """Factory of drafts in a fresh folder; see `build_job` for the options."""

    def build(**options: Any) -> Draft:
        return build_job(tmp_path, **options)

    return build
