"""The one way to run a method on windows of a pair, for tiles, gates, trials, training and evaluation alike.

    windows, filled and scaled (`pipeline.fusion.windows`)  ->  arguments  ->  method  ->  fused, in the method's range

Tiles pack what is fused to the product's type (`pipeline.fusion.packing`); whole pairs are brought to the HSI's unit (`whole`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from safetensors.torch import load_file

from hyperfuse.catalogs.errors import InputRejected
from hyperfuse.models import FusionModel, Method, ModelSpec, TwoRateModel, method
from hyperfuse.models._detectors import GroupedModel
from hyperfuse.models.weights_io import load_weights
from hyperfuse.pipeline.fusion.residual import admitted
from hyperfuse.pipeline.fusion.weights import WEIGHTS
from hyperfuse.pipeline.fusion.windows import F32, PairInMemory, PairWindow, PairWindows, StagedPair, scene_sums
from hyperfuse.pipeline.geometry.box import Box
from hyperfuse.pipeline.job.folder import StagedJob
from hyperfuse.pipeline.observation.simulate import SimulatedPair

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class WindowFuser:
    """A method, ready to run on windows of a pair.

    Parameters
    ----------
    model : FusionModel
        On the device.
    pair : PairWindows
    device : torch.device
    precision : {"fp32", "bf16", "fp16"}
        Arithmetic of networks.
    """

    def __init__(self, model: FusionModel, pair: PairWindows, device: torch.device, precision: str = "fp32") -> None:
        self.pair, self.device, self.precision = pair, device, precision
        self.model = model

    def arguments(self, windows: Sequence[PairWindow], boxes: Sequence[Box]) -> list[tuple[list[torch.Tensor], int]]:
        """What the method is called with for windows of equal shape: of each argument its windows, and its pixels per coarse pixel.

        Parameters
        ----------
        windows : sequence of PairWindow
            As `pair` has them.
        boxes : sequence of Box
            Where they lie, in coarse pixels.
        """
        spec, columns = self.pair.spec, [([w.hsi for w in windows], 1)]
        ratio = spec.observed.ratio
        columns.append(([w.msi for w in windows], ratio))
        features = [found for box in boxes if (found := self.pair.features(box)) is not None]
        if features:
            assert spec.two_rate is not None  # noqa: S101 (a two-rate method specifies its rates)
            columns.append((features, spec.two_rate.rate))
        elif spec.masked:
            columns += [([w.masks[0] for w in windows], 1), ([w.masks[1] for w in windows], ratio)]
        return columns

    def fused(self, arguments: Sequence[torch.Tensor]) -> torch.Tensor:
        """A batch of fused images, shape (N, C, y, x), of arguments on the device; both in the method's range."""
        with in_precision(self.precision, self.device):
            # Without a coarse pass, which only tiles need, a two-rate method runs both parts on what it is given.
            if isinstance(self.model, TwoRateModel) and len(arguments) > 2:
                return self.model.fine(*arguments)
            return self.model(*arguments)

    def __call__(self, box: Box) -> torch.Tensor:
        """The fused image of a window in coarse pixels, shape (1, C, h * ratio, w * ratio), in the method's range."""
        columns = self.arguments([self.pair.read(box)], [box])
        return self.fused([column.to(self.device) for (column,), _ in columns])

    @torch.inference_mode()
    def whole(self) -> F32:
        """The fused image of the whole pair at once, shape (C, y, x), in the HSI's unit; holes are filled, not marked."""
        ratio, (height, width), (gain, offset) = self.pair.spec.observed.ratio, self.pair.shape, self.pair.unscaling
        fused = self(self.pair.whole)[0, :, : height * ratio, : width * ratio].float().cpu()
        image: F32 = (fused if (gain, offset) == (1.0, 0.0) else fused * gain + offset).numpy()
        return image


def job_fuser(job: StagedJob, pair: StagedPair, device: torch.device) -> WindowFuser:
    """The method of a staged job on its pair, in the arithmetic that it asks for."""
    return WindowFuser(build_model(job, device), pair, device, precision(job, device))


def pair_fuser(
    chosen: Method,
    spec: ModelSpec,
    pair: SimulatedPair,
    weights: Mapping[str, torch.Tensor] | None,
    device: torch.device,
) -> WindowFuser:
    """A method specified for a pair in memory, with weights that may still be trained, after its first pass.

    Raises
    ------
    ValueError
        If the weights do not fit.
    """
    windows = PairInMemory(pair, spec)
    sums = scene_sums(windows, chosen.first_pass(spec, weights)) if spec.needs_first_pass else None
    model = chosen.build(spec, sums, weights)
    return WindowFuser(_on(model, device), windows, device)


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
        model = method(job.config.method).build(job.spec, load_sums(job), load_job_weights(job))
    except ValueError as error:
        raise InputRejected(f"{job.config.weights or job.config.method}: {error}") from error
    return _on(model, device)


def in_precision(name: str, device: torch.device) -> torch.autocast:
    """Arithmetic by its name, see `precision`."""
    dtype = _DTYPES[name]
    return torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32)


def precision(job: StagedJob, device: torch.device) -> str:
    """Name of the arithmetic in which the job's method computes on a device: the job's choice, single for classical methods."""
    if not job.spec.needs_weights:
        return "fp32"
    if job.config.precision == "auto":
        # Half precision pays where the hardware has it, and bf16 has the range of fp32.
        return "bf16" if device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    return job.config.precision


def load_sums(job: StagedJob) -> dict[str, torch.Tensor] | None:
    """Result of `first_pass`, None if the method wants none."""
    return dict(load_file(job.folder / "sums.safetensors")) if job.spec.needs_first_pass else None


def _on(model: FusionModel, device: torch.device) -> FusionModel:
    # Networks, and groups of methods with networks among them; classical methods follow their arguments.
    if isinstance(model, torch.nn.Module | GroupedModel):
        model.to(device)
    return model
