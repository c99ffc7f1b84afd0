"""TrainConfig: everything that decides one training, checked whole before anything is opened."""

from __future__ import annotations

import hashlib
import json
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from hyperfuse.catalogs.errors import UsageError
from hyperfuse.catalogs.references.cubes import CubeSource
from hyperfuse.catalogs.references.responses import band_set
from hyperfuse.models import available
from hyperfuse.pipeline.config import lay_over, read_mapping, usage_error
from hyperfuse.pipeline.observation.protocol import Protocol

LossName = Literal["pixel", "absolute", "relative", "sam", "sam-released", "beba", "beba-released", "wavelet"]
"""Functions of `models.losses` of an output and its target."""
DistillName = Literal["response", "feature"]
"""Functions of `models.losses` of a student and its teacher."""
UNIVERSAL = "universal"
"""Module of the networks that work on the estimate's planes."""
_PLACE_AND_LENGTH = {"output", "device", "devices", "workers", "tensorboard", "steps", "every", "save_minutes"}
_REFINEMENTS = {"warmup": 0, "clip": None, "average": None}
"""Settings that are part of the key only where they do something: trainings without them keep the key that they had."""


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)


class CubeConfig(_Frozen):
    """An image, and what its file does not tell; the fields are those of `catalogs.references.cubes.CubeSource`."""

    uri: str = Field(min_length=1)
    """Scene, MATLAB file or `synthetic:truth` address."""
    license: str = "unknown"
    """SPDX identifier or terms of the data; goes to the card."""
    variable: str | None = None
    """Array of a file that holds several."""
    wavelengths: str | None = None
    """CSV table or numbers separated by commas, in file order."""
    table_rows: str | None = None
    """Rows of `wavelengths` that the file's bands are, 1-based."""
    bad: str | None = None
    """Bands of the file that are left out, 1-based, such as `1-6,33-35`."""
    axes: str | None = None
    """Axes of a MATLAB array."""
    rows: int | None = None
    """Rows of the image in a matrix of spectra."""
    crs: str | None = None
    """CRS of a scene whose file has none."""
    absorption: bool = True
    """Whether bands in absorption ranges are left out."""

    def source(self) -> CubeSource:
        """The same for the catalogs."""
        return CubeSource(**self.model_dump(include={field.name for field in fields(CubeSource)}))


Cubes = TypeVar("Cubes", bound=CubeConfig)


class GroundConfig(CubeConfig):
    """A scene or cube: the truth of its pair."""

    msi: str | None = None
    """A real MSI of the place. Both are then degraded by the ratio and bring their own noise; without it the MSI is
    simulated."""

    @model_validator(mode="after")
    def _scene_if_paired(self) -> Self:
        if self.msi is not None and (self.axes, self.rows, self.table_rows, self.bad) != (None,) * 4:
            raise ValueError("axes, rows, table_rows and bad belong to a cube; a scene with an MSI of its own has none")
        return self


class LibraryConfig(CubeConfig):
    """Spectra of materials."""

    uri: str = Field(min_length=1)
    """ENVI spectral library (data or header), ENVI image whose pixels are spectra, or a cube."""
    pixels: bool = False
    """The file is a cube, opened as one, and its pixels are the spectra."""


class GeneratedConfig(_Frozen):
    """Scenes made of real fine images and real spectra; see `pipeline.training.generated.scenes`."""

    images: tuple[CubeConfig, ...] = Field(min_length=1)
    """Fine images of a few bands, in their own unit: the spatial structure. Each scene is a part of one of them."""
    libraries: tuple[LibraryConfig, ...] = Field(min_length=1)
    """Spectra of materials."""
    count: int = Field(default=16, ge=1)
    """Scenes to learn from."""
    size_px: int = Field(default=192, ge=32, le=1024)
    """Edge of a scene in fine pixels."""
    seed: int = Field(default=0, ge=0)
    """With the number of a scene it decides all of it."""
    bands: str | None = None
    """Table of the bands (CSV), such as that of a sensor, or their centers. Without one the scenes have those of the first of `scenes`, or
    of `held_out`; for a universal network each has bands of its own."""
    materials: tuple[int, int] = (8, 24)
    """Fewest and most materials of a scene."""
    softness: tuple[float, float] = (0.6, 1.6)
    """Range of how far materials reach into each other: small is a mosaic of fields, large is a mixture everywhere."""
    impurity: tuple[float, float] = (0.0, 0.3)
    """Range of the share of the scene's mean spectrum in every material."""
    natural: float = Field(default=0.7, ge=0, le=1)
    """Share of the scenes whose materials are chosen by the image's colors; in the others they are any."""
    variety: float = Field(default=3.0, ge=0, le=4)
    """How much the spectrum of a material wanders among its kin; 0 is their mean everywhere."""
    snr_db: tuple[float, float] = (38.0, 50.0)
    """Range of the mean square of a band over the variance of the truth's own white noise (dB)."""
    tilt: float = Field(default=0.07, ge=0, le=0.3)
    """Standard deviation of the slopes over the spectrum that wander over the land."""

    def to_json(self) -> dict[str, Any]:
        """What a card says of it: names of the sources, whose places mean nothing elsewhere, and all settings."""
        sources = {
            part: [{"name": Path(source.uri).name, "license": source.license} for source in getattr(self, part)]
            for part in ("images", "libraries")
        }
        bands = None if self.bands is None else Path(self.bands).name
        return self.model_dump(mode="json") | sources | {"bands": bands}

    @model_validator(mode="after")
    def _increasing(self) -> Self:
        if not (2 <= self.materials[0] <= self.materials[1] <= 200 and 0 < self.softness[0] <= self.softness[1]):
            raise ValueError("materials: two numbers from 2 to 200, softness: two above 0, both increasing")
        return self


class SimulationConfig(_Frozen):
    """How pairs are made of what is true; see `pipeline.observation.protocol.Protocol`."""

    ratio: int = Field(default=4, ge=2, le=20)
    """Fine pixels per coarse pixel along one axis."""
    msi: str = "s2-4"
    """Bands of the simulated MSI."""
    mtf_nyquist: float = Field(default=0.3, gt=0, lt=1)
    """Modulation of the HSI's Gaussian PSF at its Nyquist frequency."""
    psf: Literal["gaussian", "block"] = "gaussian"
    """`block` cuts the Gaussian to the coarse pixel itself."""
    psf_sigma_px: float | None = Field(default=None, gt=0)
    """Standard deviation of the Gaussian in fine pixels; that of `mtf_nyquist` unless given."""
    hsi_snr_db: float | None = 35.0
    """Mean square of an HSI band over the variance of its white noise (dB); null is no noise."""
    msi_snr_db: float | None = None
    """The same of the MSI."""

    @field_validator("msi")
    @classmethod
    def _known_bands(cls, value: str) -> str:
        try:
            return band_set(value).name
        except UsageError as error:
            raise ValueError(str(error)) from error

    def protocol(self, *, noise: bool, seed: int = 0) -> Protocol:
        """The same for `simulate`."""
        settings = self.model_dump() | ({} if noise else {"hsi_snr_db": None, "msi_snr_db": None})
        return Protocol(**settings, seed=seed)


class SampleConfig(_Frozen):
    """Patches and their variation."""

    patch: int = Field(default=32, ge=4)
    """Edge of a patch in coarse pixels."""
    batch: int = Field(default=8, ge=1)
    """Patches per step, of all devices together."""
    turns: bool = True
    """Flips and quarter turns, the eight of a square equally often."""
    shift_px: float = Field(default=0.0, ge=0, le=1)
    """Largest displacement of the HSI against MSI and truth along each axis, in fine pixels."""
    gain: float = Field(default=0.0, ge=0, lt=1)
    """The brightness of both images and the truth varies by up to this share."""
    msi_gain: float = Field(default=0.0, ge=0, lt=1)
    """The brightness of each MSI band varies by up to this share against all else."""


class VariationConfig(_Frozen):
    """Pairs that a universal network learns from, each by draws of its own; `simulation` then makes those held out."""

    pairs: int = Field(default=4, ge=1)
    """Pairs of each scene."""
    ratios: tuple[Annotated[int, Field(ge=2, le=20)], ...] = Field(default=(3, 4, 6), min_length=1)
    """Fine pixels per coarse pixel, one of these."""
    msis: tuple[str, ...] = Field(default=("s2-4", "s2-6"), min_length=1)
    """Bands of the simulated MSI, one of these sets ..."""
    least_bands: int = Field(default=3, ge=1)
    """... of which any number of bands is left, down to this."""
    mtf_nyquist: float = Field(default=0.3, gt=0, lt=1)
    """Modulation of the HSI's Gaussian PSF at its Nyquist frequency."""
    noise_free: float = Field(default=0.2, ge=0, le=1)
    """Share of pairs without noise."""
    hsi_snr_db: tuple[float, float] = (30.0, 45.0)
    """Of the others: least and most of the mean square of an HSI band over the variance of its white noise (dB)."""
    msi_snr_db: tuple[float, float] = (35.0, 50.0)
    """The same of the MSI."""
    shift_px: float = Field(default=0.0, ge=0, le=1)
    """Largest displacement of the HSI against MSI and truth along each axis, in fine pixels."""
    msi_gain: float = Field(default=0.0, ge=0, lt=1)
    """The brightness of each MSI band varies by up to this share against all else."""

    @field_validator("msis")
    @classmethod
    def _known_sets(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        try:
            return tuple(band_set(name).name for name in value)
        except UsageError as error:
            raise ValueError(str(error)) from error


class TrainConfig(_Frozen):
    """Scenes in, one weight file out."""

    network: str
    """Network to train; `hyperfuse methods` lists them."""
    teacher: str | None = None
    """Network that is trained along and from which the first one learns as well."""
    options: dict[str, Any] = {}
    """Options of the network's architecture over those of its name, such as `attention: channel`; its module lists them."""
    scenes: tuple[GroundConfig, ...] = ()
    """Learnt from."""
    generated: GeneratedConfig | None = None
    """Learnt from as well, or alone: scenes that are made, under the terms of what they are made of."""
    held_out: tuple[GroundConfig, ...] = Field(min_length=1)
    """Scored, never learnt from: whole scenes, because patches of one scene know each other."""
    output: Path
    """Folder of the training; its parent must exist. A training that was interrupted there goes on."""
    license: str = "unknown"
    """SPDX identifier of the weights, as far as the scenes' terms allow; goes to the card."""
    simulation: SimulationConfig = SimulationConfig()
    """From truth to pair."""
    variations: VariationConfig = VariationConfig()
    """From truth to the pairs that a universal network learns from."""
    samples: SampleConfig = SampleConfig()
    """From pairs to patches."""
    losses: dict[LossName, float] | None = None
    """Terms of the loss and their weights; those of the network's paper unless given. `sam-released` and `beba-released` are those
    terms as CSAKD's code computes them, for who repeats the authors' training."""
    distill: dict[DistillName, float] = {"response": 0.1, "feature": 0.1}
    """Further terms of a network with a teacher, as CSAKD has them."""
    steps: int = Field(default=10_000, ge=1)
    """Batches learnt from. May be raised later: the training then goes on."""
    rate: float = Field(default=1e-4, gt=0)
    """Learning rate at the beginning."""
    every: int = Field(default=500, ge=1)
    """Steps between two validations; the state is saved then too."""
    save_minutes: float = Field(default=5.0, gt=0)
    """Minutes after which the state is saved between two validations, so that a kill loses no more; on SIGTERM it is saved at once."""
    warmup: int = Field(default=0, ge=0)
    """Steps in which the learning rate rises to `rate`, or to where it has fallen by then."""
    clip: float | None = Field(default=None, gt=0)
    """Largest norm of the gradient of all weights together; a larger one is scaled down to it."""
    average: float | None = Field(default=None, gt=0, lt=1)
    """What is scored and kept is a running mean of the weights in which a step's weights decay by this factor, such as 0.999."""
    seed: int = Field(default=0, ge=0)
    """Of all samples."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Arithmetic of the forward passes; weights and losses are fp32."""
    device: str = "auto"
    """`auto` takes CUDA, then CPU; `cpu`, `cuda` or `cuda:N`."""
    devices: int | Literal["auto"] = 1
    """Devices of this machine that share every batch, which must be a multiple: that many CUDA devices from the first on, or
    processes on a CPU; `auto` takes all CUDA devices, and one process on a CPU."""
    workers: int = Field(default=0, ge=0)
    """Processes, for each device, that cut samples beside the computation; 0 cuts them in the one that computes."""
    tensorboard: bool = False
    """Whether the curves are also written for TensorBoard, to `tensorboard` in the output."""

    @field_validator("network", "teacher")
    @classmethod
    def _known_network(cls, value: str | None) -> str | None:
        if value is not None and value not in available():
            raise ValueError(f"there is no network {value!r}; choose one of {', '.join(available())}")
        return value

    @field_validator("devices", mode="before")
    @classmethod
    def _some_devices(cls, value: object) -> object:
        # Before the type is looked at: a union's own messages name its members and not the setting.
        if value != "auto" and not (str(value).isdecimal() and int(str(value)) >= 1):
            raise ValueError("expected a number from 1 on, or auto")
        return value

    @field_validator("losses")
    @classmethod
    def _some_loss(cls, value: dict[LossName, float] | None) -> dict[LossName, float] | None:
        if value is not None and not any(weight > 0 for weight in value.values()):
            raise ValueError("expected at least one term with a weight above 0")
        return value

    @model_validator(mode="after")
    def _fitting(self) -> Self:
        if not self.scenes and self.generated is None:
            raise ValueError("scenes: none to learn from; list some, or describe generated ones")
        if self.simulation.psf == "block" and self.samples.shift_px > 0:
            raise ValueError("samples.shift_px displaces a Gaussian PSF only; leave simulation.psf at gaussian")
        if self.teacher == self.network:
            raise ValueError(f"teacher: {self.teacher} is the network itself; choose another, or none")
        if self.teacher is not None and is_universal(self.teacher) != self.universal:
            raise ValueError(
                f"teacher: {self.teacher} and {self.network} do not work in one space; choose two of one kind"
            )
        if self.universal and (self.samples.shift_px, self.samples.gain, self.samples.msi_gain) != (0, 0, 0):
            raise ValueError(
                f"samples.shift_px, samples.gain and samples.msi_gain do nothing to {self.network}; set variations.shift_px and "
                "variations.msi_gain"
            )
        return self

    @property
    def roles(self) -> dict[str, str]:
        """Names of the networks that are trained, by role, the teacher first."""
        return ({} if self.teacher is None else {"teacher": self.teacher}) | {"network": self.network}

    @property
    def universal(self) -> bool:
        """Whether the network works on the estimate's planes, not on bands."""
        return is_universal(self.network)

    @property
    def key(self) -> str:
        """SHA-256 of what decides the learning curve: no place, no device, no length (on which only the rates depend)."""
        idle = {name for name, default in _REFINEMENTS.items() if getattr(self, name) == default}
        record = self.model_dump(mode="json", exclude=_PLACE_AND_LENGTH | idle)
        return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


def is_universal(network: str) -> bool:
    """Whether a network works on the estimate's planes, not on bands."""
    return network.partition("-")[0] == UNIVERSAL


def load_training(path: Path, settings: dict[str, Any] | None = None, *, data: Path | None = None) -> TrainConfig:
    """A TrainConfig from a YAML, TOML or JSON file, with single settings laid over it.

    Parameters
    ----------
    path : Path
    settings : dict, optional
        Dotted keys, for example `{"samples.patch": 16}`; strings are read as YAML scalars.
    data : Path, optional
        Folder to which relative addresses of scenes and of their tables refer; the current one unless given.

    Raises
    ------
    UsageError
        If the file cannot be read, a key is unknown, or a value is out of range; the message names the key.
    """
    record = read_mapping(path)
    lay_over(record, settings or {})
    try:
        config = TrainConfig.model_validate(record)
    except ValidationError as error:
        raise usage_error(error) from error
    if data is None:
        return config
    scenes, held_out = (tuple(_found(scene, data) for scene in part) for part in (config.scenes, config.held_out))
    generated = None if config.generated is None else _found_sources(config.generated, data)
    return config.model_copy(update={"scenes": scenes, "held_out": held_out, "generated": generated})


def _found(source: Cubes, data: Path) -> Cubes:
    """The source with its relative addresses taken from a folder; wavelengths may be a table or the numbers themselves."""
    given = {"uri": source.uri, "msi": getattr(source, "msi", None), "wavelengths": source.wavelengths}
    files = {key: value for key, value in given.items() if value is not None and ":" not in value}
    if source.wavelengths is not None and not source.wavelengths.lower().endswith(".csv"):
        files.pop("wavelengths", None)
    return source.model_copy(update={key: str(data / value) for key, value in files.items()})


def _found_sources(generated: GeneratedConfig, data: Path) -> GeneratedConfig:
    """The same of all that scenes are made of."""
    images, libraries = (
        tuple(_found(source, data) for source in part) for part in (generated.images, generated.libraries)
    )
    table = generated.bands if generated.bands is not None and generated.bands.lower().endswith(".csv") else None
    bands = generated.bands if table is None else str(data / table)
    return generated.model_copy(update={"images": images, "libraries": libraries, "bands": bands})
