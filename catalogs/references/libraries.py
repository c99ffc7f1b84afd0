"""Spectral libraries: reflectance of known materials, from ENVI files.

Two layouts are in use: `ENVI Spectral Library` files (.sli), whose lines are spectra and whose samples are wavelengths,
and plain ENVI images whose pixels are spectra, as imaging spectroscopists pass them around. GDAL does not read the
first; both are read here, by the header alone, and nothing of it is trusted that the data file does not bear out.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hyperfuse.catalogs.bands import SPECTRUM_NM, Bands
from hyperfuse.catalogs.errors import InputRejected
from hyperfuse.catalogs.formats.raster import envi_header
from hyperfuse.catalogs.references.cubes import ReferenceCube

REACH_NM = 40.0
"""So far beyond its first and last wavelength the spectra of a library are continued by their end values."""
_GAP_NM = 300.0  # the ranges of water vapor, which field spectra leave out, are bridged by straight lines
_GRID_NM = 2.5
_MAX_HEADER_BYTES = 1 << 24
_MAX_VALUES = 1 << 28
_LIBRARY = "envi spectral library"
_DTYPES = {"1": "u1", "2": "i2", "3": "i4", "4": "f4", "5": "f8", "12": "u2", "13": "u4", "14": "i8", "15": "u8"}
_AXES = {
    "bsq": ("bands", "lines", "samples"),
    "bil": ("lines", "bands", "samples"),
    "bip": ("lines", "samples", "bands"),
}
_LIMITS = (-0.02, 1.5)  # reflectance beyond them is a fault of a measurement


@dataclass(frozen=True, kw_only=True, eq=False)
class SpectralLibrary:
    """Spectra at common wavelengths.

    Raises
    ------
    ValueError
        If shapes differ or the wavelengths do not increase.
    """

    name: str
    """Short name for messages."""
    wavelength_nm: NDArray[np.float64]
    """Shape (sample,), increasing."""
    reflectance: NDArray[np.float32]
    """Shape (spectrum, sample), finite."""

    def __post_init__(self) -> None:
        if self.reflectance.shape[1:] != self.wavelength_nm.shape or np.any(np.diff(self.wavelength_nm) <= 0):
            raise ValueError(
                f"{self.name}: {self.reflectance.shape} values for {self.wavelength_nm.size} increasing wavelengths"
            )

    def __len__(self) -> int:
        return len(self.reflectance)

    def covers(self, nm: NDArray[np.float64]) -> NDArray[np.bool_]:
        """Where the spectra are known: within `REACH_NM` of the range, and in no gap wider than that of water vapor."""
        own = self.wavelength_nm
        inside = (nm >= own[0] - REACH_NM) & (nm <= own[-1] + REACH_NM)
        for k in np.flatnonzero(np.diff(own) > _GAP_NM):
            inside &= (nm <= own[k] + REACH_NM) | (nm >= own[k + 1] - REACH_NM)
        return np.asarray(inside)

    def seen_by(self, bands: Bands) -> NDArray[np.float32]:
        """The spectra as a sensor sees them, Gaussian responses unless its own are known, shape (spectrum, band).

        Notes
        -----
        Where the library is sampled more coarsely than the sensor, straight lines lead from sample to sample.
        """
        reach_nm = 3 * bands.width_nm().max()
        low, high = max(bands.center_nm[0] - reach_nm, SPECTRUM_NM[0]), bands.center_nm[-1] + reach_nm
        grid_nm = np.arange(low, high + _GRID_NM, _GRID_NM)
        fine = np.stack([np.interp(grid_nm, self.wavelength_nm, spectrum) for spectrum in self.reflectance])
        weights, _ = Bands.sort(grid_nm, unit="nm", of=self.name, fwhm=np.full(grid_nm.shape, _GRID_NM)).srf(bands)
        return np.asarray(fine @ weights.T, np.float32)


def open_library(path: Path) -> SpectralLibrary:
    """Read a spectral library.

    Parameters
    ----------
    path : Path
        Data file or header of an ENVI spectral library, or of an ENVI image whose pixels are spectra.

    Returns
    -------
    SpectralLibrary
        Spectra that are not finite or no reflectance (below -0.02 or above 1.5) are left out.

    Raises
    ------
    InputRejected
        If there is no such file or header, the header contradicts itself or the file, or no spectrum is left.
    """
    data, header = _files(path)
    fields = _fields(header)
    sizes = {key: _count(fields, key, header) for key in ("lines", "samples", "bands")}
    values = _values(data, header, fields, sizes)
    if fields.get("file type", "").lower() == _LIBRARY:
        spectra = values.reshape(-1, sizes["samples"])  # one line is one spectrum
    else:
        spectra = np.moveaxis(values, _interleave(fields, header).index("bands"), -1).reshape(-1, sizes["bands"])
    try:
        wavelengths = [float(text) for text in fields["wavelength"].split(",") if text.strip()]
    except (KeyError, ValueError) as error:
        raise InputRejected(
            f"{header}: no list of wavelengths that are numbers, expected {spectra.shape[1]}; complete the header"
        ) from error
    if len(wavelengths) != spectra.shape[1]:
        raise InputRejected(
            f"{header}: gives {len(wavelengths)} wavelengths for spectra of {spectra.shape[1]} samples; correct the header"
        )
    bands = Bands.sort(wavelengths, unit=fields.get("wavelength units"), of=str(header))
    return _library(path.stem, bands, spectra[:, bands.source_band])


def library_of(cube: ReferenceCube, *, at_most: int = 2000, seed: int = 0) -> SpectralLibrary:
    """Pixels of a cube as a library.

    Parameters
    ----------
    cube : ReferenceCube
        Only its good bands are looked at.
    at_most : int
        Pixels that are drawn, where it has more.
    seed : int
        Of the draw.

    Raises
    ------
    InputRejected
        If no pixel is whole.
    """
    good = cube.bands[cube.bands.good]
    spectra = cube.values[cube.bands.good].reshape(len(good), -1).T
    if len(spectra) > at_most:
        spectra = spectra[np.sort(np.random.default_rng(seed).choice(len(spectra), at_most, replace=False))]
    return _library(cube.name, good, spectra)


def _library(name: str, bands: Bands, spectra: NDArray[np.floating]) -> SpectralLibrary:
    """Spectra sorted by wavelength, one for each, in reflectance."""
    kept = np.append(True, np.diff(bands.center_nm) > 0)
    spectra = spectra[:, kept].astype(np.float64)
    spectra = spectra[np.isfinite(spectra).all(axis=1)]
    high = float(np.percentile(spectra, 99)) if spectra.size else 0.0
    # Nothing in these files tells the unit; percent and ten thousandths are the ones in use beside reflectance itself.
    unit = next((unit for unit in (1.0, 100.0, 10_000.0) if high <= 2.0 * unit), None)
    if unit is None:
        raise InputRejected(
            f"{name}: samples up to {high:.4g}, expected reflectance in 0-1, percent or ten thousandths; rescale it"
        )
    spectra /= unit
    whole = (spectra.min(axis=1) >= _LIMITS[0]) & (spectra.max(axis=1) <= _LIMITS[1]) & (spectra.max(axis=1) > 0)
    if not whole.any():
        raise InputRejected(
            f"{name}: none of its {len(spectra)} spectra is finite and within {_LIMITS[0]} to {_LIMITS[1]} in reflectance; "
            "check the file"
        )
    return SpectralLibrary(
        name=name,
        wavelength_nm=bands.center_nm[kept],
        reflectance=np.maximum(spectra[whole], 0.0).astype(np.float32),
    )


def _files(path: Path) -> tuple[Path, Path]:
    """Data file and header, whichever was named."""
    if path.suffix.lower() == ".hdr":
        stem = path.with_suffix("")
        data = next((p for p in (stem, stem.with_suffix(".sli"), stem.with_suffix(".SLI")) if p.is_file()), None)
        header: Path | None = path if path.is_file() else None
    else:
        data, header = (path if path.is_file() else None), envi_header(path)
    if data is None or header is None:
        raise InputRejected(f"{path}: no ENVI spectral library of data file and header; put both beside each other")
    return data, header


def _fields(header: Path) -> dict[str, str]:
    """Entries of a header, keys in lower case, lists without their braces."""
    if header.stat().st_size > _MAX_HEADER_BYTES:
        raise InputRejected(f"{header}: is larger than any header; fetch the file again")
    text = header.read_text(encoding="utf-8", errors="replace")
    if not text.startswith("ENVI"):
        raise InputRejected(f"{header}: does not begin with ENVI, expected an ENVI header; fetch the file again")
    found = re.findall(r"^[ \t]*([^={}\n]+?)[ \t]*=[ \t]*(\{[^}]*\}|[^\n]*)", text, flags=re.MULTILINE)
    return {key.lower(): value.strip("{} \t\r\n") for key, value in found}


def _count(fields: dict[str, str], key: str, header: Path) -> int:
    text = fields.get(key, "")
    if not (text.isdecimal() and 1 <= int(text) <= _MAX_VALUES):
        raise InputRejected(f"{header}: {key} is {text!r}, expected a count; correct the header")
    return int(text)


def _interleave(fields: dict[str, str], header: Path) -> tuple[str, str, str]:
    name = fields.get("interleave", "bsq").lower()
    if name not in _AXES:
        raise InputRejected(f"{header}: interleave is {name!r}, expected bsq, bil or bip; correct the header")
    return _AXES[name]


def _values(data: Path, header: Path, fields: dict[str, str], sizes: dict[str, int]) -> NDArray[np.float64]:
    """All samples, axes in the order of the file."""
    kind = _DTYPES.get(fields.get("data type", ""))
    offset = fields.get("header offset", "0")
    if kind is None or not offset.isdecimal():
        raise InputRejected(
            f"{header}: data type {fields.get('data type')!r} and header offset {offset!r}, expected real numbers and a "
            "count of bytes; correct the header"
        )
    dtype = np.dtype((">" if fields.get("byte order") == "1" else "<") + kind)
    shape = tuple(sizes[axis] for axis in _interleave(fields, header))
    size = math.prod(shape)
    if size > _MAX_VALUES or (found := data.stat().st_size) < int(offset) + size * dtype.itemsize:
        told = f"expected at most {_MAX_VALUES}" if size > _MAX_VALUES else f"the file has {found} bytes"
        raise InputRejected(f"{data}: its header declares {size} samples, {told}; fetch the file again")
    flat = np.fromfile(data, dtype, count=size, offset=int(offset))
    return flat.reshape(shape).astype(np.float64)
