"""What `provenance.json` holds, as typed records; its JSON schema is that of `Provenance`."""

from __future__ import annotations

from typing import Any, Literal

from affine import Affine
from odc.geo.geobox import GeoBox
from pydantic import Field

from hyperfuse.catalogs.scene import Quantity
from hyperfuse.pipeline.job.json_record import JsonRecord
from hyperfuse.pipeline.job.records import InputRecord
from hyperfuse.pipeline.observation.harmonize import Harmony
from hyperfuse.pipeline.observation.sensor_model import Observation
from hyperfuse.pipeline.quality.records import QualitySummary
from hyperfuse.pipeline.registration.record import Registration
from hyperfuse.pipeline.stage_times import StageTime

SCHEMA = "hyperfuse-provenance/1"


class ProductFacts(JsonRecord):
    """What anybody can check on a product itself, without the job: every format is read back against this."""

    name: str
    """Identifier: the folder's name when it was published."""
    crs: str
    """CRS as the job names it, `EPSG:32633` for example."""
    crs_wkt: str
    """The same in WKT."""
    shape: tuple[int, int]
    """Rows and columns."""
    transform: tuple[float, float, float, float, float, float]
    """From pixels (column, row) to coordinates: a, b, c, d, e, f."""
    wavelength_nm: list[float]
    """Band centers (nm), in the order of the cube."""
    fwhm_nm: list[float | None]
    """Full width at half maximum (nm) of each band; None where it is not known."""
    source_band: list[int]
    """Position of each band in the hyperspectral input, from 0."""
    quantity: Quantity
    """What the samples measure."""
    unit: str
    """Unit of the physical values."""
    dtype: Literal["int16", "float32"]
    """Type of the stored samples."""
    scale: float
    """Physical value of one stored count; 1 for floats."""
    offset: float
    """Physical value of stored 0."""
    nodata: int | None
    """Stored value of samples that are not valid; None for NaN."""
    valid_fraction: float
    """Share of samples that are valid."""
    clipped_samples: int
    """Samples that were set to an end of the range of counts."""
    formats: tuple[str, ...]
    """Names of the formats that were published."""
    overviews: bool = False
    """Whether the Zarr product has overviews beside it."""
    error_scale: float | None = None
    """Physical value of one stored count of a standard error; None without standard errors."""

    @property
    def geobox(self) -> GeoBox:
        """Grid of the product."""
        return GeoBox(self.shape, Affine(*self.transform), self.crs_wkt)


class SceneFacts(InputRecord):
    """An input as it was opened, and what of it was not used."""

    excluded_bands_nm: list[float]
    """Centers (nm) of the bands that carry signal and were left out nevertheless."""


class ObservationFacts(Observation):
    """The observation model, with what goes with it."""

    ratio: int
    """Fine pixels per coarse pixel."""
    psf: Literal["gaussian"]
    """Shape of the PSF."""
    lead: tuple[int, int]
    """Fine rows and columns before the first coarse pixel that lies whole in the product."""


class MethodFacts(JsonRecord):
    """The method of fusion."""

    name: str
    title: str
    paper: str
    """Reference, with its DOI where it has one."""
    code: str
    """Whose code computes it, and its license."""
    weights_sha256: str | None
    """Digest of the weight file; None of a method that needs none."""
    weights: dict[str, Any] | None
    """Card of the weight file."""
    base: str | None
    """Method to which the network adds a residual; None of one that stands alone."""
    residual: dict[str, Any] | None
    """Whether the residual was applied, and why."""
    parameters: int
    """Number of trained parameters."""
    precision: str
    """Arithmetic of the forward passes."""
    exact_tiling: bool
    """Whether a tile's samples are those of the whole scene fused at once."""
    halo: int
    """Pixels around a tile that its samples depend on."""
    strict: bool
    """Whether the product was projected back onto the HSI."""


class TileFacts(JsonRecord):
    """How the work was cut."""

    core: int
    """Edge of a tile, fine pixels."""
    shape: tuple[int, int] | None = None
    """Rows and columns of tiles; an area has none."""
    finished: int
    resumed: int
    """Tiles that an earlier run had finished."""
    redundancy: float | None = None
    """Pixels that were computed over pixels of the product."""


class FacilityFacts(JsonRecord):
    """Where it was computed."""

    host: str
    platform: str
    devices: list[str] | None = None


class SamplesFacts(JsonRecord):
    """What decides the samples, apart from how they are published."""

    key: str
    """SHA-256 of everything that decides them."""
    code: str
    """Version of this software, with a digest of the sources that decide them."""


class Provenance(JsonRecord):
    """How a fused product came to be: everything needed to compute it again, and to trust it."""

    schema_: str = Field(alias="schema")
    """Name and version of this schema."""
    job_key: str
    """SHA-256 of everything that decides the content."""
    samples: SamplesFacts
    product: ProductFacts
    inputs: dict[Literal["hsi", "msi"], SceneFacts]
    config: dict[str, Any]
    """Settings of the run, all of them: `hyperfuse fuse --config` takes them."""
    registration: Registration
    observation: ObservationFacts
    harmony: Harmony | None
    """How the MSI was brought to the radiometry of the HSI; None if it was not asked for."""
    method: MethodFacts
    tiles: TileFacts
    pace: dict[str, int | float | None]
    """Of the run that finished it."""
    stages: tuple[StageTime, ...] = ()
    """What each stage cost until the formats were written, over all runs of the job; reading back and sealing come after."""
    software: dict[str, str]
    """Versions by package; `code_version` is that of HyperFuse with a digest of its sources."""
    facility: FacilityFacts
    started: str
    """RFC 3339, UTC."""
    ended: str
    """RFC 3339, UTC."""
    quality: QualitySummary | None = None
    """The few numbers of `qa.json` that the STAC item has too."""
