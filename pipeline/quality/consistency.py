"""How well a product agrees with both of its inputs, and with itself across the borders of its tiles.

    product * PSF, sampled at the coarse pixels   against the staged HSI      (property 1 of Wald's protocol)
    SRF x product, at every fine pixel            against the staged MSI
    gradient across a line between two tiles      against lines of the same phase beside it

One pass reads every chunk of the product once. Degrading is linear, so a chunk adds what it knows to the coarse pixels
that its PSF reaches, and a row of coarse pixels is compared when the last chunk has added to it. Wide scenes are cut
into swaths, so that what is held does not grow with the scene.

Agreement is necessary, not sufficient: what lies in the null space of both sensors is seen by neither.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from hyperfuse.models.operators import blur_reach
from hyperfuse.pipeline.fusion.back_projection import MAX_LOST
from hyperfuse.pipeline.fusion.findings import band_psfs
from hyperfuse.pipeline.geometry.box import Box
from hyperfuse.pipeline.job import store
from hyperfuse.pipeline.job.encoding import valid_samples
from hyperfuse.pipeline.job.folder import StagedJob
from hyperfuse.pipeline.observation.psf import taps
from hyperfuse.pipeline.pipelining import convey
from hyperfuse.pipeline.progress import Progress, silent
from hyperfuse.pipeline.quality.accumulators import F32, Agreement, Moments, Seams, SeamSums
from hyperfuse.pipeline.quality.causes.limits import PLAUSIBLE

MAP_EDGE = 400
"""Longest side of the maps, in their own pixels; larger scenes are thinned."""
_SWATH_PX = 4096
"""Product pixels across one swath."""
_COMPARED = 256
"""Coarse columns that are compared at once, so that memory does not go by the width of a swath."""
_STRIP = 64
"""Rows of a chunk that are degraded together: fewer coarse rows are then computed that they do not reach."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Maps:
    """Pictures of the disagreement, thinned to `MAP_EDGE`; NaN where nothing could be compared."""

    hsi_sam_deg: F32
    """Spectral angle between degraded product and HSI, shape (row, col) of coarse pixels."""
    hsi_rmse: F32
    """Root mean square over the bands, likewise."""
    msi_rmse: F32
    """Root mean square over the MSI's bands, shape (row, col) of product pixels."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Consistency:
    """What one pass over the product found."""

    hsi: Agreement | None
    """None if no coarse pixel could be compared."""
    msi: Agreement | None
    """In the MSI's unit; None if the HSI sees no MSI band, or nothing is valid."""
    msi_bands: list[int]
    """Bands of the staged MSI that the HSI sees, which are those compared."""
    seams: Seams | None
    """None if there is one tile only."""
    implausible: float | None
    """Share of valid samples outside `PLAUSIBLE`; None if the product is no reflectance."""
    invalid: float
    """Share of product pixels that are invalid in a band or more."""
    maps: Maps


def consistency(job: StagedJob, progress: Progress = silent) -> Consistency:
    """Compare a finished mosaic with the staged pair.

    Parameters
    ----------
    job : StagedJob
        Staged and fused.
    progress : callable, optional

    References
    ----------
    Wald, Ranchin & Mangolini (1997), Fusion of satellite images of different spatial resolutions, PE&RS 63(6), 691-699.
    """
    measured = _Pass(job)
    array = store.open_array(job.fused)
    boxes = list(_swaths(array.shape, array.chunks, measured.reach))
    ends = [one.y0 != other.y0 for (_, one), (_, other) in pairwise(boxes)] + [True]

    def read(step: tuple[tuple[range, Box], bool]) -> tuple[range, Box, NDArray[Any], bool]:
        (swath, box), ends_row = step
        return swath, box, store.read(array, box), ends_row

    def add(loaded: tuple[range, Box, NDArray[Any], bool]) -> None:
        swath, box, samples, ends_row = loaded
        measured.add(swath, box, samples)
        if ends_row:
            measured.end_row(box)

    # What comes next is read and decoded while this is compared.
    for done, _ in enumerate(convey(zip(boxes, ends, strict=True), load=read, work=add, store=lambda _: None), start=1):
        progress("assess", done, len(boxes))
    return measured.finish()


def radiometry(job: StagedJob) -> tuple[F32, F32]:
    """Gain and offset that bring a predicted MSI into the MSI's own unit, kept bands, shape (band, 1, 1).

    Those of the radiometric fit where the two images measure different quantities, NaN where that found none; where both
    measure the same, those that harmonizing took out, or 1 and 0, for then a difference is an error.
    """
    shape = (len(job.staged.msi.kept), 1, 1)
    if job.record.hsi.quantity == job.record.msi.quantity:
        harmony = job.staged.harmony
        if harmony is not None:
            return harmony.gain, harmony.offset
        return np.ones(shape, np.float32), np.zeros(shape, np.float32)
    fits = job.observation.misfit or (None,) * shape[0]
    told = [(np.nan, np.nan) if fit is None or fit.gain <= 0 else (fit.gain, fit.offset) for fit in fits]
    gain, offset = np.array(told, np.float32).T
    return gain.reshape(shape), offset.reshape(shape)


def _swaths(shape: tuple[int, ...], chunks: tuple[int, ...], reach: int) -> Iterator[tuple[range, Box]]:
    """Chunks in the order of the pass, each with the product columns of its swath; neighbors' chunks come along."""
    height, width = shape[-2:]
    rows, cols = chunks[-2:]
    edge = max(_SWATH_PX // cols, 1) * cols
    margin = -(-reach // cols) * cols
    for x0 in range(0, width, edge):
        core = range(x0, min(x0 + edge, width))
        for y in range(0, height, rows):
            for x in range(max(x0 - margin, 0), min(core.stop + margin, width), cols):
                yield core, Box(y0=y, y1=min(y + rows, height), x0=x, x1=min(x + cols, width))


class _Pass:
    """Everything that is summed on the way."""

    def __init__(self, job: StagedJob) -> None:
        observation, grids = job.observation, job.grids
        self._ratio, self._lead = grids.ratio, grids.lead
        self._psfs = [(list(bands), psf) for bands, psf in band_psfs(job)]
        # Of the PSFs, wherever their centers lie along either axis.
        self._psf_reach = max(blur_reach(self._ratio, p.sigma, max(abs(p.y), abs(p.x))) for _, p in self._psfs)
        self.reach = self._psf_reach + self._ratio
        self._scale = job.staged.scale if job.config.publish.dtype == "int16" else 1.0
        self._hsi = store.open_array(job.folder / "stage" / "hsi.zarr")
        self._msi = store.open_array(job.folder / "stage" / "msi.zarr")
        self._hsi_kept, self._msi_kept = np.array(job.staged.hsi.kept), np.array(job.staged.msi.kept)
        self._psf_of = np.zeros(len(self._hsi_kept), np.int64)  # of each band, its number among the PSFs
        for number, (bands, _) in enumerate(self._psfs):
            self._psf_of[bands] = number
        srf = np.array(observation.srf, np.float32)
        gain, offset = radiometry(job)
        self._seen = np.flatnonzero(srf.any(axis=1) & np.isfinite(gain[:, 0, 0]))
        self._srf, self._gain, self._offset = torch.from_numpy(srf[self._seen]), gain[self._seen], offset[self._seen]
        self._coarse_shape, (height, width) = grids.coarse_shape, grids.product.shape
        self._coarse_step = -(-max(self._coarse_shape) // MAP_EDGE)
        self._step = -(-max(height, width) // MAP_EDGE)
        self._hsi_maps = np.full((2, *(-(-n // self._coarse_step) for n in self._coarse_shape)), np.nan, np.float32)
        self._msi_map = np.full((-(-height // self._step), -(-width // self._step)), np.nan, np.float32)
        self._hsi_moments, self._msi_moments = Moments(len(self._hsi_kept)), Moments(len(self._seen))
        self._seams = SeamSums(job.plan.core, self._ratio, (height, width))
        self._reflectance = job.record.hsi.quantity == "reflectance"
        self._samples = self._outside = self._invalid = 0
        self._pixels, self._height = height * width, height
        self._swath, self._rows = range(0), _CoarseRows(range(0), 0, 0)
        self._n_layers = len(self._hsi_kept) + len(self._psfs)

    def add(self, swath: range, box: Box, stored: NDArray[Any]) -> None:
        """Add a chunk: all bands of a box of the product."""
        samples = torch.from_numpy(stored).to(torch.float32).mul_(self._scale)
        valid = torch.from_numpy(valid_samples(stored)).all(dim=0)
        samples.mul_(valid) if stored.dtype == np.int16 else samples.nan_to_num_(0.0).mul_(valid)
        if swath != self._swath:
            self._swath = swath
            self._rows = _CoarseRows(self._coarse_columns(swath), self._coarse_shape[0], self._n_layers)
        if box.x0 in swath:
            self._count(samples, valid)
            self._add_msi(box, samples, valid)
        self._seams.add(box, samples.numpy(), valid.numpy(), counted=box.x0 in swath)
        self._add_hsi(box, samples, valid)

    def end_row(self, box: Box) -> None:
        """Compare the coarse rows that no chunk after this one, the last of its row, can add to."""
        last = self._coarse_shape[0] if box.y1 == self._height else self._untouched(box.y1 + self._lead[0])
        self._compare(*self._rows.take(last))

    def finish(self) -> Consistency:
        """The result."""
        return Consistency(
            hsi=self._hsi_moments.agreement(),
            msi=self._msi_moments.agreement(),
            msi_bands=[int(k) for k in self._msi_kept[self._seen]],
            seams=self._seams.seams(),
            implausible=self._outside / max(self._samples, 1) if self._reflectance else None,
            invalid=self._invalid / self._pixels,
            maps=Maps(hsi_sam_deg=self._hsi_maps[0], hsi_rmse=self._hsi_maps[1], msi_rmse=self._msi_map),
        )

    def _coarse_columns(self, swath: range) -> range:
        first = 0 if swath.start == 0 else -(-(swath.start + self._lead[1]) // self._ratio)
        return range(first, -(-(swath.stop + self._lead[1]) // self._ratio))

    def _count(self, samples: torch.Tensor, valid: torch.Tensor) -> None:
        n_valid = int(valid.sum())
        self._invalid += valid.numel() - n_valid
        self._samples += n_valid * samples.shape[0]
        if self._reflectance:
            low, high = PLAUSIBLE
            # Pixels that are not valid hold 0, which is plausible. Few chunks hold anything that is not.
            if samples.amin() < low or samples.amax() > high:
                self._outside += int(((samples < low) | (samples > high)).sum())

    def _add_msi(self, box: Box, samples: torch.Tensor, valid: torch.Tensor) -> None:
        if not len(self._seen):
            return
        lead_y, lead_x = self._lead
        fine = Box(y0=box.y0 + lead_y, y1=box.y1 + lead_y, x0=box.x0 + lead_x, x1=box.x1 + lead_x)
        measured = store.read(self._msi, fine, self._msi_kept)[self._seen]
        predicted = (self._srf @ samples.flatten(1)).reshape(-1, *box.shape).numpy() * self._gain + self._offset
        both = valid.numpy() & np.isfinite(measured).all(axis=0)
        _, rmse = self._msi_moments.add(predicted[:, both], measured[:, both])
        picture = np.full(box.shape, np.nan, np.float32)
        picture[both] = rmse
        _thin_into(self._msi_map, picture, box, self._step)

    def _add_hsi(self, box: Box, samples: torch.Tensor, valid: torch.Tensor) -> None:
        """What the chunk knows of the coarse pixels around it; rows that nothing more is added to are compared."""
        lead_y, lead_x = self._lead
        cols = self._reached(box.x0 + lead_x, box.x1 + lead_x, self._rows.columns)
        if cols:
            columns = range(box.x0 + lead_x, box.x1 + lead_x)
            for first in range(0, box.shape[0], _STRIP):
                strip = slice(first, min(first + _STRIP, box.shape[0]))
                fine = range(box.y0 + lead_y + strip.start, box.y0 + lead_y + strip.stop)
                rows = self._reached(fine.start, fine.stop, range(self._coarse_shape[0]))
                seen = np.empty((self._n_layers, len(rows), len(cols)), np.float32)
                for number, (bands, psf) in enumerate(self._psfs):
                    left = torch.from_numpy(taps(rows, fine, self._ratio, psf.sigma, psf.y))
                    right = torch.from_numpy(taps(cols, columns, self._ratio, psf.sigma, psf.x)).T
                    part = torch.cat([samples[bands, strip], valid[None, strip].to(samples.dtype)])
                    seen[[*bands, len(self._hsi_kept) + number]] = (left @ part @ right).numpy()
                self._rows.add(rows, cols, seen)

    def _untouched(self, fine: int) -> int:
        """The first coarse row that fine rows from here on reach."""
        return max((fine - self._psf_reach) // self._ratio, 0)

    def _reached(self, first: int, last: int, within: range) -> range:
        """Coarse pixels whose PSF reaches some of the fine ones."""
        start = max(self._untouched(first), within.start)
        return range(start, max(min((last - 1 + self._psf_reach) // self._ratio + 1, within.stop), start))

    def _compare(self, first: int, total: F32) -> None:
        """Finished coarse rows against the HSI; the last layers of `total` are the shares of each PSF on valid pixels."""
        if not total.shape[1]:
            return
        columns = self._rows.columns
        for start in range(0, len(columns), _COMPARED):
            part, some = columns[start : start + _COMPARED], total[..., start : start + _COMPARED]
            box = Box(y0=first, y1=first + total.shape[1], x0=part.start, x1=part.stop)
            measured = store.read(self._hsi, box, self._hsi_kept)
            image, share = np.split(some, [len(measured)])
            both = (share > 1.0 - MAX_LOST).all(axis=0) & np.isfinite(measured).all(axis=0)
            found = self._hsi_moments.add(image[:, both] / share[self._psf_of][:, both], measured[:, both])
            for layer, values in zip(self._hsi_maps, found, strict=True):
                picture = np.full(box.shape, np.nan, np.float32)
                picture[both] = values
                _thin_into(layer, picture, box, self._coarse_step)


class _CoarseRows:
    """Sums at the coarse rows that chunks may still add to.

    Parameters
    ----------
    columns : range
        Coarse columns that are summed.
    height : int
        Rows of the coarse grid.
    n_layers : int
        Bands, and a share of each PSF.
    """

    def __init__(self, columns: range, height: int, n_layers: int) -> None:
        self.columns = columns
        self._height, self._first = height, 0
        self._sums = np.zeros((n_layers, 0, len(columns)), np.float32)

    def add(self, rows: range, cols: range, part: F32) -> None:
        """Add to a rectangle, shape (layer, row, col)."""
        missing = rows.stop - self._first - self._sums.shape[1]
        if missing > 0:
            self._sums = np.pad(self._sums, ((0, 0), (0, missing), (0, 0)))
        y, x = rows.start - self._first, cols.start - self.columns.start
        self._sums[:, y : y + len(rows), x : x + len(cols)] += part

    def take(self, last: int) -> tuple[int, F32]:
        """Rows before `last` that are still here, with the first one's number; they are forgotten."""
        first, n_rows = self._first, max(min(last, self._height) - self._first, 0)
        done, self._sums = self._sums[:, :n_rows], self._sums[:, n_rows:].copy()
        self._first += done.shape[1]
        return first, done


def _thin_into(target: F32, picture: F32, box: Box, step: int) -> None:
    """Every `step`-th pixel of a picture of a box, on the lattice of the whole."""
    y, x = -(-box.y0 // step), -(-box.x0 // step)
    part = picture[y * step - box.y0 :: step, x * step - box.x0 :: step]
    target[y : y + part.shape[0], x : x + part.shape[1]] = part
