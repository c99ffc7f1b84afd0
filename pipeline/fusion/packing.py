"""Fused samples to the product's type, on the device that fused them: offset, scale, rounding, nodata, and their sums.

Bands are packed a few at a time, so that no second copy of a fused cube is ever alive, and on a CPU what is touched
several times stays in the cache.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from hyperfuse.pipeline.job.encoding import INT16_RANGE, NODATA

_FLOAT_RANGE = (torch.finfo(torch.float32).min, torch.finfo(torch.float32).max)
_CACHED_FLOATS = {"cpu": 2**19}
"""Samples packed at once; on other devices, where a step costs its launch and not its memory, more."""
_FLOATS = 2**25


@dataclass(frozen=True, kw_only=True)
class Packing:
    """How samples are stored."""

    scale: float | None
    """Physical value of one count of int16; None stores float32, NaN where nothing is valid."""
    gain: float = 1.0
    """From a method's own range to physical values: times this ..."""
    offset: float = 0.0
    """... plus this."""

    @property
    def dtype(self) -> torch.dtype:
        """Stored type."""
        return torch.float32 if self.scale is None else torch.int16


class Packed:
    """One tile as it is stored, filled part by part, with the sums of its record.

    Parameters
    ----------
    packing : Packing
    bands, shape
        Bands, and rows and columns of the tile's core.
    device : torch.device
    """

    def __init__(self, packing: Packing, bands: int, shape: tuple[int, int], device: torch.device) -> None:
        self.packing = packing
        self.stored = torch.empty((bands, *shape), dtype=packing.dtype, device=device)
        """Shape (band, y, x)."""
        self.sums = torch.zeros((5, bands), dtype=torch.float64, device=device)
        """Valid samples, their sum, smallest, largest (physical units), and samples beyond the type's range, per band."""
        self.sums[2], self.sums[3] = torch.inf, -torch.inf

    def add(self, fused: torch.Tensor, valid: torch.Tensor | None, rows: slice, cols: slice) -> None:
        """Pack a part of the tile.

        Parameters
        ----------
        fused : Tensor, shape (band, y, x)
            In the method's range; overwritten or not, as it comes.
        valid : Tensor, shape (band or 1, y, x), bool, or None
            None if all are.
        rows, cols : slice
            Where the part lies in the tile.
        """
        per_band = fused.shape[1] * fused.shape[2]
        step = max(_CACHED_FLOATS.get(fused.device.type, _FLOATS) // max(per_band, 1), 1)
        for first in range(0, fused.shape[0], step):
            bands = slice(first, min(first + step, fused.shape[0]))
            mask = None if valid is None else (valid if valid.shape[0] == 1 else valid[bands])
            self._add(fused[bands].float(), mask, bands, (rows, cols))

    def _add(self, part: torch.Tensor, valid: torch.Tensor | None, bands: slice, where: tuple[slice, slice]) -> None:
        packing, step = self.packing, self.packing.scale or 1.0
        # From the method's range to counts; for float32 a count is the physical value itself.
        counts = part * (packing.gain / step)
        if packing.offset:
            counts += packing.offset / step
        if packing.scale is not None:
            counts.round_()
        flat = counts.flatten(1)
        low, high = flat.amin(dim=1), flat.amax(dim=1)
        if valid is None and counts.device.type == "cpu" and _within(packing, low, high):
            # Most tiles are whole. Asking costs nothing here, but would make another device wait.
            total = counts.sum(dim=2).sum(dim=1, dtype=torch.float64)
            self._sum(bands, float(flat.shape[1]), total, low, high)
            self.stored[(bands, *where)].copy_(counts)
            return
        # A network may overflow in half precision: what is no number is no sample.
        sound = torch.isfinite(counts)
        valid = sound if valid is None else sound & valid
        if packing.scale is not None:
            beyond = valid & ((counts < INT16_RANGE[0]) | (counts > INT16_RANGE[1]))
            self.sums[4, bands] += beyond.sum(dim=(1, 2))
            counts.clamp_(*INT16_RANGE)
        low = torch.where(valid, counts, torch.inf).amin(dim=(1, 2))
        high = torch.where(valid, counts, -torch.inf).amax(dim=(1, 2))
        total = torch.where(valid, counts, 0.0).sum(dim=(1, 2), dtype=torch.float64)
        self._sum(bands, valid.sum(dim=(1, 2)), total, low, high)
        nodata = torch.nan if packing.scale is None else float(NODATA)
        self.stored[(bands, *where)] = torch.where(valid, counts, nodata).to(self.stored.dtype)

    def _sum(
        self, bands: slice, n: torch.Tensor | float, total: torch.Tensor, low: torch.Tensor, high: torch.Tensor
    ) -> None:
        step = self.packing.scale or 1.0
        self.sums[0, bands] += n
        self.sums[1, bands] += total * step
        self.sums[2, bands] = torch.minimum(self.sums[2, bands], low.double() * step)
        self.sums[3, bands] = torch.maximum(self.sums[3, bands], high.double() * step)


def _within(packing: Packing, low: torch.Tensor, high: torch.Tensor) -> bool:
    """Whether all samples are numbers that the type holds; NaN compares as false."""
    least, most = INT16_RANGE if packing.scale is not None else _FLOAT_RANGE
    return bool(low.min() >= least) and bool(high.max() <= most)
