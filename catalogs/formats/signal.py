"""Which bands carry signal: what samples show, and what the atmosphere lets through."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from hyperfuse.catalogs.bands import Bands
from hyperfuse.catalogs.errors import InputRejected

USABLE_NM = (400.0, 2410.0)
"""Below and above, sensors of the reflected sun see mostly noise."""
WATER_VAPOR_NM = ((1350.0, 1450.0), (1805.0, 1960.0))
"""The two ranges where the water vapor of the atmosphere leaves nothing of the ground."""


def without_signal(
    values: NDArray[np.float32], bands: Bands, *, whole: bool, of: str
) -> tuple[NDArray[np.bool_], tuple[str, ...]]:
    """Bands that carry no signal: empty, constant, or clipped to one value in most pixels while other bands are not.

    Parameters
    ----------
    values : ndarray, shape (band, sample), float32
        NaN where there is no valid sample.
    bands : Bands
        In the order of `values`.
    whole : bool
        Whether the samples are all of the image.
    of : str
        The file, for messages.

    Returns
    -------
    dead : ndarray, shape (band,), bool
    notes : tuple of str
        A sentence for each reason.

    Raises
    ------
    InputRejected
        If a whole image holds nothing but zeros or no data.
    """
    valid = np.isfinite(values)
    count = valid.sum(axis=1)
    if whole and not np.any(values[valid]):
        raise InputRejected(f"{of}: all samples are 0 or no data; the file was written only in part, fetch it again")
    low = np.where(valid, values, np.inf).min(axis=1)
    high = np.where(valid, values, -np.inf).max(axis=1)
    dead = (count == 0) | ((count >= 16) & (low == high))
    if dead.all():
        return np.zeros_like(dead), (f"every band is empty or constant in the {values.shape[1]} pixels looked at",)
    at_end = [(values == end[:, None]).sum(axis=1) / np.maximum(count, 1) for end in (low, high)]
    share = np.maximum(*at_end)
    # An image with undeclared black margins has a large share in every band: that is not the fault of a band.
    clipped = ~dead & (share > 0.5) & (np.median(share[~dead]) < 0.1)
    twins = ~bands.good & np.isin(bands.center_nm, bands.center_nm[bands.good])
    told = (
        (twins, "at the wavelength of another band"),
        (dead & bands.good, "empty or constant"),
        (clipped & bands.good, "clipped to one value in most pixels"),
    )
    notes = []
    for flags, what in told:
        if n_bands := int(flags.sum()):
            listed = ", ".join(str(band + 1) for band in sorted(bands.source_band[flags])[:20]) + " ..." * (
                n_bands > 20
            )
            notes.append(f"{n_bands} of {len(bands)} bands are {what} and not used (in the file: {listed})")
    return dead | clipped, tuple(notes)


def absorbed(bands: Bands) -> NDArray[np.bool_]:
    """Bands whose center lies where the atmosphere or the sensor leaves no signal of the ground, shape (band,)."""
    nm = bands.center_nm
    inside = [(nm > low) & (nm < high) for low, high in WATER_VAPOR_NM]
    outside: NDArray[np.bool_] = np.any(inside, axis=0) | (nm < USABLE_NM[0]) | (nm > USABLE_NM[1])
    return outside
