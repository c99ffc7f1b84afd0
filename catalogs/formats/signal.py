"""Which bands and pixels carry signal: what samples show, and what the atmosphere lets through."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hyperfuse.catalogs.bands import Bands
from hyperfuse.catalogs.errors import InputRejected

USABLE_NM = (400.0, 2410.0)
"""Below and above, sensors of the reflected sun see mostly noise."""
WATER_VAPOR_NM = ((1350.0, 1450.0), (1805.0, 1960.0))
"""The two ranges where the water vapor of the atmosphere leaves nothing of the ground."""

SMALL_SHARE = 0.001
"""Share of the pixels that hold one value in all bands from which that value is fill."""
_USUAL = (0.0, -1.0, -99.0, -999.0, -9999.0, -32767.0, -32768.0, 55537.0, 65535.0)
"""Values that software writes where there is no data; 55537 is -9999 in 16 bits without a sign."""
_LEAST_PIXELS = 16
"""Fewer pixels of one value are no fill, whatever their share of a small image."""
_N_PROBES = 8
"""Bands that are read to find a pixel of fill again."""


@dataclass(frozen=True, kw_only=True)
class Fill:
    """Values that whole pixels hold and no file declares."""

    shares: Mapping[float, float]
    """Stored values, each with its share of the pixels, 0 to 1."""
    probes: tuple[int, ...]
    """Bands, in the order of the scene, by which such pixels are known."""

    @property
    def notes(self) -> tuple[str, ...]:
        """A sentence for each value."""
        return tuple(
            f"{100 * share:.1f} % of the pixels are {value:g} in all bands, which is not declared as nodata: taken for fill "
            "and masked; hsi.fill=keep or msi.fill=keep takes them for data"
            for value, share in self.shares.items()
        )


def undeclared_fill(
    raw: NDArray[np.float32], bands: Bands, dtype: np.dtype[Any], lines: Callable[[Sequence[int]], NDArray[np.float32]]
) -> Fill | None:
    """Fill that no nodata value declares: pixels that hold one and the same value in all bands, too many for chance.

    Parameters
    ----------
    raw : ndarray, shape (band, sample), float32
        Stored samples, NaN where they are no data already.
    bands : Bands
        In the order of `raw`; bad ones are not looked at, because some are constant.
    dtype : dtype
        Stored type.
    lines : callable
        Gives stored samples of some bands along whole rows and columns, of images that are too large for `raw` to be all.
    """
    valid = np.isfinite(raw)
    low, high = np.where(valid, raw, np.inf).min(axis=1), np.where(valid, raw, -np.inf).max(axis=1)
    usable = np.flatnonzero(bands.good & (low < high))
    if usable.size == 0:
        return None
    shares = _constant(raw[usable], dtype)
    # The bands that hold the values least often elsewhere tell fill from ground best.
    seen = np.array([[np.count_nonzero(raw[band] == np.float32(v)) for v in shares] for band in usable]).sum(axis=1)
    probes = usable[np.sort(np.argsort(seen, kind="stable")[:_N_PROBES])] if usable.size > 16 else usable
    if (along := lines(probes.tolist())).size:
        # Lines cross what the windows of `raw` miss; their share is that of the image.
        shares = shares | _constant(along, dtype)
    if not shares or all(share == 1 for share in shares.values()):
        return None
    return Fill(shares=shares, probes=tuple(int(band) for band in probes))


def _constant(raw: NDArray[np.float32], dtype: np.dtype[Any]) -> dict[float, float]:
    """Values that more pixels than chance allows hold in all of these bands, each with its share of all pixels."""
    n_bands, n_pixels = raw.shape
    same = (raw == raw[:1]).all(axis=0)  # false where there is NaN
    values, counts = np.unique(raw[0, same], return_counts=True)
    told = {float(v): float(n) / n_pixels for v, n in zip(values, counts, strict=True) if n >= _LEAST_PIXELS}
    return {value: share for value, share in told.items() if share > _least_share(value, n_bands, dtype)}


def _least_share(value: float, n_bands: int, dtype: np.dtype[Any]) -> float:
    """Share that a value needs to be fill: few bands of few bits are equal by chance, and dark or bright is not fill."""
    usual = value in _USUAL
    if n_bands == 1:
        return 0.01 if usual and dtype.itemsize > 1 else np.inf
    if dtype.itemsize == 1:
        return 0.01 if value in (0.0, 255.0) else 0.05
    return SMALL_SHARE if usual or n_bands >= 8 or dtype.kind == "f" else 0.01


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
