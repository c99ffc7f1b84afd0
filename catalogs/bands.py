"""Bands: where the samples of a scene lie in the spectrum, and how one sensor sees another."""

from __future__ import annotations

import csv
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hyperfuse.catalogs.errors import InputRejected

DETECTOR_NM = 1000.0
"""Where the silicon of VNIR detectors ends and that of SWIR detectors takes over, within some tens of nanometers."""
SPECTRUM_NM = (300.0, 15000.0)
"""Wavelengths outside this range are taken for a wrong unit, not for a sensor."""

_UNIT_TO_NM = {
    "nm": 1.0, "nanometer": 1.0, "nanometers": 1.0, "nanometre": 1.0, "nanometres": 1.0,
    "um": 1e3, "µm": 1e3, "μm": 1e3, "micron": 1e3, "microns": 1e3,
    "micrometer": 1e3, "micrometers": 1e3, "micrometre": 1e3, "micrometres": 1e3,
    "m": 1e9, "meter": 1e9, "meters": 1e9,
}  # fmt: skip
_UNIT_IN_BRACKETS = re.compile(r"([^\[\](){}]+)[\[({]\s*([^\[\](){}]+?)\s*[\])}]")
_DECIMAL_COMMA = re.compile(r"^(-?\d+),(\d+)$")
_LEAST_FWHM_NM = 0.05
"""Widths below this are taken for a wrong unit."""
SIGMA_PER_FWHM = 1.0 / (2.0 * np.sqrt(2.0 * np.log(2.0)))


@dataclass(frozen=True, kw_only=True, eq=False)
class ResponseCurve:
    """Spectral response of one band as it was measured, relative; straight lines between the samples, 0 outside.

    Raises
    ------
    ValueError
        If there are fewer than two samples, wavelengths do not increase, or the response is negative or 0 throughout.
    """

    wavelength_nm: NDArray[np.float64]
    """Wavelengths (nm), shape (sample,), increasing."""
    response: NDArray[np.float64]
    """Response at them, in any unit, shape (sample,)."""

    def __post_init__(self) -> None:
        if self.wavelength_nm.shape != self.response.shape or self.wavelength_nm.size < 2:
            raise ValueError(
                f"{self.response.size} responses at {self.wavelength_nm.size} wavelengths, expected two or more"
            )
        if not np.all(np.diff(self.wavelength_nm) > 0):
            raise ValueError("the wavelengths do not increase")
        if not (np.all(self.response >= 0) and np.any(self.response > 0)):
            raise ValueError("a response is negative, not a number, or 0 at all wavelengths")

    def area(self, low_nm: NDArray[np.float64], high_nm: NDArray[np.float64]) -> NDArray[np.float64]:
        """Share of the area under the curve that lies between two wavelengths, 0 to 1."""
        steps = np.diff(self.wavelength_nm) * (self.response[1:] + self.response[:-1]) / 2
        below = np.concatenate([[0.0], np.cumsum(steps)])

        def up_to(nm: NDArray[np.float64]) -> NDArray[np.float64]:
            at = np.clip(np.searchsorted(self.wavelength_nm, nm, side="right") - 1, 0, len(steps) - 1)
            inside = np.clip(nm, self.wavelength_nm[0], self.wavelength_nm[-1])
            here = np.interp(inside, self.wavelength_nm, self.response)
            return np.asarray(below[at] + (inside - self.wavelength_nm[at]) * (self.response[at] + here) / 2)

        return np.asarray((up_to(high_nm) - up_to(low_nm)) / below[-1])


@dataclass(frozen=True, kw_only=True, eq=False)
class Bands:
    """Spectral bands of a scene, sorted by wavelength; the scene's band axis is in the same order.

    Raises
    ------
    ValueError
        If the arrays differ in length, the centers decrease, or a width is not positive.
    """

    center_nm: NDArray[np.float64]
    """Center wavelength (nm), shape (band,), not decreasing."""
    fwhm_nm: NDArray[np.float64]
    """Full width at half maximum (nm), shape (band,); NaN where the product does not tell."""
    good: NDArray[np.bool_]
    """False for bands that carry no signal (absorption, dead detectors), shape (band,)."""
    source_band: NDArray[np.int64]
    """0-based position of the band in the file, shape (band,); not monotonic where detectors overlap."""
    names: tuple[str, ...]
    """Band names as the product gives them, or the wavelength."""
    gsd_m: NDArray[np.float64] | None = None
    """Native sampling distance (m), shape (band,); a band coarser than the scene's grid comes as blocks of equal pixels
    that begin at the scene's corner. None: all bands are of the scene's grid."""
    curves: tuple[ResponseCurve, ...] | None = None
    """Measured responses of the bands; None: Gaussians of the centers and widths."""

    def __post_init__(self) -> None:
        n_bands = self.center_nm.shape[0]
        for field in ("fwhm_nm", "good", "source_band", *(() if self.gsd_m is None else ("gsd_m",))):
            if getattr(self, field).shape != (n_bands,):
                raise ValueError(f"{field} has shape {getattr(self, field).shape}, center_nm has {n_bands} bands")
        if len(self.names) != n_bands:
            raise ValueError(f"{len(self.names)} names for {n_bands} bands")
        if self.curves is not None and len(self.curves) != n_bands:
            raise ValueError(f"{len(self.curves)} response curves for {n_bands} bands")
        if np.any(np.diff(self.center_nm) < 0):
            raise ValueError("center_nm decreases: build Bands with Bands.sort, which permutes the data too")
        if np.any(self.fwhm_nm <= 0):
            raise ValueError(f"fwhm_nm must be positive, the smallest is {np.nanmin(self.fwhm_nm)}")

    def __len__(self) -> int:
        return int(self.center_nm.shape[0])

    def __getitem__(self, index: ArrayLike) -> Bands:
        """Those bands of an increasing integer index or a boolean mask, shape (band,)."""
        picked = np.arange(len(self))[np.asarray(index)]
        return Bands(
            center_nm=self.center_nm[picked],
            fwhm_nm=self.fwhm_nm[picked],
            good=self.good[picked],
            source_band=self.source_band[picked],
            names=tuple(self.names[i] for i in picked),
            gsd_m=None if self.gsd_m is None else self.gsd_m[picked],
            curves=None if self.curves is None else tuple(self.curves[i] for i in picked),
        )

    @classmethod
    def sort(
        cls,
        wavelength: ArrayLike,
        *,
        unit: str | None,
        of: str,
        fwhm: ArrayLike | None = None,
        good: ArrayLike | None = None,
        names: Sequence[str] | None = None,
        gsd_m: ArrayLike | None = None,
    ) -> Bands:
        """Bands of file order, sorted by wavelength; `source_band` says where each came from.

        Parameters
        ----------
        wavelength : array_like, shape (band,)
            Centers in file order.
        unit : str or None
            Unit of `wavelength` and `fwhm`; None tells nanometers and micrometers apart by their size.
        of : str
            The file, for error messages.
        fwhm, good : array_like, shape (band,), optional
            Widths in the same unit; False or 0 for bad bands.
        names : sequence of str, optional
            Names in file order.
        gsd_m : array_like, shape (band,), optional
            Native sampling distances (m) in file order, where they differ.

        Raises
        ------
        InputRejected
            If the wavelengths are not finite, lie outside 300-15000 nm in the given unit, or a width is not positive.
        """
        center = np.asarray(wavelength, dtype=np.float64)
        if center.ndim != 1 or center.size == 0 or not np.all(np.isfinite(center)):
            raise InputRejected(
                f"{of}: {int(np.sum(~np.isfinite(center)))} of {center.size} wavelengths are missing or not numbers; "
                "give a table with --set hsi.wavelengths=FILE.csv or --set msi.wavelengths=FILE.csv (columns: "
                "center_nm, optionally fwhm_nm and good)"
            )
        factor = _to_nm(center, unit, of)
        center = center * factor
        width = np.full_like(center, np.nan) if fwhm is None else np.asarray(fwhm, dtype=np.float64) * factor
        if width.shape != center.shape:
            raise InputRejected(f"{of}: {width.size} FWHM values for {center.size} bands; correct the header")
        if np.any(width <= 0):
            raise InputRejected(
                f"{of}: the FWHM of band {int(np.argmax(width <= 0)) + 1} is {np.nanmin(width):g} nm, expected a "
                "positive width; correct the header or give a table"
            )
        usable = np.ones(center.shape, bool) if good is None else np.asarray(good).astype(bool)
        if usable.shape != center.shape:
            raise InputRejected(f"{of}: {usable.size} bad-band flags for {center.size} bands; correct the header")
        order = np.argsort(center, kind="stable")
        labels = tuple(names) if names is not None else tuple(f"{value:.1f} nm" for value in center)
        usable = usable[order]
        # Two bands at one wavelength cannot both be on a strictly increasing axis: the first good one is kept.
        kept = np.flatnonzero(usable)
        usable[kept[1:][np.diff(center[order][kept]) <= 0]] = False
        return cls(
            center_nm=center[order],
            fwhm_nm=width[order],
            good=usable,
            source_band=order.astype(np.int64),
            names=tuple(labels[i] for i in order),
            gsd_m=None if gsd_m is None else np.asarray(gsd_m, dtype=np.float64)[order],
        )

    def mark_bad(self, bad: ArrayLike) -> Bands:
        """The same bands with those of the boolean mask `bad`, shape (band,), no longer good."""
        return replace(self, good=self.good & ~np.asarray(bad, dtype=bool))

    def nearest(self, nm: float, *, within_nm: float = 20.0) -> int:
        """Index of the good band nearest to a wavelength.

        Raises
        ------
        LookupError
            If no good band lies within `within_nm`; the message names the closest.
        """
        distance = np.where(self.good, np.abs(self.center_nm - nm), np.inf)
        index = int(np.argmin(distance))
        if not distance[index] <= within_nm:
            if not np.any(self.good):
                raise LookupError(
                    f"no good band within {within_nm} nm of {nm} nm; all {len(self)} bands are marked bad"
                )
            raise LookupError(
                f"no good band within {within_nm} nm of {nm} nm; the closest is {self.center_nm[index]:.1f} nm"
            )
        return index

    def width_nm(self) -> NDArray[np.float64]:
        """FWHM (nm), shape (band,), with unknown widths replaced by the spacing of the centers."""
        if len(self) < 2:
            return np.where(np.isfinite(self.fwhm_nm), self.fwhm_nm, 10.0)
        return np.where(np.isfinite(self.fwhm_nm), self.fwhm_nm, np.maximum(np.gradient(self.center_nm), 1.0))

    def srf(self, broad: Bands) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Weights that turn these bands into the bands of a broader sensor.

        Gaussian responses unless the broad sensor's are measured; each weight is the response of the broad band at our
        center times our spacing, or the area of its curve over our spacing, over good bands only.

        Returns
        -------
        weights : ndarray, shape (broad band, band)
            Rows sum to 1; a row is 0 where no good band lies under the response.
        coverage : ndarray, shape (broad band,)
            Share of the response's area that our good bands cover, 0 to 1.
        """
        # A gap in the spectrum must not be credited to the bands at its rim, hence the cap at our own width.
        spacing = np.minimum(np.gradient(self.center_nm) if len(self) > 1 else np.inf, 1.5 * self.width_nm())
        if broad.curves is None:
            sigma = broad.width_nm()[:, None] * SIGMA_PER_FWHM
            response = np.exp(-0.5 * ((self.center_nm[None, :] - broad.center_nm[:, None]) / sigma) ** 2)
            weights, whole = response * spacing, sigma[:, 0] * np.sqrt(2.0 * np.pi)
        else:
            limits = self.center_nm - spacing / 2, self.center_nm + spacing / 2
            weights, whole = np.stack([curve.area(*limits) for curve in broad.curves]), np.ones(len(broad))
        weights = np.where(self.good, weights, 0.0)
        area = weights.sum(axis=1)
        coverage = np.clip(area / whole, 0.0, 1.0)
        seen = coverage > 0.01
        return np.where(seen[:, None], weights / np.where(seen, area, 1.0)[:, None], 0.0), coverage

    def to_json(self) -> dict[str, list[Any]]:
        """Plain lists; NaN widths become None."""
        return {
            "center_nm": [float(v) for v in self.center_nm],
            "fwhm_nm": [float(v) if np.isfinite(v) else None for v in self.fwhm_nm],
            "good": [bool(v) for v in self.good],
            "source_band": [int(v) for v in self.source_band],
            "names": list(self.names),
            **({} if self.gsd_m is None else {"gsd_m": [float(v) for v in self.gsd_m]}),
            **({} if self.curves is None else {"curves": [_pairs(curve) for curve in self.curves]}),
        }

    @classmethod
    def from_json(cls, record: dict[str, list[Any]]) -> Bands:
        """Inverse of `to_json`."""
        return cls(
            center_nm=np.array(record["center_nm"], dtype=np.float64),
            fwhm_nm=np.array([np.nan if v is None else v for v in record["fwhm_nm"]], dtype=np.float64),
            good=np.array(record["good"], dtype=bool),
            source_band=np.array(record["source_band"], dtype=np.int64),
            names=tuple(record["names"]),
            gsd_m=np.array(record["gsd_m"], dtype=np.float64) if "gsd_m" in record else None,
            curves=tuple(_curve(pairs) for pairs in record["curves"]) if "curves" in record else None,
        )


@dataclass(frozen=True, kw_only=True)
class BandTable:
    """Wavelengths that the user gives beside a file, in file order."""

    wavelength: tuple[float, ...]
    """Centers, in `unit`."""
    fwhm: tuple[float, ...] | None
    """Widths, in `unit`."""
    good: tuple[bool, ...] | None
    """False for bad bands."""
    unit: str | None
    """None if the table does not tell."""


def widths_in_unit(table: BandTable, of: str) -> tuple[BandTable, tuple[str, ...]]:
    """The table with its widths in the unit of its centers, and a note where they were in another.

    Two tools that write one header write nanometers beside micrometers: a width beyond the wavelength itself, or of less
    than a twentieth of a nanometer, is no width of an optical band.
    """
    center = np.array(table.wavelength, np.float64)
    if table.fwhm is None or len(table.fwhm) != center.size or not np.any(np.isfinite(table.fwhm)):
        return table, ()
    to_nm = nm_per(table.unit) or (1e3 if np.nanmax(center) <= SPECTRUM_NM[1] / 1e3 else 1.0)
    middle, width = float(np.nanmedian(center)) * to_nm, float(np.nanmedian(table.fwhm)) * to_nm
    for factor, told in ((1e-3, "nanometers"), (1e3, "micrometers")):
        wrong = width > middle if factor < 1 else 0 < width < _LEAST_FWHM_NM
        if wrong and _LEAST_FWHM_NM <= width * factor <= middle:
            note = f"{of}: FWHM of {width:g} nm in the unit of the wavelengths cannot be: taken for {told}, {width * factor:g} nm"
            return replace(table, fwhm=tuple(v * factor for v in table.fwhm)), (note,)
    return table, ()


def without_wavelength(table: BandTable) -> NDArray[np.bool_]:
    """Bands, in file order, whose wavelength is 0, or missing and flagged bad: they were not acquired."""
    center = np.array(table.wavelength, np.float64)
    bad = np.zeros(center.shape, bool) if table.good is None else ~np.array(table.good, bool)
    if bad.shape != center.shape:
        return np.zeros(center.shape, bool)
    return np.asarray((center == 0) | (bad & ~(center > 0)))


def read_table(source: str) -> BandTable:
    """A band table from a CSV file, or from numbers separated by commas.

    Parameters
    ----------
    source : str
        `"665,560,490"`, or a CSV file with a header. Read are the columns `center_nm` (or `wavelength`, `center_um`,
        `wavelength [nm]`), `fwhm_nm` (or `fwhm`, `fwhm_um`, `FWHM (um)`) and `good` (or `bbl`); other columns and lines that
        begin with # are ignored, an empty width is an unknown one. Columns are separated by commas, semicolons or tabs.

    Raises
    ------
    InputRejected
        If there is no such file, no wavelength column, or a value is not a number.
    """
    try:
        listed = source.strip().strip("[]()").rstrip(",;").replace(";", ",").split(",")
        return BandTable(wavelength=tuple(float(v) for v in listed), fwhm=None, good=None, unit=None)
    except ValueError:
        pass
    path = Path(source)
    if not path.is_file():
        raise InputRejected(f"{source}: no such band table; give a CSV file or the wavelengths separated by commas")
    rows = csv_rows(path)
    columns = set(rows[0]) if rows else set()
    center = _first(
        columns,
        "center_wavelength_nm",
        "center_wavelength_um",
        "center_wavelength",
        "center_nm",
        "wavelength_nm",
        "centre_nm",
        "wavelength",
        "center_um",
        "wavelength_um",
    )
    if center is None:
        raise InputRejected(f"{source}: no column center_nm or wavelength among its {len(columns)}; name one so")
    width = _first(columns, "fwhm_nm", "fwhm", "fwhm_um")
    flag = _first(columns, "good", "bbl")
    unit = _suffix_unit(center)
    ours, theirs = nm_per(unit), nm_per(_suffix_unit(width or ""))
    ratio = theirs / ours if ours and theirs else 1.0  # center_nm beside fwhm_um
    try:
        return BandTable(
            wavelength=tuple(float(row[center]) for row in rows),
            fwhm=tuple(float(row[width] or "nan") * ratio for row in rows) if width else None,
            good=tuple(row[flag].lower() not in {"0", "0.0", "false", "no"} for row in rows) if flag else None,
            unit=unit,
        )
    except ValueError as error:
        # What is no number is not quoted: a catalogue may have named any file.
        told = center if width is None else f"{center} and {width}"
        raise InputRejected(
            f"{source}: holds text among its numbers, but every value of {told} must be a number"
        ) from error


def nm_per(unit: str | None) -> float | None:
    """Nanometers per unit of length, None if the unit is missing or unknown."""
    return _UNIT_TO_NM.get((unit or "").strip().lower())


def csv_rows(path: Path) -> list[dict[str, str]]:
    """Rows of a CSV file, keys in lower case; lines that begin with # are comments."""
    try:
        lines = [
            line for line in path.read_text(encoding="utf-8-sig").splitlines() if not line.lstrip().startswith("#")
        ]
    except UnicodeDecodeError as error:
        raise InputRejected(f"{path}: not a text file ({error.reason}); expected a CSV table in UTF-8") from error
    # Where the comma is the decimal sign, semicolons or tabs separate.
    title = lines[0] if lines else ""
    separator = max(";\t", key=title.count) if any(sign in title for sign in ";\t") else ","
    table = [[value.strip() for value in row] for row in csv.reader(lines, delimiter=separator) if any(row)]
    table = [row for row in table if any(row)]
    if separator != ",":
        table[1:] = [[_DECIMAL_COMMA.sub(r"\1.\2", value) for value in row] for row in table[1:]]
    header = [_column(name) for name in table[0]] if table else []
    for number, row in enumerate(table[1:], start=1):
        if len(row) != len(header):
            raise InputRejected(
                f"{path}: row {number} has {len(row)} values for {len(header)} columns; correct the table"
            )
    return [dict(zip(header, row, strict=True)) for row in table[1:]]


def _column(name: str) -> str:
    """A column's name in small letters; `Wavelength [nm]` and `FWHM (um)` carry their unit as `fwhm_um` does."""
    lowered = name.strip().lower()
    found = _UNIT_IN_BRACKETS.fullmatch(lowered)
    if found is None or (to_nm := nm_per(found[2])) not in (1.0, 1e3):
        return lowered
    return f"{found[1].strip().replace(' ', '_')}_{'nm' if to_nm == 1.0 else 'um'}"


def _pairs(curve: ResponseCurve) -> list[list[float]]:
    return [curve.wavelength_nm.tolist(), curve.response.tolist()]


def _curve(pairs: list[list[float]]) -> ResponseCurve:
    return ResponseCurve(wavelength_nm=np.array(pairs[0]), response=np.array(pairs[1]))


def _suffix_unit(column: str) -> str | None:
    return {"nm": "nm", "um": "um"}.get(column.rpartition("_")[2])


def _first(columns: set[str], *names: str) -> str | None:
    return next((name for name in names if name in columns), None)


def _to_nm(center: NDArray[np.float64], unit: str | None, of: str) -> float:
    low, high = SPECTRUM_NM
    span = f"{center.min():g} to {center.max():g}"
    if unit is None or unit.strip().lower() in {"", "unknown"}:
        factor = 1e3 if center.max() <= high / 1e3 else 1.0
        told = "without a unit"
    elif (known := nm_per(unit)) is not None:
        factor, told = known, f"in {unit.strip()}"
    else:
        raise InputRejected(f"{of}: wavelength unit {unit!r} is unknown; expected nanometers or micrometers")
    if center.min() * factor < low or center.max() * factor > high:
        raise InputRejected(
            f"{of}: wavelengths of {span} {told} are not {low:g}-{high:g} nm; correct the unit in the header "
            "or give a table"
        )
    return factor


def detector_of(center_nm: ArrayLike) -> NDArray[np.intp]:
    """Number of the detector that sees a wavelength: 0 up to `DETECTOR_NM`, 1 beyond."""
    return np.asarray(np.asarray(center_nm) > DETECTOR_NM, np.intp)
