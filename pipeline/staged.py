"""The staged pair as methods see it: windows of both images, holes filled, with their validity beside them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from pipeline import store
from pipeline.job import Job
from pipeline.tiles import Box


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

    def __init__(self, job: Job) -> None:
        self._ratio = job.grids.ratio
        self._hsi = store.open_array(job.folder / "stage" / "hsi.zarr")
        self._msi = store.open_array(job.folder / "stage" / "msi.zarr")
        self._hsi_kept = np.array(job.staged.hsi.kept)
        self._msi_kept = np.array(job.staged.msi.kept)
        # A hole is filled with the scene's mean: the same value in every tile that sees it.
        self._hsi_mean = torch.tensor(job.staged.hsi.mean, dtype=torch.float32)[None, :, None, None]
        self._msi_mean = torch.tensor(job.staged.msi.mean, dtype=torch.float32)[None, :, None, None]

    def read(self, box: Box) -> PairWindow:
        """A window in coarse pixels."""
        hsi = _read_repeated(self._hsi, box, self._hsi_kept)
        msi = _read_repeated(self._msi, box.times(self._ratio), self._msi_kept)
        hsi_valid, msi_valid = torch.isfinite(hsi), torch.isfinite(msi)
        return PairWindow(
            hsi=torch.where(hsi_valid, hsi, self._hsi_mean),
            msi=torch.where(msi_valid, msi, self._msi_mean),
            hsi_valid=hsi_valid,
            msi_valid=msi_valid.all(dim=1, keepdim=True),
        )


def _read_repeated(array: store.Array, box: Box, bands: np.ndarray[tuple[int], np.dtype[np.int64]]) -> torch.Tensor:
    height, width = array.shape[-2:]
    inside = Box(y0=max(box.y0, 0), y1=min(box.y1, height), x0=max(box.x0, 0), x1=min(box.x1, width))
    cube = torch.from_numpy(store.read(array, inside, bands))[None]
    rim = (inside.x0 - box.x0, box.x1 - inside.x1, inside.y0 - box.y0, box.y1 - inside.y1)
    return torch.nn.functional.pad(cube, rim, mode="replicate") if any(rim) else cube
