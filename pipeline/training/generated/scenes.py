"""Scenes without end whose truth is known: the structure of real fine images, filled with real spectra.

    image      a part of a fine image, turned  ->  shares of materials, and light (`structure`)
    spectra    of the libraries, given to the image's materials by color or at random (`materials`)
    bundles    each material is a few spectra much alike, whose blend wanders over the land
    light      the image's own; the sky lights the shade, more blue than the sun
    tilt       slopes over the spectrum that wander over the land: view, moisture, what is left of the atmosphere
    sensor     a PSF of its own and a little noise, for a truth is an image too

Scene number n is a function of the settings and n alone. Of the image's own colors nothing is in a scene but how they are
spread: a network learns how structure and spectra hang together, not this image.

The numbers below, and the defaults of `GeneratedConfig`, were set by `tests.benchmarks.realism`, so that bicubic
interpolation, `gsa-regressed` and `map_subspace` reach on generated scenes about what they reach on real cubes.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
from numpy.polynomial import Legendre
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from hyperfuse.catalogs.bands import Bands, read_table
from hyperfuse.catalogs.errors import InputRejected
from hyperfuse.catalogs.formats.signal import absorbed
from hyperfuse.catalogs.references.cubes import ReferenceCube, open_cube
from hyperfuse.catalogs.references.libraries import SpectralLibrary, library_of, open_library
from hyperfuse.pipeline.training.generated.materials import KIN, Palette, matched
from hyperfuse.pipeline.training.generated.structure import Structure, rough_field, structure_of, turned
from hyperfuse.pipeline.training.settings import CubeConfig, GeneratedConfig, LibraryConfig

_F32 = NDArray[np.float32]

_STEPS = (1, 2, 3, 4)
"""Pixels of an image per pixel of a scene along one axis, as far as the image is large enough."""
_LATTICE_PX = 8
"""Parts of an image begin at multiples of this."""
_CONTRAST = (0.4, 1.0)
"""Power of the image's light."""
_DARKEST = (0.1, 1.0)
"""What is darkest in an image is mostly water or shade, darker than dry materials of libraries, by this factor."""
_SKY, _SKY_NM, _SKY_POWER = 0.12, 500.0, -3.0
"""Share of the sky in the light at a wavelength, and the power by which it falls with wavelength."""
_ROUGH = (0.0, 1.2), (0.2, 1.6)
"""Slopes (see `rough_field`) of the blend in a material, and of the tilts."""
_ORDERS = 6
"""Of the polynomials that tilt and bend the spectra."""
_OWN_PSF_PX = (0.4, 0.8)
"""Standard deviation of the PSF of a sensor in its own pixels."""


@dataclass(frozen=True, kw_only=True, eq=False)
class GeneratedScene:
    """A scene, and under which terms."""

    cube: ReferenceCube
    """The truth."""
    license: str
    """Terms of its sources."""


class Generator:
    """Opens the sources once, and makes scenes of them.

    Parameters
    ----------
    config : GeneratedConfig
    wanted : Bands, optional
        Bands of the scenes, all of them, where the settings name no table.

    Raises
    ------
    InputRejected
        If a source cannot be read, an image holds no part without holes that is large enough, or the libraries do not know
        the bands: any of a table, all of those that are wanted.
    """

    def __init__(self, config: GeneratedConfig, wanted: Bands | None = None) -> None:
        self._config = config
        self._images = [_Image.open(source, config.size_px) for source in config.images]
        self._libraries = [_opened_library(source) for source in config.libraries]
        self._colors = [Palette.of(self._libraries, image.bands).spectra for image in self._images]
        self._fixed: tuple[Bands, Palette] | None = None
        if config.bands is not None:
            wanted = self._judged(_table(config.bands), of=config.bands)
        elif wanted is not None and not (known := self._known(wanted)).all():
            nm = wanted.center_nm[~known][0]
            raise InputRejected(
                f"{nm:.1f} nm, a band of the scenes, lies where not all libraries have samples ({self._ranges}); leave it out "
                "with `bad`, or choose other libraries"
            )
        if wanted is not None:
            self._fixed = wanted, Palette.of(self._libraries, wanted)

    def scene(self, number: int) -> GeneratedScene:
        """The scene of a number, from 0 on."""
        config, rng = self._config, np.random.default_rng((self._config.seed, number))
        which = int(rng.integers(len(self._images)))
        name = f"generated-{config.seed}-{number}"
        if self._fixed is None:
            bands = self._judged(_grid(self._libraries, rng), of=name)
            palette = Palette.of(self._libraries, bands)
        else:
            bands, palette = self._fixed
        image = self._images[which]
        part, step = image.part(config.size_px, rng)
        land = structure_of(
            part,
            n_materials=int(rng.integers(config.materials[0], config.materials[1] + 1)),
            softness=float(rng.uniform(*config.softness)),
            step=step,
            rng=rng,
        )
        bundles = _bundles(land, palette, self._colors[which], config, rng)
        values = _seen(_lit(land, bundles, bands, config, rng), config, rng)
        used = [config.images[which], *config.libraries]
        return GeneratedScene(
            cube=ReferenceCube(name=name, values=values, bands=bands),
            license="; ".join(sorted({source.license for source in used})),
        )

    def _judged(self, bands: Bands, *, of: str) -> Bands:
        """Bands that all libraries know and the atmosphere lets through are good."""
        judged = bands.mark_bad(~self._known(bands) | absorbed(bands))
        if not judged.good.any():
            raise InputRejected(
                f"{of}: none of its {len(bands)} bands lies where all libraries have samples ({self._ranges}); choose other "
                "bands or libraries"
            )
        return judged

    def _known(self, bands: Bands) -> NDArray[np.bool_]:
        """Bands that all libraries have samples of."""
        return np.asarray(np.all([library.covers(bands.center_nm) for library in self._libraries], axis=0))

    @property
    def _ranges(self) -> str:
        return ", ".join(
            f"{library.name} {library.wavelength_nm[0]:.0f}-{library.wavelength_nm[-1]:.0f} nm"
            for library in self._libraries
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class _Image:
    """A fine image."""

    values: _F32
    """Shape (band, y, x)."""
    bands: Bands
    corners: dict[int, NDArray[np.int64]]
    """First pixels (row, column) of parts without a hole, by the pixels of the image per pixel of a scene."""

    @classmethod
    def open(cls, source: CubeConfig, size_px: int) -> Self:
        cube = open_cube(source.source())
        hole = np.asarray(np.isnan(cube.values).any(axis=0))
        corners = {step: found for step in _STEPS if len(found := _whole_parts(hole, size_px * step))}
        if not corners:
            height, width = hole.shape
            raise InputRejected(
                f"{source.uri}: {height} x {width} pixels hold no part of {size_px} x {size_px} without a hole; choose a "
                "smaller generated.size_px or a larger image"
            )
        return cls(values=cube.values, bands=cube.bands, corners=corners)

    def part(self, size_px: int, rng: np.random.Generator) -> tuple[_F32, int]:
        """A square part of the image, turned, and its pixels per pixel of the scene along one axis."""
        step = int(rng.choice(list(self.corners)))
        row, col = self.corners[step][int(rng.integers(len(self.corners[step])))]
        part = self.values[:, row : row + size_px * step, col : col + size_px * step]
        turn = int(rng.integers(8))
        return np.ascontiguousarray(turned(part, turn)), step


def _bundles(
    land: Structure, palette: Palette, colors: _F32, config: GeneratedConfig, rng: np.random.Generator
) -> _F32:
    """Spectra of the land's materials, shape (material, KIN, band); `colors` are those of the palette in the image's bands.

    Notes
    -----
    By color, vegetation comes where the image is green and water where it is dark, as on land; at random, a network also
    sees land that no library together with no image would bring together.
    """
    n = len(land.color)
    candidates = palette.drawn(rng)
    if float(rng.uniform()) < config.natural:
        chosen = candidates[matched(colors[candidates], land.color)]
    else:
        chosen = rng.choice(candidates, n, replace=len(candidates) < n)
    bundles = palette.bundles(chosen, rng)
    # What one pixel holds is never pure: even the purest of a scene is drawn towards what the whole is made of.
    common = np.tensordot(land.shares.mean(axis=(1, 2)), bundles[:, 0], axes=1)
    bundles += np.float32(rng.uniform(*config.impurity)) * (common - bundles)
    bundles[land.color.mean(axis=1).argmin()] *= np.float32(rng.uniform(*_DARKEST))
    return bundles


def _lit(land: Structure, bundles: _F32, bands: Bands, config: GeneratedConfig, rng: np.random.Generator) -> _F32:
    """The land in its light, shape (band, y, x)."""
    shape = land.light.shape[0], land.light.shape[1]
    slope = float(rng.uniform(*_ROUGH[0]))
    fields = np.stack([[rough_field(shape, slope=slope, rng=rng) for _ in range(KIN)] for _ in bundles])
    blend = np.exp(config.variety * fields)
    weights = land.shares[:, None] * blend / blend.sum(axis=1, keepdims=True)  # (material, KIN, y, x)
    cube = np.tensordot(bundles, weights, axes=((0, 1), (0, 1)))
    light = land.light ** np.float32(rng.uniform(*_CONTRAST))
    sky = np.minimum(_SKY * (bands.center_nm / _SKY_NM) ** _SKY_POWER, 1.0)[:, None, None]
    cube *= light + sky * (1 - np.minimum(light, 1.0))
    cube *= 1 + config.tilt * _tilts(bands, shape, rng)
    return np.asarray(cube, np.float32)


def _tilts(bands: Bands, shape: tuple[int, int], rng: np.random.Generator) -> _F32:
    """Lines over the spectrum, straight and ever more bent and weaker, that wander over the land, shape (band, y, x)."""
    nm = bands.center_nm
    along = 2 * (nm - nm[0]) / max(nm[-1] - nm[0], 1.0) - 1
    lines = np.stack([Legendre.basis(order)(along) / order for order in range(1, _ORDERS + 1)])
    fields = np.stack([rough_field(shape, slope=float(rng.uniform(*_ROUGH[1])), rng=rng) for _ in lines])
    return np.asarray(np.tensordot(lines.T, fields, axes=1), np.float32)


def _seen(cube: _F32, config: GeneratedConfig, rng: np.random.Generator) -> _F32:
    """The land through a sensor of its own, shape (band, y, x)."""
    sigma_px = float(rng.uniform(*_OWN_PSF_PX))
    seen = gaussian_filter(cube, (0, sigma_px, sigma_px), mode="reflect")
    power = np.sqrt((seen.astype(np.float64) ** 2).mean(axis=(1, 2), keepdims=True))
    noise = rng.standard_normal(seen.shape) * power * 10 ** (-float(rng.uniform(*config.snr_db)) / 20)
    return np.ascontiguousarray(np.maximum(seen + noise, 0.0), np.float32)


def _grid(libraries: list[SpectralLibrary], rng: np.random.Generator) -> Bands:
    """Bands of a sensor that may exist: of the visible and near infrared alone, or of all of the reflected sun."""
    vnir = float(rng.uniform()) < 0.25
    low, high = float(rng.uniform(400, 470)), float(rng.uniform(900, 1050) if vnir else rng.uniform(2350, 2450))
    low = max(low, *(library.wavelength_nm[0] for library in libraries))
    high = min(high, *(library.wavelength_nm[-1] for library in libraries))
    spacing = float(rng.uniform(5.0, 15.0))
    center = np.arange(low, max(high, low + spacing), spacing)
    fwhm = np.full(center.shape, spacing * float(rng.uniform(1.0, 1.5)))
    return Bands.sort(center, unit="nm", of="generated", fwhm=fwhm)


def _table(path: str) -> Bands:
    table = read_table(path)
    return Bands.sort(table.wavelength, unit=table.unit, of=path, fwhm=table.fwhm, good=table.good)


def _opened_library(source: LibraryConfig) -> SpectralLibrary:
    return library_of(open_cube(source.source())) if source.pixels else open_library(Path(source.uri))


def _whole_parts(hole: NDArray[np.bool_], size: int) -> NDArray[np.int64]:
    """First pixels (row, column) of the squares of that edge that hold no hole."""
    if min(hole.shape) < size:
        return np.empty((0, 2), np.int64)
    summed = np.pad(hole.astype(np.int64), ((1, 0), (1, 0))).cumsum(axis=0).cumsum(axis=1)
    holes = summed[size:, size:] - summed[:-size, size:] - summed[size:, :-size] + summed[:-size, :-size]
    return np.asarray(np.argwhere(holes[::_LATTICE_PX, ::_LATTICE_PX] == 0) * _LATTICE_PX)
