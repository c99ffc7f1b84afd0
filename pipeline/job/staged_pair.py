"""The staged pair as methods see it: windows of both images, holes filled, in the range that the method wants."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.functional import max_pool2d, pad

from hyperfuse.pipeline.geometry.box import Box
from hyperfuse.pipeline.geometry.tiling import Tile
from hyperfuse.pipeline.job import store
from hyperfuse.pipeline.job.folder import StagedJob


@dataclass(frozen=True, kw_only=True)
class PairWindow:
    """One window of both images."""

    hsi: torch.Tensor
    """Filled, shape (1, C, h, w), float32."""
    msi: torch.Tensor
    """Filled, shape (1, c, h * ratio, w * ratio), float32."""
    hsi_valid: torch.Tensor
    """Per band, shape (1, C, h, w), bool."""
    msi_valid: torch.Tensor
    """In all bands, shape (1, 1, h * ratio, w * ratio), bool."""


class StagedPair:
    """Opened staged arrays of a job; windows may reach beyond the rim, where the outermost pixel is repeated."""

    def __init__(self, job: StagedJob) -> None:
        self._job, self._ratio = job, job.grids.ratio
        self._hsi = store.open_array(job.folder / "stage" / "hsi.zarr")
        self._msi = store.open_array(job.folder / "stage" / "msi.zarr")
        features = job.folder / "stage" / "features.zarr"
        self._features = store.open_array(features) if (job.folder / "features.json").is_file() else None
        sums = job.staged.hsi, job.staged.msi
        self._hsi_kept, self._msi_kept = (np.array(image.kept) for image in sums)
        # A hole is filled with the scene's mean: the same value in every tile that sees it.
        self._hsi_mean, self._msi_mean = (
            torch.tensor(image.mean, dtype=torch.float32)[None, :, None, None] for image in sums
        )
        harmony = job.staged.harmony
        self._harmony = harmony if harmony is not None and harmony.is_applied else None
        self._msi_mean = self._harmonized(self._msi_mean)
        self._whole = all(image.valid_fraction == 1.0 for image in sums)
        self._span = (sums[0].low, sums[0].high) if job.spec.symmetric_range else None

    def read(self, box: Box) -> PairWindow:
        """A window in coarse pixels."""
        hsi = _read_repeated(self._hsi, box, self._hsi_kept)
        msi = _read_repeated(self._msi, box.times(self._ratio), self._msi_kept)
        hsi_valid, msi_valid = torch.isfinite(hsi), torch.isfinite(msi)
        return PairWindow(
            hsi=self._scaled(torch.where(hsi_valid, hsi, self._hsi_mean)),
            msi=self._scaled(torch.where(msi_valid, self._harmonized(msi), self._msi_mean)),
            hsi_valid=hsi_valid,
            msi_valid=msi_valid.all(dim=1, keepdim=True),
        )

    def features(self, box: Box) -> torch.Tensor:
        """Features of the coarse pass under a window in coarse pixels, shape (1, channels, h * rate, w * rate)."""
        rates = self._job.spec.two_rate
        assert self._features is not None  # noqa: S101 (the coarse pass comes before any tile)
        assert rates is not None  # noqa: S101 (likewise)
        return torch.from_numpy(store.read(self._features, box.times(rates.rate)))[None]

    @property
    def unscaling(self) -> tuple[float, float]:
        """Gain and offset from the range that the method wants to the HSI's unit."""
        if self._span is None:
            return 1.0, 0.0
        low, high = self._span
        return (high - low) / 2.0, (high + low) / 2.0

    def valid(self, tile: Tile) -> torch.Tensor | None:
        """Pixels of a tile's core that no invalid input reached, shape (band or 1, y, x), bool; None if that is all of them."""
        if self._whole:
            return None
        core, lead = tile.core, self._job.grids.lead
        return self._valid(Box(y0=core.y0 + lead[0], y1=core.y1 + lead[0], x0=core.x0 + lead[1], x1=core.x1 + lead[1]))

    def valid_under(self, box: Box) -> torch.Tensor:
        """Fine pixels of a window in coarse pixels that the product will hold in all bands, shape (y, x), bool."""
        fine, (top, left), (height, width) = box.times(self._ratio), self._job.grids.lead, self._job.grids.product.shape
        valid = self._valid(fine).all(dim=0)
        inside = torch.zeros_like(valid)
        inside[
            max(top - fine.y0, 0) : max(top + height - fine.y0, 0),
            max(left - fine.x0, 0) : max(left + width - fine.x0, 0),
        ] = True
        return valid & inside

    def _valid(self, fine: Box) -> torch.Tensor:
        """Pixels of a box on the fine grid that no invalid input reached, shape (band or 1, y, x), bool."""
        spec = self._job.spec
        if self._whole:
            return torch.ones((1, *fine.shape), dtype=torch.bool)
        coarse = Box(
            y0=fine.y0 // self._ratio,
            y1=-(-fine.y1 // self._ratio),
            x0=fine.x0 // self._ratio,
            x1=-(-fine.x1 // self._ratio),
        )
        hsi = torch.isfinite(_read_repeated(self._hsi, coarse.grown(spec.hsi_reach), self._hsi_kept))
        valid = _eroded(hsi.all(dim=1, keepdim=True) if spec.mixes_bands else hsi, spec.hsi_reach)
        valid = valid.repeat_interleave(self._ratio, dim=-2).repeat_interleave(self._ratio, dim=-1)
        y, x = fine.y0 - coarse.y0 * self._ratio, fine.x0 - coarse.x0 * self._ratio
        valid = valid[0, :, y : y + fine.shape[0], x : x + fine.shape[1]]
        if spec.msi_reach is None:
            return valid
        msi = torch.isfinite(_read_repeated(self._msi, fine.grown(spec.msi_reach), self._msi_kept))
        return valid & _eroded(msi.all(dim=1, keepdim=True), spec.msi_reach)[0]

    def _harmonized(self, msi: torch.Tensor) -> torch.Tensor:
        """The MSI in the radiometry of the HSI, as far as the pair told."""
        if self._harmony is None:
            return msi
        return (msi - torch.from_numpy(self._harmony.offset)) / torch.from_numpy(self._harmony.gain)

    def _scaled(self, image: torch.Tensor) -> torch.Tensor:
        if self._span is None:
            return image
        low, high = self._span
        return (image - low) * (2.0 / (high - low)) - 1.0


def touched(job: StagedJob, tile: Tile) -> dict[str, Box]:
    """Pixels that fusing a tile reads of each staged array, by the array's name; may reach beyond the rim."""
    core, lead, ratio = tile.core, job.grids.lead, job.grids.ratio
    # `valid` looks around the core as far as samples reach, which an approximate method's window need not hold.
    margin = max(job.spec.hsi_reach, -(-(job.spec.msi_reach or 0) // ratio))
    around = Box(
        y0=(core.y0 + lead[0]) // ratio,
        y1=-(-(core.y1 + lead[0]) // ratio),
        x0=(core.x0 + lead[1]) // ratio,
        x1=-(-(core.x1 + lead[1]) // ratio),
    ).grown(margin)
    coarse = Box(
        y0=min(around.y0, tile.window.y0),
        y1=max(around.y1, tile.window.y1),
        x0=min(around.x0, tile.window.x0),
        x1=max(around.x1, tile.window.x1),
    )
    rates = job.spec.two_rate
    return {"hsi": coarse, "msi": coarse.times(ratio)} | (
        {} if rates is None else {"features": coarse.times(rates.rate)}
    )


def _read_repeated(array: store.Array, box: Box, bands: NDArray[np.int64]) -> torch.Tensor:
    height, width = array.shape[-2:]
    inside = Box(y0=max(box.y0, 0), y1=min(box.y1, height), x0=max(box.x0, 0), x1=min(box.x1, width))
    cube = torch.from_numpy(store.read(array, inside, bands))[None]
    rim = (inside.x0 - box.x0, box.x1 - inside.x1, inside.y0 - box.y0, box.y1 - inside.y1)
    return pad(cube, rim, mode="replicate") if any(rim) else cube


def _eroded(valid: torch.Tensor, reach: int) -> torch.Tensor:
    """Pixels at least `reach` away from what is invalid; the result is smaller by `reach` on each side."""
    if reach == 0:
        return valid
    size = 2 * reach + 1
    # Row by row, then column by column: the same square, at a cost that grows with its edge, not its area.
    reached = max_pool2d(max_pool2d((~valid).float(), (size, 1), stride=1), (1, size), stride=1)
    return reached == 0
