"""The method of one job on one device, applied to single windows of the staged pair, outside of any tile."""

from __future__ import annotations

import torch
from safetensors.torch import load_file

from hyperfuse.catalogs.errors import InputRejected
from hyperfuse.models import FusionModel, TwoRateModel, method
from hyperfuse.models.weights_io import load_weights
from hyperfuse.pipeline.fusion.residual import admitted
from hyperfuse.pipeline.fusion.weights import WEIGHTS
from hyperfuse.pipeline.geometry.box import Box
from hyperfuse.pipeline.job.folder import StagedJob
from hyperfuse.pipeline.job.staged_pair import StagedPair


class WindowFuser:
    """The loaded method and the opened pair.

    Parameters
    ----------
    job : StagedJob
        Staged.
    device : torch.device
    """

    def __init__(self, job: StagedJob, device: torch.device) -> None:
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


def load_job_weights(job: StagedJob) -> dict[str, torch.Tensor] | None:
    """Trained weights of the job's network, None if it was given none, or if the gate leaves them out.

    Raises
    ------
    InputRejected
        If the job's copy of them is damaged.
    """
    if job.record.weights is None or not admitted(job):
        return None
    try:
        return load_weights(job.folder / WEIGHTS)
    except ValueError as error:
        raise InputRejected(f"{job.config.weights or WEIGHTS}: {error}") from error


def build_model(job: StagedJob, device: torch.device) -> FusionModel:
    """The job's method with its sums and weights, on a device.

    Raises
    ------
    InputRejected
        If the weights do not fit the network.
    """
    try:
        model = method(job.config.network).build(job.spec, load_sums(job), load_job_weights(job))
    except ValueError as error:
        raise InputRejected(f"{job.config.weights or job.config.network}: {error}") from error
    if isinstance(model, torch.nn.Module):
        model.to(device)
    return model


def in_precision(job: StagedJob, device: torch.device) -> torch.autocast:
    """The arithmetic that the job asks for; classical methods always compute in single precision."""
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision(job, device)]
    return torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32)


def precision(job: StagedJob, device: torch.device) -> str:
    """Name of the arithmetic in which the job's method computes on a device."""
    if not job.spec.needs_weights:
        return "fp32"
    if job.config.precision == "auto":
        # Half precision pays where the hardware has it, and bf16 has the range of fp32.
        return "bf16" if device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    return job.config.precision


def load_sums(job: StagedJob) -> dict[str, torch.Tensor] | None:
    """Result of `first_pass`, None if the method wants none."""
    return dict(load_file(job.folder / "sums.safetensors")) if job.spec.needs_first_pass else None
