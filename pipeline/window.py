"""The method of one job on one device, applied to any window of the staged pair."""

from __future__ import annotations

import torch

from models import TwoRateModel
from pipeline.backprojection import BackProjection
from pipeline.job import Job
from pipeline.stage import build_model, in_precision
from pipeline.staged import PairWindow, StagedPair
from pipeline.tiles import Box


class WindowFuser:
    """The loaded method and the opened pair.

    Parameters
    ----------
    job : Job
        Staged.
    device : torch.device
    project : BackProjection, optional
        Correction of what the method makes.
    """

    def __init__(self, job: Job, device: torch.device, project: BackProjection | None = None) -> None:
        self._job, self._device = job, device
        self.pair = StagedPair(job)
        self._model = build_model(job, device)
        self._project = project

    def __call__(self, box: Box) -> torch.Tensor:
        """The fused image of a window in coarse pixels, shape (1, C, h * ratio, w * ratio), in the method's range."""
        window = self.pair.read(box)
        fused = self._fused(window, box)
        if self._project is None:
            return fused
        shown, valid = window.hsi_valid[0].all(dim=0), self.pair.valid_under(box)
        hsi, shown, valid = (image.to(self._device) for image in (window.hsi[0], shown, valid))
        return self._project(fused[0].float(), hsi, shown, valid)[None]

    def _fused(self, window: PairWindow, box: Box) -> torch.Tensor:
        hsi, msi = window.hsi.to(self._device), window.msi.to(self._device)
        with in_precision(self._job, self._device):
            if isinstance(self._model, TwoRateModel):
                return self._model.fine(hsi, msi, self.pair.features(box).to(self._device))
            if self._job.spec.masked:
                hsi_valid = window.hsi_valid.all(dim=1, keepdim=True)
                return self._model(hsi, msi, hsi_valid.to(self._device), window.msi_valid.to(self._device))  # type: ignore[call-arg]
            return self._model(hsi, msi)
