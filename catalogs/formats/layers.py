"""Samples of a product that is more than one image: bands of several files and steps, and what its masks leave of them.

Everything here is `Samples`: stored values in file order and, beside them, where the product calls them valid. Scale,
offset and order of the bands are applied once, by `StoredCube`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from hyperfuse.catalogs.errors import InputRejected, UsageError
from hyperfuse.catalogs.formats.stored import Samples, equal
from hyperfuse.catalogs.scene import Window

Flag = Literal["cloud", "dilated_cloud", "shadow", "cirrus", "haze", "snow", "water", "defective"]
"""What a product's masks can say of a pixel, in one vocabulary for all sensors."""
FLAGS: tuple[Flag, ...] = ("cloud", "dilated_cloud", "shadow", "cirrus", "haze", "snow", "water", "defective")
DEFAULT_FLAGS: tuple[Flag, ...] = ("cloud", "shadow", "cirrus", "defective")
"""Pixels that show no ground. Haze still does, snow and water are ground, and a dilated cloud is a margin of caution."""


@dataclass(frozen=True, kw_only=True)
class Layer:
    """One band of one file on a grid whose pixels are `step` pixels of the product's grid wide."""

    samples: Samples
    """The file."""
    band: int = 0
    """Band of the file."""
    step: int = 1
    """Pixels of the product's grid per own pixel along one axis; both grids share their upper left corner."""

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns on the product's grid."""
        _, height, width = self.samples.shape
        return height * self.step, width * self.step

    def read(self, window: Window) -> tuple[NDArray[Any], NDArray[np.bool_] | None]:
        """Values (y, x) of a window of the product's grid, and the file's own mask; coarser pixels are repeated."""
        step = self.step
        own = tuple(slice(part.start // step, -(-part.stop // step)) for part in window)
        raw, valid = self.samples.read([self.band], (own[0], own[1]))
        return self._fine(raw[0], window), None if valid is None else self._fine(valid[0], window)

    def _fine(self, values: NDArray[Any], window: Window) -> NDArray[Any]:
        if self.step == 1:
            return values
        rows, cols = (np.arange(part.start, part.stop) // self.step - part.start // self.step for part in window)
        fine: NDArray[Any] = values[rows[:, None], cols[None, :]]
        return fine


@dataclass(frozen=True, kw_only=True)
class LayeredSamples:
    """Bands of several files as one image.

    Raises
    ------
    ValueError
        If a layer does not cover `size`.
    """

    layers: tuple[Layer, ...]
    """Bands, in the order of the product."""
    size: tuple[int, int]
    """Rows and columns of the product's grid; a coarser layer may reach a little farther."""

    def __post_init__(self) -> None:
        for layer in self.layers:
            if any(have < want for have, want in zip(layer.shape, self.size, strict=True)):
                raise ValueError(f"a layer of {layer.shape} px does not cover {self.size} px")

    @property
    def shape(self) -> tuple[int, int, int]:
        """Size as (band, y, x)."""
        return len(self.layers), *self.size

    @property
    def block(self) -> tuple[int, int]:
        """Rows and columns that the file of the first band of step 1 stores together."""
        return min(self.layers, key=lambda layer: layer.step).samples.block

    @property
    def dtype(self) -> np.dtype[Any]:
        """Stored type that holds those of all layers."""
        return np.result_type(*(layer.samples.dtype for layer in self.layers))

    def read(self, bands: Sequence[int], window: Window) -> tuple[NDArray[Any], NDArray[np.bool_] | None]:
        """Stored values, and the files' own masks where they have any."""
        parts = [self.layers[band].read(window) for band in bands]
        raw = np.stack([values for values, _ in parts])
        if all(valid is None for _, valid in parts):
            return raw, None
        return raw, np.stack([np.ones(raw.shape[1:], bool) if valid is None else valid for _, valid in parts])


@dataclass(frozen=True, kw_only=True)
class JoinedSamples:
    """Some bands of several images of one size, one image after the other."""

    parts: tuple[tuple[Samples, tuple[int, ...]], ...]
    """Images, each with the bands that are taken from it."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """Size as (band, y, x)."""
        _, height, width = self.parts[0][0].shape
        return sum(len(taken) for _, taken in self.parts), height, width

    @property
    def block(self) -> tuple[int, int]:
        """Rows and columns that the first image stores together."""
        return self.parts[0][0].block

    @property
    def dtype(self) -> np.dtype[Any]:
        """Stored type that holds those of all images."""
        return np.result_type(*(samples.dtype for samples, _ in self.parts))

    def read(self, bands: Sequence[int], window: Window) -> tuple[NDArray[Any], NDArray[np.bool_] | None]:
        """Stored values; masks of the images are not asked for."""
        size = tuple(part.stop - part.start for part in window)
        raw = np.empty((len(bands), *size), self.dtype)
        first = 0
        for samples, taken in self.parts:
            here = [i for i, band in enumerate(bands) if first <= band < first + len(taken)]
            if here:
                raw[here], _ = samples.read([taken[bands[i] - first] for i in here], window)
            first += len(taken)
        return raw, None


@dataclass(frozen=True, kw_only=True)
class Rule:
    """Which values of a mask make a pixel invalid."""

    layer: Layer
    """The mask, one value per pixel."""
    values: tuple[int, ...] = ()
    """Values that do."""
    bits: int = 0
    """Bits that do, as a sum of powers of two."""

    def invalid(self, window: Window) -> NDArray[np.bool_]:
        """Pixels of a window that the mask rejects, shape (y, x)."""
        raw, _ = self.layer.read(window)
        hit: NDArray[np.bool_] = np.isin(raw, self.values)
        return hit | (raw.astype(np.int64) & self.bits != 0) if self.bits else hit


@dataclass(frozen=True, kw_only=True)
class MaskedSamples:
    """An image and the masks that say where it is valid."""

    samples: Samples
    """The image."""
    rules: tuple[Rule, ...] = ()
    """Masks of pixels: an invalid pixel is invalid in every band."""
    band_masks: Samples | None = None
    """Mask of each band, in the order of the image; see `good_codes`."""
    good_codes: tuple[int, ...] = (0,)
    """Values of `band_masks` that leave a sample valid."""
    fill: float | None = None
    """Stored value that means no data where `band_masks` is 0; elsewhere the mask has said what it means."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """Size as (band, y, x)."""
        return self.samples.shape

    @property
    def block(self) -> tuple[int, int]:
        """Rows and columns that the image stores together."""
        return self.samples.block

    @property
    def dtype(self) -> np.dtype[Any]:
        """Stored type."""
        return self.samples.dtype

    def read(self, bands: Sequence[int], window: Window) -> tuple[NDArray[Any], NDArray[np.bool_] | None]:
        """Stored values, and where all masks call them valid."""
        raw, valid = self.samples.read(bands, window)
        keep = np.ones(raw.shape, bool) if valid is None else valid.copy()
        if self.rules:
            keep &= ~reduce(np.logical_or, (rule.invalid(window) for rule in self.rules))
        if self.band_masks is not None:
            codes, _ = self.band_masks.read(bands, window)
            keep &= np.isin(codes, self.good_codes)
            if self.fill is not None:
                keep &= (raw != self.fill) | (codes != 0)
        return raw, keep


@dataclass(frozen=True, kw_only=True)
class FilledSamples:
    """An image without the pixels that hold one value in all bands: fill that its file does not declare."""

    samples: Samples
    """The image."""
    fills: tuple[float, ...]
    """Stored values of fill."""
    probes: tuple[int, ...]
    """Bands of the file that must hold the value for a pixel to be fill."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """Size as (band, y, x)."""
        return self.samples.shape

    @property
    def block(self) -> tuple[int, int]:
        """Rows and columns that the image stores together."""
        return self.samples.block

    @property
    def dtype(self) -> np.dtype[Any]:
        """Stored type."""
        return self.samples.dtype

    def read(self, bands: Sequence[int], window: Window) -> tuple[NDArray[Any], NDArray[np.bool_] | None]:
        """Stored values, and where the image calls them valid and they are no fill."""
        raw, valid = self.samples.read(bands, window)
        at = {band: i for i, band in enumerate(bands)}
        missing = [band for band in self.probes if band not in at]
        looked = [raw[at[band]] for band in self.probes if band in at]
        if missing:
            looked += list(self.samples.read(missing, window)[0])
        fill = np.zeros(raw.shape[1:], bool)
        for value in self.fills:
            fill |= reduce(np.logical_and, (equal(plane, value) for plane in looked))
        keep = np.ones(raw.shape, bool) if valid is None else valid.copy()
        keep[:, fill] = False
        return raw, keep


def chosen_flags(text: str | None) -> tuple[Flag, ...]:
    """Flags that make a pixel invalid, by the user's setting `mask` or, without one, `DEFAULT_FLAGS`.

    Raises
    ------
    UsageError
        If a flag is unknown; the message lists those that exist.
    """
    if text is None:
        return DEFAULT_FLAGS
    names = [name.strip() for name in text.split(",") if name.strip()]
    if names == ["none"]:
        return ()
    if unknown := sorted(set(names) - set(FLAGS)):
        raise UsageError(f"mask: there is no flag {unknown[0]!r}; choose some of {', '.join(FLAGS)}, or none")
    return tuple(flag for flag in FLAGS if flag in names)


def refuse_short(layer: Layer, size: tuple[int, int], what: str) -> Layer:
    """The layer, if it covers a product of that size on its grid.

    Raises
    ------
    InputRejected
        If it has another size than the product declares.
    """
    expected = tuple(-(-n // layer.step) for n in size)
    if layer.samples.shape[1:] != expected:
        raise InputRejected(
            f"{what}: has {layer.samples.shape[1]} x {layer.samples.shape[2]} px, the product's metadata declare "
            f"{expected[0]} x {expected[1]}; fetch the product again"
        )
    return layer
