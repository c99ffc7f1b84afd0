"""RunConfig: everything that decides one fusion, checked whole before anything is opened."""

from __future__ import annotations

import difflib
import json
import logging
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from hyperfuse.catalogs.addresses import refuse_secrets, without_user
from hyperfuse.catalogs.errors import UsageError
from hyperfuse.catalogs.remote.fetching import Fetching
from hyperfuse.catalogs.scene import Quantity
from hyperfuse.catalogs.sensors import Source
from hyperfuse.models import available
from hyperfuse.pipeline import formats
from hyperfuse.pipeline.cores import memory_budget_gb

_PLACE_AND_SCHEDULE = {"output", "device", "dask", "dask_wait_s", "store", "weights", "quality", "fetch"}
_PUBLICATION = ("formats", "uncertainty", "license", "overviews")
"""Settings of `publish` that decide what is made of the fused samples; the others decide the samples as they are stored."""
_RENAMED = {"network": "method", "observe": "sensor_model", "learned": "residual"}
"""Names of settings before 0.1.0, accepted until 0.2.0."""
log = logging.getLogger(__name__)


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _no_secrets(cls, value: object) -> object:
        return refuse_secrets(value)


class SceneConfig(_Frozen):
    """Where an image is, and what its file does not tell."""

    uri: str = Field(min_length=1)
    """File, folder, glob of tiles on one lattice, https:// or s3:// address of a file or STAC item, or `synthetic:` address."""
    sensor: str | None = None
    """Reader; found from the file unless given."""
    crs: str | None = None
    """CRS of a file that carries none, for example EPSG:32633."""
    wavelengths: str | None = None
    """CSV table (center_nm, fwhm_nm, good) or numbers separated by commas, in file order."""
    scale: float | None = Field(default=None, gt=0)
    """Factor from stored to physical values, for example 1e-4."""
    offset: float | None = None
    """Physical value of stored 0."""
    nodata: float | None = None
    """Stored value that means no data."""
    quantity: Quantity | None = None
    """What the samples measure."""
    variable: str | None = None
    """Variable of a NetCDF or Zarr source that holds several, or those of the bands (B04,B03), with @DATE; of a pattern, its bands."""
    fill: Literal["mask", "keep"] | None = None
    """`keep` takes pixels that hold one value in all bands for data; without it they are masked as undeclared fill, and told."""
    mask: str | None = None
    """Flags of the product's masks that make a pixel invalid, for example cloud,shadow, or none; the reader's choice unless given."""
    bands: str | None = None
    """Bands of a multispectral product to open, for example B02,B03,B04,B08; the reader's choice unless given."""
    responses: str | None = None
    """CSV table of measured spectral responses of an MSI: wavelength_nm, and a column per band; Gaussians unless given."""

    @field_validator("wavelengths", mode="before")
    @classmethod
    def _one_or_more_numbers(cls, value: object) -> object:
        # One number, or a list of them, is not the text that it was on the command line.
        if isinstance(value, int | float) and not isinstance(value, bool):
            return str(value)
        return ",".join(str(v) for v in value) if isinstance(value, list | tuple) else value

    @field_validator("crs", mode="before")
    @classmethod
    def _a_code_of_epsg(cls, value: object) -> object:
        return f"EPSG:{value}" if isinstance(value, int) and not isinstance(value, bool) else value

    def source(self) -> Source:
        """The same for the catalogs."""
        return Source(**self.model_dump())


class AlignConfig(_Frozen):
    """Co-registration and the common grids."""

    reference: Literal["msi", "hsi"] = "msi"
    """Image whose lattice the product keeps; it is never resampled."""
    estimate: bool = True
    """Estimate the displacement of the MSI against the HSI, and fold it into the resampling of the other image."""
    max_shift_px: float = Field(default=10.0, ge=1, le=64)
    """Largest displacement searched, in coarse pixels."""
    east_m: float | None = None
    """Known move, east (m), that brings the MSI onto the HSI; switches the estimate off."""
    north_m: float | None = None
    """Known move, north (m), that brings the MSI onto the HSI; switches the estimate off."""
    most: Literal["shift", "affine", "field"] = "field"
    """Model of the displacement with most freedom that may be chosen; simpler ones are, where they predict as well."""
    min_explained: float = Field(default=0.3, ge=0, lt=1)
    """Share of the variance that a wrong place leaves unexplained which the right one must explain in the better quarter of the
    scene: less, and the images are taken to show different things; up to half as much more, and the match is doubted."""
    min_tie_points: int = Field(default=3, ge=1)
    """Fewer that agree, and the displacement is refused; with fewer than twice as many it is doubted."""
    min_agreement: float = Field(default=0.5, gt=0, le=1)
    """Share of the tie points that must agree with the displacement; with less than halfway to all it is doubted."""
    max_residual_px: float = Field(default=0.5, gt=0)
    """Root mean square distance (coarse px) that tie points may keep; from half of it the displacement is doubted."""
    on_refuse: Literal["refuse", "keep"] = "refuse"
    """When no displacement can be believed: `refuse` ends a fusion with exit code 7, because a fusion of images that do not
    lie on each other is worse than none; `keep` fuses with the geometry as it is and says so in product and log."""
    bounds: tuple[float, float, float, float] | None = None
    """Product extent (left, bottom, right, top) in the reference's CRS; the overlap of the scenes unless given."""


class HarmonizeConfig(_Frozen):
    """Bringing the MSI to the radiometry of the HSI; see `pipeline.observation.harmonize`."""

    stripes: Literal["auto", "off"] = "auto"
    """`auto` takes the gains of the HSI's columns out of it where the MSI shows that they are those of its detectors."""
    mode: Literal["auto", "off", "require"] = "auto"
    """`auto` corrects what lies within the limits and warns of the rest; `off` leaves the MSI as it is; `require` ends a fusion
    with exit code 7 where the MSI differs from the HSI by more than is corrected."""
    min_gain: float = Field(default=0.85, gt=0)
    """Smallest gain of an MSI band that is corrected."""
    max_gain: float = Field(default=1.15, gt=0)
    """Largest gain of an MSI band that is corrected."""
    max_offset: float = Field(default=0.02, ge=0)
    """Largest offset of an MSI band that is corrected, either way, reflectance."""
    min_r2: float = Field(default=0.9, ge=0, le=1)
    """A fit is believed if it explains at least this share of the variance of the pixels near its line ..."""
    max_error: float = Field(default=0.05, gt=0)
    """... and if the standard error of the gain is at most this share of it."""

    @field_validator("mode", "stripes", mode="before")
    @classmethod
    def _off_is_a_word(cls, value: object) -> object:
        return "off" if value is False else value  # YAML 1.1 reads off as false


class TileConfig(_Frozen):
    """How the work is cut."""

    core: int | None = Field(default=None, ge=32, le=8192)
    """Edge of a tile in fine pixels, a multiple of `chunk`; what the method prefers unless given."""
    chunk: int = Field(default=256, ge=16, le=4096)
    """Edge of a Zarr chunk in fine pixels."""
    chunk_bands: int = Field(default=32, ge=1)
    """Bands per Zarr chunk."""
    batch: int = Field(default=4, ge=1)
    """Tiles per task of a cluster."""
    at_once: int | None = Field(default=None, ge=1)
    """Tiles in one call of the method; as many as the device holds unless given, on a CPU one."""
    memory_gb: float = Field(default_factory=memory_budget_gb, gt=0)
    """Memory (GB) of a process, 8 or 0.7 of what it may use unless given: tiles are cut so that it suffices, and a run that is predicted to need more is refused
    before it starts."""
    retry_quarantined: bool = False
    """Fuse tiles again that were set aside because the workers that fused them died."""


class OutputConfig(_Frozen):
    """What is published."""

    formats: tuple[str, ...] = ("zarr", "cog", "stac")
    """Writers, by module name."""
    dtype: Literal["int16", "float32"] = "int16"
    """Sample type; int16 with scale 1e-4 for reflectance."""
    uncertainty: bool = False
    """Beside the cube a standard error for every sample, calibrated at reduced resolution; in the formats Zarr and NetCDF."""
    license: str = "other"
    """SPDX identifier, or `other`; goes to the STAC item."""
    replace: bool = False
    """Swap the new version with the product that stands at `output`; otherwise an output that exists is refused."""
    overviews: bool = False
    """Halved, quartered ... copies of the Zarr product in a group of their own beside it."""

    @field_validator("formats")
    @classmethod
    def _known_formats(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if not value or (unknown := sorted(set(value) - set(formats.available()))):
            raise ValueError(
                f"there is no format {unknown[0] if value else ''!r}; choose some of {', '.join(formats.available())}"
            )
        return value

    @model_validator(mode="after")
    def _overviews_of_something(self) -> OutputConfig:
        if self.overviews and "zarr" not in self.formats:
            raise ValueError(
                f"overviews are those of the format zarr; add it to publish.formats ({', '.join(self.formats)})"
            )
        return self


class QualityConfig(_Frozen):
    """What a product must reach to be published without a warning; a limit that is None follows from the scene."""

    gate: Literal["warn", "refuse", "off"] = "warn"
    """What a missed limit means: a product `published with warnings`, none at all (exit code 7), or nothing. `warn` publishes
    none either where `refuse_msi_r2` is missed."""
    max_hsi_sam_deg: float | None = Field(default=None, gt=0)
    """Mean spectral angle (degrees) between the degraded product and the HSI; None: what the HSI's noise makes of it, and half of
    what single pixels alone show."""
    max_hsi_bias: float | None = Field(default=None, gt=0)
    """Mean error of a band of the degraded product, as a share of the band's mean in the HSI; the worst band counts. None: 0.01,
    or a tenth of the band's noise where that is more."""
    min_msi_r2: float | None = Field(default=None, ge=0, le=1)
    """Mean share of the MSI's variance that the product explains through the SRF, after a gain and an offset; bands count
    of whose response at least half lies under HSI bands. None: 0.98, or less where the HSI does not predict the degraded MSI."""
    refuse_msi_r2: float = Field(default=0.5, ge=0, le=1)
    """Where `min_msi_r2` is missed and this too, no product is published under `warn` either: the two images do not lie on each
    other, or do not show the same. Not asked of a method that takes nothing from the MSI; 0 refuses nothing."""
    max_seam: float = Field(default=0.05, gt=0)
    """Gradient across the lines between tiles over that beside them, less 1, in either direction; twice what scenery alone
    makes of it is added, because small products have few lines."""
    max_implausible: float | None = Field(default=None, ge=0)
    """Share of samples that are no reflectance; None: 0.001 more than the HSI's noise makes."""
    min_valid: float = Field(default=0.5, ge=0, le=1)
    """Share of the pixels seen, by the image that shows less of the place, that must be valid in the product."""
    better_than_bicubic: bool = True
    """At reduced resolution the method must have a smaller SAM and ERGAS than cubic interpolation."""

    @field_validator("gate", mode="before")
    @classmethod
    def _off_is_a_word(cls, value: object) -> object:
        return "off" if value is False else value  # YAML 1.1 reads off as false


class FetchConfig(_Frozen):
    """Scenes on servers."""

    cache: Path | None = None
    """Folder in which fetched files are kept; that of the environment variable HYPERFUSE_CACHE, else ~/.cache/hyperfuse."""
    max_gb: float | None = Field(default=None, gt=0)
    """Largest file (GB) that is fetched; HYPERFUSE_FETCH_MAX_GB, else 64."""

    def fetching(self) -> Fetching:
        """The same for the catalogs, with what the environment says."""
        return Fetching.of(self.cache, self.max_gb)


class RunConfig(_Frozen):
    """One fusion: two scenes in, one product out."""

    hsi: SceneConfig
    """Low-resolution hyperspectral image."""
    msi: SceneConfig
    """High-resolution multispectral image."""
    output: Path
    """Product folder; must not exist, its parent must."""
    method: str = "map_subspace"
    """Fusion method, a network or a classical one; `hyperfuse methods` lists them."""
    weights: Path | None = None
    """Trained weights of a network, a safetensors file with a card."""
    residual: Literal["auto", "always", "never"] = "auto"
    """Whether a universal network's residual is applied: `auto` asks the scene itself, at reduced resolution."""
    ratio: int | None = Field(default=None, ge=2, le=20)
    """Fine pixels per coarse pixel; the rounded ratio of the ground sampling distances unless given."""
    psf_mtf: float | None = Field(default=None, gt=0, lt=1)
    """Modulation of the HSI at its Nyquist frequency; the sensor's own unless given."""
    sensor_model: Literal["auto", "tables", "blind"] = "auto"
    """PSF and SRF: `auto` measures the PSF on the pair and takes it where the scene tells it, else that of the sensor's table or
    of `psf_mtf`, and the SRF of the tables; `tables` measures neither, `blind` both."""
    strict: bool = False
    """Correct the product by back-projection until it agrees with the HSI within the HSI's noise."""
    align: AlignConfig = AlignConfig()
    """Co-registration and grids."""
    harmonize: HarmonizeConfig = HarmonizeConfig()
    """Radiometry of the MSI."""
    tiles: TileConfig = TileConfig()
    """Tiles, chunks and the memory budget."""
    publish: OutputConfig = OutputConfig()
    """Formats of the product."""
    fetch: FetchConfig = FetchConfig()
    """Scenes on servers."""
    quality: QualityConfig = QualityConfig()
    """Limits that decide whether the product is published, and with which words."""
    device: str = "auto"
    """`auto` takes CUDA, then CPU; `cpu`, `cuda` or `cuda:N` is an error where it is missing."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "fp32"
    """Arithmetic of networks; half precision is faster on a GPU, and tiles then agree to its rounding only. `auto` takes
    bf16 where the device has it."""
    dask: str | None = None
    """`local` for worker processes here, or a Dask scheduler by its address or its JSON file; in this process unless given."""
    dask_wait_s: float = Field(default=300.0, gt=0)
    """Seconds to wait for a worker while there is none: a cluster that grows on demand starts without, and one may lose all."""
    store: str | None = None
    """Path or URL (s3://, file://, memory://) through which workers are given their part of the job and give it back, for
    workers that do not see the folder of the product; they use that folder itself unless given."""

    @field_validator("hsi")
    @classmethod
    def _no_curves(cls, value: SceneConfig) -> SceneConfig:
        if value.responses is not None:
            raise ValueError("hsi.responses is not used: only the responses of the MSI are; give msi.responses")
        return value

    @model_validator(mode="before")
    @classmethod
    def _current_names(cls, value: object) -> object:
        return current_names(value) if isinstance(value, Mapping) else value

    @field_validator("method")
    @classmethod
    def _known_method(cls, value: str) -> str:
        if value not in available():
            raise ValueError(f"there is no method {value!r}; choose one of {', '.join(available())}")
        return value

    @field_validator("tiles")
    @classmethod
    def _whole_chunks(cls, value: TileConfig) -> TileConfig:
        if value.core is not None and value.core % value.chunk:
            raise ValueError(
                f"core={value.core} must be a multiple of chunk={value.chunk}: two tiles that share a chunk overwrite each other"
            )
        return value

    def decisive(self) -> dict[str, Any]:
        """What decides the product's content: no place, no device, no schedule."""
        # Limits decide whether a product is published, not what is in it.
        record = self.model_dump(mode="json", exclude=_PLACE_AND_SCHEDULE)
        for scene in ("hsi", "msi"):
            del record[scene]["uri"]  # the content's digest stands for it
        for schedule in ("batch", "at_once", "memory_gb", "retry_quarantined"):
            del record["tiles"][schedule]
        del record["publish"]["replace"]
        return record

    def decides_samples(self) -> dict[str, Any]:
        """The part of `decisive` that decides the fused samples, their type and their chunks: with the same, tiles are kept."""
        record = self.decisive()
        for name in _PUBLICATION:
            del record["publish"][name]
        return record

    def decides_publication(self) -> dict[str, Any]:
        """The rest of `decisive`: what is made of the samples."""
        record = self.decisive()["publish"]
        return {name: record[name] for name in _PUBLICATION}


def current_names(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of a fusion under the names that they have now; an old name is told in the log.

    Raises
    ------
    UsageError
        If a setting is given under both of its names.
    """
    record = dict(settings)
    for old, new in _RENAMED.items():
        if old in record:
            if new in record:
                raise UsageError(f"settings {old} and {new} are two names of one; keep {new}")
            record[new] = record.pop(old)
            log.warning("setting %s is called %s now; the old name is accepted until HyperFuse 0.2", old, new)
    return record


def load_config(path: Path | None, settings: dict[str, Any]) -> RunConfig:
    """A RunConfig from a file, with single settings laid over it.

    Parameters
    ----------
    path : Path or None
        YAML, TOML or JSON.
    settings : dict
        Dotted keys, for example `{"align.reference": "hsi"}`; strings are read as YAML scalars.

    Raises
    ------
    UsageError
        If the file cannot be read, a key is unknown, or a value is out of range; the message names the key.
    """
    read = {} if path is None else current_names(read_mapping(path))
    # Null is not given: so reads a group of which every line is a comment, too.
    record = {name: value for name, value in read.items() if value is not None}
    lay_over(record, current_names(settings))
    try:
        return RunConfig.model_validate(record)
    except ValidationError as error:
        raise usage_error(error, RunConfig) from error


def lay_over(record: dict[str, Any], settings: Mapping[str, Any]) -> None:
    """Put single settings into a record of settings, in place.

    Parameters
    ----------
    record : dict
    settings : mapping
        Dotted keys, for example `{"align.reference": "hsi"}`; strings are read as YAML scalars.

    Raises
    ------
    UsageError
        If a key asks for a part of what is no group of settings.
    """
    for dotted, value in settings.items():
        *parents, leaf = dotted.split(".")
        place = record
        for parent in parents:
            place = place.setdefault(parent, {})
            if not isinstance(place, dict):
                raise UsageError(f"setting {dotted}: {parent} is not a group of settings")
        place[leaf] = _scalar(value) if isinstance(value, str) else value


def load_scene(uri: str, settings: dict[str, str]) -> SceneConfig:
    """A SceneConfig of an address and of settings such as `{"mask": "none"}`; errors are those of `load_config`."""
    # Readers name settings as those of a pair, hsi.crs or msi.crs: what they ask for is understood here too.
    own = {key.removeprefix("hsi.").removeprefix("msi."): _scalar(value) for key, value in settings.items()}
    try:
        return SceneConfig.model_validate({"uri": uri, **own})
    except ValidationError as error:
        raise usage_error(error, SceneConfig) from error


def usage_error(error: ValidationError, model: type[BaseModel] | None = None) -> UsageError:
    """The first mistake in a configuration as a sentence that names its key, and for a key of `model` the nearest name."""
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"]) or "the configuration"
    if first["type"] == "missing":
        return UsageError(f"setting {where} is missing; give it on the command line or in the file")
    if first["type"] == "extra_forbidden":
        near = _nearest(where, list(_names(model))) if model else None
        return UsageError(f"setting {where} is unknown; " + (f"did you mean {near}?" if near else "correct its name"))
    return UsageError(f"setting {where}: {first['msg'].removeprefix('Value error, ')}; {_found(first.get('input'))}")


def _found(given: object) -> str:
    return without_user(f"found {given!r}")


def _names(model: type[BaseModel], group: str = "") -> Iterator[str]:
    """Dotted names of all settings of a model."""
    for name, field in model.model_fields.items():
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            yield from _names(inner, f"{group}{name}.")
        else:
            yield f"{group}{name}"


def _nearest(where: str, names: list[str]) -> str | None:
    """The setting that was meant: the same name in another group, or one that differs by a few letters."""
    leaf = where.rpartition(".")[2]
    same = [name for name in names if name.rpartition(".")[2] == leaf]
    return next(iter(same or difflib.get_close_matches(where, names, n=1, cutoff=0.7)), None)


def read_mapping(path: Path) -> dict[str, Any]:
    """The settings of a YAML, TOML or JSON file.

    Raises
    ------
    UsageError
        If it cannot be read, or holds no mapping.
    """
    try:
        text = path.read_text(encoding="utf-8")
        if path.suffix == ".toml":
            record: Any = tomllib.loads(text)
        elif path.suffix == ".json":
            record = json.loads(text)
        else:
            record = yaml.safe_load(text)
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror}); check the path") from error
    except (ValueError, yaml.YAMLError) as error:
        told = " ".join(str(error).split())
        raise UsageError(f"{path}: cannot be read as a configuration ({told})") from error
    if not isinstance(record, dict):
        raise UsageError(f"{path}: expected a mapping of settings, found {type(record).__name__}")
    return record


def _scalar(value: str) -> Any:
    try:
        read = yaml.safe_load(value)
    except yaml.YAMLError:
        return value
    if isinstance(read, str):
        # YAML 1.1 reads 1e-4 as text because it has no point.
        try:
            return float(read)
        except ValueError:
            return read
    return value if read is None and value not in {"null", "~"} else read
