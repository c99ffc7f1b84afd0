"""Images whose bands lie apart: variables of one NetCDF file or Zarr group, or files of one band each."""

from __future__ import annotations

import glob
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from hyperfuse.catalogs.addresses import BAND, as_glob
from hyperfuse.catalogs.bands import BandTable, nm_per
from hyperfuse.catalogs.errors import InputRejected
from hyperfuse.catalogs.formats.arrays import Kind, flat_variables, open_array
from hyperfuse.catalogs.formats.declared import wavelengths_of_names
from hyperfuse.catalogs.formats.layers import Layer, LayeredSamples
from hyperfuse.catalogs.formats.raster import open_raster, raster_driver
from hyperfuse.catalogs.formats.stored import Image

_NO_BAND = re.compile(
    r"scl|.*mask.*|.*qa.*|.*cloud.*|.*shadow.*|.*class.*|.*flag.*|.*prob.*|.*snow.*|aot|wvp|.*quality.*|elev.*|dem|.*angle.*|"
    r"fmask|.*azimuth.*|.*zenith.*",
    re.IGNORECASE,
)
"""Variables beside the bands of an image."""
_PLACE_TOLERANCE_PX = 0.01


def open_variables(path: Path, kind: Kind, variable: str | None) -> Image:
    """The image of a file: one array, or several of one band each.

    Parameters
    ----------
    path : Path
    kind : Kind
    variable : str or None
        Array, as `catalogs.formats.arrays.open_array` takes it; or the bands in their order, separated by commas
        (`B04,B03,B02` or `B04,B03@2024-05-11`). Without it, arrays without a band axis are bands unless their names say that they
        are masks.

    Raises
    ------
    InputRejected
        As `open_array`, or if the bands do not lie on one grid.
    """
    before, at, date = (variable or "").rpartition("@") if variable and "@" in variable else (variable or "", "", "")
    names: Sequence[str] = [name.strip() for name in before.split(",") if name.strip()] if "," in before else ()
    left: list[str] = []
    if not names and not before:
        found = flat_variables(path, kind)
        names = [name for name in found if not _NO_BAND.fullmatch(name)]
        left = [name for name in found if name not in names]
    if len(names) < 2:
        # Of one band and its masks, the band is the image.
        return open_array(path, kind, f"{names[0]}{at}{date}" if names else variable)
    image = _stacked(path, list(names), [open_array(path, kind, f"{name}{at}{date}") for name in names])
    notes = [f"bands by the variables {', '.join(names)}"]
    notes += [f"not used: the variables {', '.join(left)}"] if left else []
    return replace(image, notes=(*image.notes, *notes))


def open_files(uri: str, bands: str | None) -> Image:
    """The image of files of one band each.

    Parameters
    ----------
    uri : str
        Path with `{band}` where the files' names differ by that of the band; other parts may be a glob.
    bands : str or None
        Bands in their order, separated by commas; all that there are, sorted by name, unless given.

    Raises
    ------
    InputRejected
        If there is not one file for each band, one holds more than one band, or they do not lie on one grid.
    """
    # The same name in every place of the pattern.
    escaped = re.escape(uri).replace(r"\*", "[^/]*").replace(r"\?", "[^/]")
    first, *rest = escaped.split(re.escape(BAND))
    expression = re.compile(first + "([A-Za-z0-9-]+)" + "".join(r"\1" * (i > 0) + part for i, part in enumerate(rest)))
    there: dict[str, Path] = {}
    for found in sorted(glob.glob(as_glob(uri))):  # noqa: PTH207 (a pattern from the user)
        match, path = expression.fullmatch(found), Path(found)
        if match is None or path.suffix.lower() == ".hdr" or raster_driver(path) is None:
            continue
        if match[1] in there:
            raise InputRejected(
                f"{uri}: {there[match[1]].name} and {path.name} are both the band {match[1]}; narrow the pattern"
            )
        there[match[1]] = path
    names = (
        sorted(there, key=_natural) if bands is None else [name.strip() for name in bands.split(",") if name.strip()]
    )
    if not names or (unknown := [name for name in names if name not in there]):
        asked = f"no image of the band {unknown[0]}" if names else "no image"
        raise InputRejected(
            f"{uri}: {asked} matches it; there are {', '.join(there) or 'none'}, check the path and the bands"
        )
    images = [open_raster(there[name], raster_driver(there[name]) or "GTiff") for name in names]
    if many := next((image for image in images if image.samples.shape[0] != 1), None):
        raise InputRejected(f"{many.path}: holds {many.samples.shape[0]} bands, expected one in each file of {uri}")
    return _stacked(Path(uri), names, images)


def _natural(name: str) -> list[tuple[int, str]]:
    """B2 before B10, B8 before B8A before B9."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.findall(r"\d+|\D+", name)]


def _stacked(path: Path, names: list[str], images: list[Image]) -> Image:
    """Images of one band each as one."""
    first = images[0]
    for name, image in zip(names, images, strict=True):
        if image.samples.shape != first.samples.shape or not _same_place(image, first):
            raise InputRejected(
                f"{path}: {name} has {image.samples.shape[1]} x {image.samples.shape[2]} pixels at another place than the "
                f"{first.samples.shape[1]} x {first.samples.shape[2]} of {names[0]}, expected one grid for all bands; choose those of one "
                "grid with --set hsi.variable=NAME,NAME or --set msi.variable=NAME,NAME, or resample them first"
            )
        if image.valid_range != first.valid_range or (image.scale is None) != (first.scale is None):
            raise InputRejected(
                f"{path}: {name} declares another valid range than {names[0]}, or only one of them a scale; expected the same of all "
                "bands, so choose bands that go together with hsi.variable or msi.variable"
            )
    declared = first.scale is not None
    times = [image.time for image in images if image.time is not None]
    return replace(
        first,
        path=path,
        files=tuple(dict.fromkeys(file for image in images for file in image.files)),
        samples=LayeredSamples(
            layers=tuple(Layer(samples=image.samples) for image in images), size=first.samples.shape[1:]
        ),
        table=_table(names, images),
        names=tuple(names),
        nodata=tuple(dict.fromkeys(value for image in images for value in image.nodata)),
        scale=np.concatenate([image.scale for image in images if image.scale is not None]) if declared else None,
        offset=np.concatenate([image.offset for image in images if image.offset is not None]) if declared else None,
        time=min(times, default=None),
        unwritten=max(image.unwritten for image in images),
        notes=tuple(dict.fromkeys(note for image in images for note in image.notes)),
    )


def _same_place(image: Image, first: Image) -> bool:
    if image.crs != first.crs or (image.affine is None) != (first.affine is None):
        return False
    if image.affine is None or first.affine is None:
        return True
    _, height, width = first.samples.shape
    corners = [(~first.affine @ (image.affine @ corner), corner) for corner in ((0, 0), (width, height))]
    return all(
        max(abs(a - b) for a, b in zip(at, corner, strict=True)) <= _PLACE_TOLERANCE_PX for at, corner in corners
    )


def _table(names: list[str], images: list[Image]) -> BandTable | None:
    """Wavelengths where every band tells its own, by an attribute or in its words; a band's name tells none."""
    tables = [image.table for image in images]
    if all(table is not None and len(table.wavelength) == 1 for table in tables):
        center, width = [], []
        for table in tables:
            assert table is not None  # noqa: S101 (looked at above)
            factor = nm_per(table.unit) or (1.0 if table.wavelength[0] > 100 else 1e3)
            center.append(table.wavelength[0] * factor)
            width.append(np.nan if table.fwhm is None else table.fwhm[0] * factor)
        known = not np.isnan(width).all()
        return BandTable(wavelength=tuple(center), fwhm=tuple(width) if known else None, good=None, unit="nm")
    return wavelengths_of_names([f"{name} {image.measures}" for name, image in zip(names, images, strict=True)])
