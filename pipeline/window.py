"""The method of one job on one device, applied to single windows of the staged pair, outside of any tile."""

from __future__ import annotations

import torch

from models import TwoRateModel
from pipeline.job import Job
from pipeline.stage import build_model, in_precision
from pipeline.staged import StagedPair
from pipeline.tiles import Box


class WindowFuser:
    """The loaded method and the opened pair.

    Parameters
    ----------
    job : Job
        Staged.
    device : torch.device
    """

    def __init__(self, job: Job, device: torch.device) -> None:
        self._job, self._device = job, device
        self.pair = StagedPair(job)
        self._model = build_model(job, device)

    def __call__(self, box: Box) -> torch.Tensor:
        """The fused image of a window in coarse pixels, shape (1, C, h * ratio, w * ratio), in the method's range."""
        window = self.pair.read(box)
        arguments = [window.hsi, window.msi]
        if isinstance(self._model, TwoRateModel):
            arguments.append(self.pair.features(box))
        elif self._job.spec.masked:
            arguments += [window.hsi_valid.all(dim=1, keepdim=True), window.msi_valid]
        arguments = [argument.to(self._device) for argument in arguments]
        with in_precision(self._job, self._device):
            if isinstance(self._model, TwoRateModel):
                return self._model.fine(*arguments)
            return self._model(*arguments)
