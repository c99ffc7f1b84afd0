"""Benchmarks by name: which cubes of a data folder, how each is prepared, and under which protocols.

`real-3`, `real-4` and `real-6` take the cubes of `CUBES` at that ratio: Gaussian PSF with a modulation of 0.3 at the
coarse Nyquist frequency, four and six bands of Sentinel-2, with noise of 35 dB (HSI) and 40 dB (MSI) and without.

`field-3`, `field-4` and `field-6` plant into the pairs with noise of those presets what real pairs suffer from, each row of
`pipeline.observation.field.ROWS` alone; `field-10` does so with ten bands of Sentinel-2 at their own resolutions.

`gsd` tells what the 20 m bands of Sentinel-2 bring at their own resolution: the four 10 m bands beside all ten, on the cubes
that have short-wave infrared and enough pixels for ratio 6, with the same noise.

`real-pairs` takes the images of `PAIRS`, real HSI and MSI of one place, at reduced resolution: the HSI is the truth, and the
MSI is brought to its pixels through the HSI's PSF. Each pair is registered first and counts only where the registration
is not refused, because a displaced benchmark ranks methods by how little they use the MSI.

`aviris-172` is the experiment of CSAKD (arXiv:2406.19666) and HyFusion (arXiv:2501.04665) over all AVIRIS images of a
folder: 172 bands, negative samples set to 0, tiles of 256 x 256 pixels mapped to 0..1, ratio 4, four and six bands of
Landsat TM. The papers do not publish how they simulate: box responses and a Gaussian of 1.7 pixels within the coarse
pixel follow the code of the same authors for related work, so small differences to their table are to be expected.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path

import numpy as np

from hyperfuse.catalogs.errors import InputRejected, UsageError
from hyperfuse.catalogs.references.cubes import CubeSource, ReferenceCube, band_numbers, open_cube
from hyperfuse.pipeline.config import load_config
from hyperfuse.pipeline.observation.field import ROWS, Planting, planting
from hyperfuse.pipeline.observation.protocol import Protocol
from hyperfuse.pipeline.observation.simulate import SimulatedPair, simulate
from hyperfuse.pipeline.quality.reduced_resolution import pair_trial
from hyperfuse.pipeline.quality.trials import Trial

log = logging.getLogger(__name__)

_AVIRIS = "srf/derived/AVIRIS_classic_224.csv"
CUBES = {
    "aviris-gatorsense": CubeSource(uri="aviris_gatorsense_vi/a_hsi_img_for_VI_demo.mat"),
    "jasper-ridge": CubeSource(
        uri="jasper_ridge/jasperRidge2_R198.mat",
        variable="Y",
        axes="b(xy)",
        rows=100,
        wavelengths=_AVIRIS,
        table_rows="4-107,113-153,167-219",
    ),
    "san-diego": CubeSource(
        uri="san_diego/Sandiego_224.mat",
        variable="data",
        wavelengths=_AVIRIS,
        bad="1-6,33-35,97,107-113,153-166,221-224",
    ),
    "berlin-enmap": CubeSource(uri="berlin_urban_gradient/pairA/EnMAP_BerlinUrbanGradient.bsq"),
    "neon-harv": CubeSource(
        uri="neon_harv_pair/NEON_D01_HARV_DP3_726000_4699000_reflectance_crop.tif",
        wavelengths="srf/derived/NEON_NIS_426_SJER2017.csv",
        crs="EPSG:32618",
    ),
    "enmap-potsdam": CubeSource(uri="enmap_potsdam_tiles/*.tif"),
    # A sensor of the visible and near infrared whose first bands are good, so nothing of it is left out.
    "muufl": CubeSource(uri="muufl_gulfport/an_hsi_image_sub_for_demo.mat", variable="hsi_img_sub", absorption=False),
}
"""Cubes of the presets `real-R` by name, with addresses relative to the data folder."""

_RGB_NM = "650,550,470"


@dataclass(frozen=True, kw_only=True)
class PairSource:
    """A real pair, or a folder of pairs whose images have the same names, with addresses relative to the data folder."""

    settings: Mapping[str, str]
    """Settings of a fusion; `hsi.uri` may hold a `*`, which `msi.uri` repeats."""
    ratios: tuple[int, ...]
    """By which the HSI is degraded."""
    bands: str = "rgb"
    """Name of the MSI's bands in tables, so that means are over pairs of one kind."""


PAIRS = {
    "neon-harv": PairSource(
        settings={
            "hsi.uri": "neon_harv_pair/NEON_D01_HARV_DP3_726000_4699000_reflectance_crop.tif",
            "hsi.crs": "EPSG:32618",
            "hsi.wavelengths": "srf/derived/NEON_NIS_426_SJER2017.csv",
            "msi.uri": "neon_harv_pair/2019_D01_HARV_DP3_726000_4699000_image_crop.tif",
            "msi.wavelengths": _RGB_NM,
        },
        ratios=(2, 4),
    ),
    "neon-sjer": PairSource(
        settings={
            "hsi.uri": "neon_sjer_pair/SJER_052_hyperspectral.tif",
            "hsi.crs": "EPSG:32611",
            "hsi.wavelengths": "srf/derived/NEON_NIS_426_SJER2017.csv",
            "msi.uri": "neon_sjer_pair/SJER_052.tif",
            "msi.wavelengths": _RGB_NM,
        },
        ratios=(2, 4),
    ),
    "neon-mlbs": PairSource(
        settings={
            "hsi.uri": "neon_idtrees_mlbs/HSI/*.tif",
            "hsi.wavelengths": "neon_idtrees_mlbs/neon_369_band_table.csv",
            "msi.uri": "neon_idtrees_mlbs/RGB/*.tif",
            "msi.wavelengths": _RGB_NM,
        },
        ratios=(2,),
    ),
    "berlin-a": PairSource(
        settings={
            "hsi.uri": "berlin_urban_gradient/pairA/EnMAP_BerlinUrbanGradient.bsq",
            "msi.uri": "berlin_urban_gradient/pairA/HighResolution_BerlinUrbanGradient.bsq",
        },
        ratios=(2, 4),
        bands="hymap-4",
    ),
}
"""Pairs of the preset `real-pairs` by name."""

AVIRIS_BANDS, AVIRIS_DROPPED, AVIRIS_TILE_PX = 224, "1-10,104-116,152-170,215-224", 256
"""Bands of AVIRIS, those that `aviris-172` leaves out (1-based), and the edge of its tiles."""
_IMAGES = {".mat", ".tif", ".tiff", ".bsq", ".bil", ".bip", ".img", ".dat", ".nc", ".h5", ""}


@dataclass(frozen=True, kw_only=True)
class Preset:
    """A benchmark."""

    about: str
    """What it is, in a line."""
    protocols: tuple[Protocol, ...]
    """Each cube is simulated under each of them."""
    cubes: tuple[str, ...] = tuple(CUBES)
    """Names of `CUBES`, for presets that take these."""


def _real(ratio: int) -> Preset:
    return Preset(
        about=f"real cubes at ratio {ratio}, 4 and 6 bands of Sentinel-2, with noise and without",
        protocols=tuple(
            Protocol(ratio=ratio, msi=msi, hsi_snr_db=hsi_snr_db, msi_snr_db=msi_snr_db)
            for msi in ("s2-4", "s2-6")
            for hsi_snr_db, msi_snr_db in ((35.0, 40.0), (None, None))
        ),
    )


def _field(ratio: int, *sets: str) -> Preset:
    return Preset(
        about=f"the field protocol at ratio {ratio}: pairs as imperfect as real ones, MSI {' and '.join(sets)}",
        protocols=tuple(Protocol(ratio=ratio, msi=msi, planted=planting(row)) for msi in sets for row in ROWS),
    )


PRESETS = {
    "real-3": _real(3),
    "real-4": _real(4),
    "real-6": _real(6),
    "field-3": _field(3, "s2-4", "s2-6"),
    "field-4": _field(4, "s2-4", "s2-6"),
    "field-6": _field(6, "s2-4", "s2-6"),
    "field-10": replace(_field(4, "s2-10"), cubes=tuple(name for name in CUBES if name != "muufl")),
    "gsd": Preset(
        about="real cubes with short-wave infrared at ratios 3, 4 and 6, 4 bands of Sentinel-2 and all 10 at their own GSDs",
        protocols=tuple(Protocol(ratio=ratio, msi=msi) for ratio in (3, 4, 6) for msi in ("s2-4", "s2-10")),
        cubes=tuple(name for name in CUBES if name not in ("muufl", "neon-harv")),
    ),
    "real-pairs": Preset(
        about="real pairs at reduced resolution, registered first: NEON at ratios 2 and 4, Berlin",
        protocols=(Protocol(ratio=2, msi="rgb", hsi_snr_db=None, msi_snr_db=None),),
        cubes=tuple(PAIRS),
    ),
    "aviris-172": Preset(
        about="the experiment of CSAKD and HyFusion on tiles of AVIRIS, 4 and 6 bands of Landsat TM",
        protocols=tuple(
            Protocol(msi=msi, hsi_snr_db=None, msi_snr_db=None, rim_px=0, psf="block", psf_sigma_px=1.7, scale="range")
            for msi in ("landsat-4", "landsat-6")
        ),
    ),
}
"""Benchmarks by name."""


def is_field(name: str) -> bool:
    """Whether a preset plants what real pairs suffer from, so that rows and bands can be chosen."""
    return any(protocol.planted != Planting() for protocol in PRESETS[name].protocols) if name in PRESETS else False


def preset_trials(
    name: str,
    data: Path,
    *,
    like: CubeSource | None = None,
    sets: Sequence[str] = (),
    rows: Sequence[Planting] = (),
    window: int | None = None,
) -> list[Trial]:
    """Trials of a benchmark.

    Parameters
    ----------
    name : str
        Of the preset.
    data : Path
        Folder that holds the cubes.
    like : CubeSource, optional
        Variable, axes and wavelengths of the images, for a preset that takes all of a folder.
    sets, rows : sequence of str, sequence of Planting
        Band sets and disturbances in place of those of a field preset.
    window : int, optional
        Edge (pixels) of the window in the middle of each cube that is taken.

    Raises
    ------
    UsageError
        If there is no such preset.
    InputRejected
        If the folder is missing or holds none of the cubes.
    """
    if name not in PRESETS:
        raise UsageError(f"there is no preset {name!r}; choose one of {', '.join(PRESETS)}")
    if not data.is_dir():
        raise InputRejected(f"{data}: no such folder; give the one that holds the cubes with --data DIR")
    protocols = PRESETS[name].protocols
    if sets or rows:
        own, first = tuple(dict.fromkeys(protocol.msi for protocol in protocols)), protocols[0]
        plants = rows or tuple(dict.fromkeys(protocol.planted for protocol in protocols))
        protocols = tuple(replace(first, msi=msi, planted=row) for msi in sets or own for row in plants)
    if name == "aviris-172":
        return _aviris_trials(data, like or CubeSource(uri=""), protocols)
    if name == "real-pairs":
        return _pair_trials(data)
    sources = {cube: within(data, CUBES[cube]) for cube in PRESETS[name].cubes}
    there = {cube: source for cube, source in sources.items() if (data / CUBES[cube].uri).parent.is_dir()}
    if not there:
        raise InputRejected(f"{data}: holds none of the cubes of {name} ({', '.join(sources)}); give their folder")
    return [
        trial for cube, source in there.items() for trial in cube_trials(source, protocols, name=cube, window=window)
    ]


def cube_trials(
    source: CubeSource, protocols: Sequence[Protocol], *, name: str, window: int | None = None
) -> list[Trial]:
    """A trial of one cube, or the window of that edge in its middle, under each protocol; the cube is read when the first is made."""
    return [Trial(cube=name, protocol=p, make=partial(_simulated, source, p, name, window)) for p in protocols]


@lru_cache(maxsize=1)
def _opened(source: CubeSource) -> ReferenceCube:
    # Trials come cube by cube, so one is enough to read each once.
    return open_cube(source)


def _simulated(source: CubeSource, protocol: Protocol, name: str, window: int | None) -> SimulatedPair:
    cube = _opened(source)
    values = cube.values
    if window is not None:
        rows, columns = (
            slice(max(size - window, 0) // 2, max(size - window, 0) // 2 + window) for size in values.shape[1:]
        )
        values = values[:, rows, columns]
    return simulate(replace(cube, name=name, values=values), protocol)


def within(data: Path, source: CubeSource) -> CubeSource:
    """A source of `CUBES` with the addresses that it has in a data folder."""
    table = None if source.wavelengths is None else str(data / source.wavelengths)
    return replace(source, uri=str(data / source.uri), wavelengths=table)


def _pair_trials(data: Path) -> list[Trial]:
    trials = []
    for name, source in PAIRS.items():
        # Addresses and tables lie in the folder, all else is said as it stands.
        place = {key: str(data / value) if "/" in value else value for key, value in source.settings.items()}
        images = [path for path in sorted(data.glob(source.settings["hsi.uri"])) if path.is_file()]
        for image in sorted(images, key=lambda path: (len(path.stem), path.stem)):
            own = {"hsi.uri": str(image), "msi.uri": place["msi.uri"].replace("*", image.stem), "output": "unused"}
            label = name if len(images) == 1 else f"{name} {image.stem}"
            for ratio in source.ratios:
                config = load_config(None, place | own)
                trials.append(pair_trial(config, ratio=ratio, name=label, bands=source.bands, absorption=True))
    if not trials:
        raise InputRejected(f"{data}: holds none of the pairs of real-pairs ({', '.join(PAIRS)}); give their folder")
    return trials


def _aviris_trials(data: Path, like: CubeSource, protocols: Sequence[Protocol]) -> list[Trial]:
    images = [p for p in sorted(data.iterdir()) if p.is_file() and p.suffix.lower() in _IMAGES]
    if not images:
        raise InputRejected(f"{data}: holds no image; give the folder of the AVIRIS scenes or tiles with --data DIR")
    trials = []
    for image in images:
        source = replace(like, uri=str(image), absorption=False)
        try:
            _, height, width = _opened(source).values.shape
        except InputRejected as error:
            trials += [Trial.refused(image.stem, protocol, error) for protocol in protocols]
            continue
        corners = [
            (row, col)
            for row in range(0, height - AVIRIS_TILE_PX + 1, AVIRIS_TILE_PX)
            for col in range(0, width - AVIRIS_TILE_PX + 1, AVIRIS_TILE_PX)
        ]
        if not corners:
            small = InputRejected(
                f"{image}: {height} x {width} pixels, expected at least one tile of {AVIRIS_TILE_PX} x {AVIRIS_TILE_PX}"
            )
            trials += [Trial.refused(image.stem, protocol, small) for protocol in protocols]
        for protocol in protocols:
            for number, corner in enumerate(corners):
                make: Callable[[], SimulatedPair] = partial(_aviris_tile, source, protocol, corner)
                trials.append(Trial(cube=f"{image.stem}_{number}", protocol=protocol, make=make))
    return trials


def _aviris_tile(source: CubeSource, protocol: Protocol, corner: tuple[int, int]) -> SimulatedPair:
    cube = _opened(source)
    n_bands = len(cube.bands)
    kept = np.ones(n_bands, bool)
    if n_bands == AVIRIS_BANDS:
        kept = ~np.isin(cube.bands.source_band, band_numbers(AVIRIS_DROPPED, n_bands, of=source.uri))
    if kept.sum() != 172:
        raise InputRejected(
            f"{source.uri}: {n_bands} bands, expected the {AVIRIS_BANDS} bands of AVIRIS or the 172 that the papers keep"
        )
    bands = cube.bands.mark_bad(~kept)
    if empty := int((kept & ~bands.good).sum()):
        log.warning("%s: %d of the 172 bands carry no signal and are left out", cube.name, empty)
    row, col = corner
    tile = cube.values[:, row : row + AVIRIS_TILE_PX, col : col + AVIRIS_TILE_PX]
    return simulate(replace(cube, values=np.maximum(tile, 0.0), bands=bands), protocol)
