"""Measured spectral responses that a user gives for a scene.

    wavelength_nm,B02,B03,B04,B08
    440,0.002,0,0,0
    441,0.011,0,0,0

One row per wavelength (`wavelength_nm`, `wavelength_um`, or `wavelength` in nanometers), one column per band, relative
responses in any unit. Columns belong to bands by name where every band of the scene has its column, else in the order of
the file's bands; lines that begin with # are comments.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from hyperfuse.catalogs.bands import Bands, ResponseCurve, csv_rows
from hyperfuse.catalogs.errors import InputRejected

_UNITS = {"wavelength_nm": 1.0, "wavelength": 1.0, "wavelength_um": 1e3}


def read_curves(path: Path) -> dict[str, ResponseCurve]:
    """Curves by the names of their columns (in lower case), in the order of the file.

    Raises
    ------
    InputRejected
        If there is no such file, no column of wavelengths, no band, or a column is no response.
    """
    if not path.is_file():
        raise InputRejected(
            f"{path}: no such table of responses; give a CSV file with wavelength_nm and a column per band"
        )
    rows = csv_rows(path)
    columns = list(rows[0]) if rows else []
    axis = next((name for name in _UNITS if name in columns), None)
    bands = [name for name in columns if name != axis]
    if axis is None or not bands:
        raise InputRejected(
            f"{path}: has {len(columns)} columns, expected one named wavelength_nm and one per band; name them so"
        )
    try:
        table = {name: np.array([float(row[name] or 0) for row in rows]) for name in columns}
    except ValueError as error:
        # What is no number is not quoted: a catalogue may have named any file.
        raise InputRejected(
            f"{path}: holds text among its numbers, but every wavelength and response must be a number; correct the table"
        ) from error
    order = np.argsort(table[axis])
    found = {}
    for name in bands:
        number = columns.index(name) + 1
        try:
            found[name] = ResponseCurve(wavelength_nm=table[axis][order] * _UNITS[axis], response=table[name][order])
        except ValueError as error:
            raise InputRejected(f"{path}: column {number}: {error}; correct the table") from error
    return found


def with_curves(bands: Bands, path: Path, *, of: str) -> Bands:
    """The same bands with the measured responses of a table.

    Parameters
    ----------
    bands : Bands
    path : Path
        As `read_curves` has it.
    of : str
        The scene, for messages.

    Raises
    ------
    InputRejected
        If columns and bands do not belong together: neither names nor number fit, or a curve lies elsewhere than its band.
    """
    found = read_curves(path)
    names = [name.lower() for name in bands.names]
    if all(name in found for name in names):
        curves = [found[name] for name in names]
    elif len(found) == len(bands):
        in_file = list(found.values())
        curves = [in_file[position] for position in bands.source_band]
    else:
        raise InputRejected(
            f"{path}: has columns of {len(found)} responses, {of} the bands {', '.join(bands.names)}; expected one column for "
            "each, by name or in the order of the file"
        )
    for center, name, curve in zip(bands.center_nm, bands.names, curves, strict=True):
        shown = np.flatnonzero(curve.response > 0.01 * curve.response.max())
        # Straight lines lead on to the next samples.
        low, high = (
            curve.wavelength_nm[max(shown[0] - 1, 0)],
            curve.wavelength_nm[min(shown[-1] + 1, curve.response.size - 1)],
        )
        if not low <= center <= high:
            raise InputRejected(
                f"{path}: the response of {name} lies at {low:g}-{high:g} nm, its center in {of} at {center:g} nm; check the "
                "order of the columns and the unit"
            )
    return replace(bands, curves=tuple(curves))
