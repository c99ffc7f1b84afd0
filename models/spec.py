"""The contract between a fusion method and the pipeline.

A method is one module of this package that defines

- `CARD`: a `MethodCard`, what people should know of it,
- `VARIANTS`: names of its published configurations and their options, only if it has several; `csakd` with
  `VARIANTS = {"teacher": {...}}` is chosen as `csakd-teacher`, a variant with the empty name as the module itself,
- `specify(observed, **options) -> ModelSpec`: its needs on one pair of images,
- `LOSSES`: only if it is trained, names of terms in `models.losses` and their weights, as its paper trains it; pixel and
  spectral angle are taken where it is missing,
- `first_pass(spec) -> FirstPass`: only if `spec.needs_first_pass`, sums over the scene that the method wants first,
- `TAKES_DISPLACEMENT = True`: only if it works with samples beside the centers of their blocks (`Observed.shift_px`); for
  all others the HSI must be resampled,
- `build(spec, sums, weights) -> FusionModel`: the method, ready to run; without weights a network has seeded random ones.

The caller owns tiles, padding, scaling, validity and devices: a method sees filled arrays whose origin lies on the
coarse grid at a multiple of `spec.multiple_of`, and says with `halo` and the reaches how far it looks.
"""

from __future__ import annotations

import importlib
import math
import pkgutil
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from typing import TYPE_CHECKING, Any, Protocol, cast, runtime_checkable

if TYPE_CHECKING:
    import torch


MOST_DISPLACED = 2.0
"""Coarse pixels along an axis by which samples may lie beside their blocks."""


@dataclass(frozen=True, kw_only=True)
class Observed:
    """What is known of a co-registered pair before its pixels are read.

    Raises
    ------
    ValueError
        If a count is below 1, the ratio is below 2, or the PSF has no width.
    """

    hsi_bands: int
    """Good bands of the HSI, C."""
    msi_bands: int
    """Bands of the MSI, c."""
    ratio: int
    """Fine pixels per coarse pixel along one axis."""
    psf_sigma_px: float
    """Standard deviation of the HSI's Gaussian PSF, in fine pixels."""
    srf: tuple[tuple[float, ...], ...] = ()
    """Weights of the HSI bands in each MSI band, c rows of C that sum to 1, or to 0 where the HSI does not see the band;
    empty if unknown."""
    msi_steps: tuple[int, ...] = ()
    """Fine pixels per own pixel of each MSI band along one axis; a band of step s comes as blocks of s x s equal pixels
    that begin at multiples of s. Empty if all are 1."""
    msi_sigma_px: tuple[float, ...] = ()
    """Standard deviation of the Gaussian PSF of each MSI band, in fine pixels; empty if all are 0. The PSF of a band of
    step 1 belongs to the product's own pixel."""
    hsi_shifts: tuple[tuple[float, float], ...] = ()
    """Rows and columns by which the samples of each HSI band lie beside the centers of their blocks, in coarse pixels: one
    pair per band, empty if none is displaced. The HSI is given as it was measured, not resampled."""

    def __post_init__(self) -> None:
        if min(self.hsi_bands, self.msi_bands) < 1 or self.ratio < 2 or not self.psf_sigma_px > 0:
            raise ValueError(
                f"cannot fuse {self.hsi_bands} with {self.msi_bands} bands at ratio {self.ratio} and a PSF of "
                f"{self.psf_sigma_px} px: expected at least one band each, ratio >= 2 and a positive PSF width"
            )
        if self.srf and [len(row) for row in self.srf] != [self.hsi_bands] * self.msi_bands:
            raise ValueError(f"the SRF must have {self.msi_bands} rows of {self.hsi_bands} weights")
        for name, values in (("msi_steps", self.msi_steps), ("msi_sigma_px", self.msi_sigma_px)):
            if values and (len(values) != self.msi_bands or min(values) < 0):
                raise ValueError(f"{name} must have one value per MSI band ({self.msi_bands}), got {values}")

        if self.hsi_shifts and len(self.hsi_shifts) != self.hsi_bands:
            raise ValueError(
                f"hsi_shifts must have one pair per HSI band ({self.hsi_bands}), got {len(self.hsi_shifts)}"
            )
        if any(not abs(shift) <= MOST_DISPLACED for pair in self.hsi_shifts for shift in pair):
            raise ValueError(
                f"samples may lie at most {MOST_DISPLACED} coarse pixels beside their blocks along an axis; move the HSI's "
                "grid by whole pixels first"
            )

    @property
    def shift_px(self) -> tuple[float, float]:
        """Mean displacement of the HSI's samples, in fine pixels."""
        if not self.hsi_shifts:
            return 0.0, 0.0
        rows, cols = (self.ratio * sum(axis) / self.hsi_bands for axis in zip(*self.hsi_shifts, strict=True))
        return rows, cols

    @property
    def shift_reach(self) -> int:
        """Coarse pixels farther that displaced samples look along an axis than others."""
        return math.ceil(max(map(abs, self.shift_px)) / self.ratio)

    @property
    def steps(self) -> tuple[int, ...]:
        """`msi_steps`, written out."""
        return self.msi_steps or (1,) * self.msi_bands

    @property
    def whole_blocks(self) -> int:
        """Coarse pixels after which the blocks of every MSI band begin anew; a factor of `ModelSpec.multiple_of`."""
        return math.lcm(self.ratio, *self.steps) // self.ratio


@dataclass(frozen=True, kw_only=True)
class TwoRateSpec:
    """Halos of a method whose coarse branches run once over the scene, and whose fine part alone is tiled."""

    coarse_halo: int
    """Coarse pixels around a window of the coarse part."""
    fine_halo: int
    """Coarse pixels around a window of the fine part, given the coarse part's features."""
    channels: int
    """Feature channels that the coarse part hands to the fine part."""
    rate: int = 1
    """Feature pixels per coarse pixel along one axis."""


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """What a method needs on one pair, and how far each output pixel looks.

    Raises
    ------
    ValueError
        If a distance is negative.
    """

    name: str
    """Module name of the method."""
    observed: Observed
    """Bands, ratio and PSF it was specified for."""
    halo: int
    """Coarse pixels around a tile after which nothing changes the tile (`exact`) or little does."""
    hsi_reach: int
    """Coarse pixels from an invalid HSI pixel to the farthest output that it makes invalid."""
    msi_reach: int | None
    """Fine pixels from an invalid MSI pixel to the farthest output that it makes invalid; None if MSI is not used."""
    mixes_bands: bool = True
    """Whether an invalid band makes the pixel invalid in all bands."""
    multiple_of: int = 1
    """Window origins and sizes are multiples of this, in coarse pixels."""
    exact: bool = True
    """Whether tiles equal the whole image; proven by the contract tests."""
    needs_first_pass: bool = False
    """Whether `first_pass` must run over the scene before `build`."""
    parameters: int = 0
    """Trainable parameters that take part in the output."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Options of the architecture that `specify` was given, JSON values."""
    needs_weights: bool = False
    """Whether the output means nothing without trained weights."""
    symmetric_range: bool = False
    """Whether both images are wanted in [-1, 1], by one affine map for the scene, which is undone on the output."""
    tile: int = 512
    """Preferred edge of a tile in fine pixels: large halos want large tiles."""
    masked: bool = False
    """Whether the method is called as `model(hsi, msi, hsi_valid, msi_valid)`, works around holes by itself, and the reaches
    are those of a hole, not of the receptive field. The masks are bool, (N, 1, h, w) and (N, 1, H, W); what lies under
    them is filled all the same."""
    band_copies: float = 1.5
    """Arrays of the size of its output that the method holds at once, the output counted; measured, see `bench-memory`."""
    work_floats: int = 0
    """Numbers per fine pixel of a window that it holds at once besides them, whatever the bands; likewise."""
    base: str | None = None
    """Method that it is without weights, and on which its weights bring a residual; None of all others."""
    two_rate: TwoRateSpec | None = None
    """How the coarse part runs once per scene and only the fine part per tile; None if it does not."""

    @property
    def is_filled(self) -> bool:
        """Whether holes are filled before the method sees them, and only they are void.

        Networks look so far that one pixel that was not seen would void a scene, and what they make of a good guess differs
        little from what they make of the sample.
        """
        return self.needs_weights and not self.masked

    @property
    def void_reach(self) -> tuple[int, int | None]:
        """`hsi_reach` and `msi_reach` of holes: how far around an invalid input the product is invalid."""
        return (0, 0) if self.is_filled else (self.hsi_reach, self.msi_reach)

    @property
    def tile_halo(self) -> int:
        """Coarse pixels that a tile reads around its core."""
        return self.halo if self.two_rate is None else self.two_rate.fine_halo

    def __post_init__(self) -> None:
        if min(self.halo, self.hsi_reach, self.msi_reach or 0) < 0 or self.multiple_of < 1:
            raise ValueError(f"{self.name}: halo, reaches and multiple_of must not be negative")


@dataclass(frozen=True, kw_only=True)
class MethodCard:
    """What people should know of a method before they choose it."""

    title: str
    """Name in words."""
    paper: str
    """Authors, year, title, DOI or arXiv number."""
    code: str
    """Where the implementation comes from, with the licence."""
    weights: str | None = None
    """Address of trained weights, None if it needs none."""


@runtime_checkable
class FusionModel(Protocol):
    """A method, ready to run on one pair."""

    spec: ModelSpec
    """What it was built for."""

    def __call__(self, hsi: torch.Tensor, msi: torch.Tensor) -> torch.Tensor:
        """Fuse a batch of windows.

        Parameters
        ----------
        hsi : Tensor, shape (N, C, h, w), float32
            Filled, no NaN.
        msi : Tensor, shape (N, c, h * ratio, w * ratio), float32
            Filled, no NaN; its first pixel lies in the corner of the first coarse pixel.

        Returns
        -------
        Tensor, shape (N, C, h * ratio, w * ratio), float32
            In the HSI's unit.
        """


@runtime_checkable
class TwoRateModel(FusionModel, Protocol):
    """A method with a coarse and a fine part; `model(hsi, msi)` is `model.fine(hsi, msi, model.coarse(hsi, msi))`."""

    def coarse(self, hsi: torch.Tensor, msi: torch.Tensor) -> torch.Tensor:
        """Features of a window.

        Parameters
        ----------
        hsi, msi : Tensor
            As for `FusionModel`.

        Returns
        -------
        Tensor, shape (N, channels, h * rate, w * rate), float32
        """

    def fine(self, hsi: torch.Tensor, msi: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
        """The fused window, from its images and the features of the same window."""


class FirstPass(Protocol):
    """Sums over the scene. They add up: sums over two disjoint windows are the sums over both.

    What does not add up, such as a sample of pixels, has a method `merge(total, part)` beside `sums`, which gives the
    result over both; it is associative and commutative, for windows come in any order. See `merge_sums`.
    """

    margin: int
    """Coarse pixels of surroundings that a window needs on each side."""

    def sums(
        self, hsi: torch.Tensor, msi: torch.Tensor, valid: torch.Tensor, origin: tuple[int, int] = (0, 0)
    ) -> dict[str, torch.Tensor]:
        """Sums over one window.

        Parameters
        ----------
        hsi, msi : Tensor
            As for `FusionModel`.
        valid : Tensor, shape (N, h, w), bool
            Coarse pixels that count: inside the window's core, valid in all bands of both images.
        origin : (int, int)
            Row and column of the window's first coarse pixel in the scene.

        Returns
        -------
        dict of str to Tensor
            float64 where they add up.
        """


def merge_sums(
    summed: FirstPass, total: dict[str, torch.Tensor], part: dict[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """Sums over two disjoint sets of windows: the first pass's own `merge`, or addition."""
    merge = getattr(summed, "merge", None)
    if merge is not None:
        return cast("dict[str, torch.Tensor]", merge(total, part))
    return {name: total[name] + value for name, value in part.items()}


class MethodModule(Protocol):
    """The names that a method's module defines; `VARIANTS` and `first_pass` may be missing."""

    CARD: MethodCard
    VARIANTS: Mapping[str, Mapping[str, Any]]

    def specify(self, observed: Observed, **options: Any) -> ModelSpec:
        """Needs of the method on this pair."""

    def first_pass(self, spec: ModelSpec, weights: Mapping[str, torch.Tensor] | None) -> FirstPass:
        """Sums wanted before `build`."""

    def build(
        self, spec: ModelSpec, sums: Mapping[str, torch.Tensor] | None, weights: Mapping[str, torch.Tensor] | None
    ) -> FusionModel:
        """The method, ready to run."""


@dataclass(frozen=True)
class Method:
    """A method as it is chosen by name: a module, and the options of one of its variants."""

    name: str
    """`module` or `module-variant`."""
    module: MethodModule
    options: Mapping[str, Any]

    @property
    def card(self) -> MethodCard:
        """What people should know of it."""
        return self.module.CARD

    @property
    def takes_displacement(self) -> bool:
        """Whether `Observed.hsi_shifts` may be given; other methods want the HSI resampled."""
        return bool(getattr(self.module, "TAKES_DISPLACEMENT", False))

    def specify(self, observed: Observed, **options: Any) -> ModelSpec:
        """Needs on this pair; options given here overrule those of the variant.

        Raises
        ------
        ValueError
            If the method cannot fuse such a pair.
        """
        if any(map(any, observed.hsi_shifts)) and not self.takes_displacement:
            raise ValueError(
                f"{self.name} cannot work with displaced samples; resample the HSI to the MSI's grid for it"
            )
        options = {**self.options, **options}
        parts = [self.module.specify(part, **options) for part, _ in _parts(observed)]
        widest = max(parts, key=lambda part: part.halo)
        return replace(
            widest,
            name=self.name,
            observed=observed,
            hsi_reach=max(part.hsi_reach for part in parts),
            msi_reach=None if widest.msi_reach is None else max(part.msi_reach or 0 for part in parts),
        )

    def first_pass(self, spec: ModelSpec, weights: Mapping[str, torch.Tensor] | None = None) -> FirstPass:
        """Sums wanted before `build`."""
        parts = _parts(spec.observed)
        if len(parts) == 1:
            return self.module.first_pass(spec, weights)
        passes = [self.module.first_pass(self._of(spec, part), weights) for part, _ in parts]
        return cast("FirstPass", _detectors().GroupedPass(passes, [bands for _, bands in parts]))

    def _of(self, spec: ModelSpec, part: Observed) -> ModelSpec:
        """The spec for the bands of one detector."""
        return replace(self.module.specify(part, **spec.options), name=spec.name)

    def build(
        self,
        spec: ModelSpec,
        sums: Mapping[str, torch.Tensor] | None = None,
        weights: Mapping[str, torch.Tensor] | None = None,
    ) -> FusionModel:
        """The method, ready to run; a network without weights has seeded random ones.

        Raises
        ------
        ValueError
            If sums or weights are missing or do not fit, or the sums are of too few pixels.
        """
        parts = _parts(spec.observed)
        if len(parts) == 1:
            return self.module.build(spec, sums, weights)
        own = [None if sums is None else _detectors().of_number(sums, number) for number in range(len(parts))]
        built = [
            self.module.build(self._of(spec, part), each, weights) for (part, _), each in zip(parts, own, strict=True)
        ]
        return cast("FusionModel", _detectors().GroupedModel(spec, built, [bands for _, bands in parts]))


def _detectors() -> Any:
    # Imported late, for it imports torch, which those who only ask for names and cards must not wait for.
    return importlib.import_module("hyperfuse.models._detectors")


def _parts(observed: Observed) -> list[tuple[Observed, list[int]]]:
    """The pair of each detector, and its bands."""
    if not observed.hsi_shifts:
        return [(observed, list(range(observed.hsi_bands)))]
    return [(_detectors().of_group(observed, bands), bands) for bands in _detectors().grouped(observed.hsi_shifts)]


_NOT_METHODS = {"losses", "multiply_adds", "operators", "spec", "weights_io"}


@cache
def available() -> tuple[str, ...]:
    """Names of all methods and their variants, sorted; a variant with the empty name goes by its module's name alone."""
    # The package's path, not this folder: who appends a folder of their own to it adds their methods.
    path = importlib.import_module("hyperfuse.models").__path__
    modules = [
        m.name for m in pkgutil.iter_modules(path) if not (m.ispkg or m.name.startswith("_") or m.name in _NOT_METHODS)
    ]
    names = []
    for name in modules:
        variants = getattr(importlib.import_module(f"hyperfuse.models.{name}"), "VARIANTS", {"": {}})
        names += [f"{name}-{variant}" if variant else name for variant in variants]
    return tuple(sorted(names))


def method(name: str) -> Method:
    """The method of that name.

    Raises
    ------
    LookupError
        If there is none; the message lists those that exist.
    """
    if name not in available():
        raise LookupError(f"there is no method {name!r}; choose one of {', '.join(available())}")
    module_name, _, variant = name.partition("-")
    module = cast("MethodModule", importlib.import_module(f"hyperfuse.models.{module_name}"))
    return Method(name, module, getattr(module, "VARIANTS", {"": {}})[variant])
