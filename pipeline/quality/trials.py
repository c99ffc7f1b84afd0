"""Methods against the truth: each fuses whole simulated pairs, and is scored, timed and weighed.

A method that fails on a cube is a row that says why; the others go on.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import psutil
import torch
from numpy.typing import NDArray

from hyperfuse.catalogs.errors import ExpectedSkip, HyperFuseError, InputRejected, QualityRefused
from hyperfuse.models import Method, ModelSpec, Observed, available, method
from hyperfuse.models.weights_io import load_weights
from hyperfuse.pipeline.fusion.method import pair_fuser
from hyperfuse.pipeline.fusion.strict import project_whole
from hyperfuse.pipeline.fusion.weights import checked_card, require_bands
from hyperfuse.pipeline.observation.field import Planting, grown
from hyperfuse.pipeline.observation.protocol import Protocol
from hyperfuse.pipeline.observation.simulate import SimulatedPair
from hyperfuse.pipeline.progress import Progress, silent
from hyperfuse.pipeline.quality.metrics import Comparison, Scores

STRICT_SUFFIX = " strict"
"""What the name of a method ends with in a row of its strict mode."""
OUTSIDE = "outside_"
"""What the names of scores begin with that leave out what changed between the dates."""
_SAMPLING_S = 0.01  # between two looks at the memory


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One place under one protocol, not yet read."""

    cube: str
    """Name for tables."""
    protocol: Protocol
    """How the pair is made."""
    make: Callable[[], SimulatedPair]
    """Reads or simulates the pair; raises `InputRejected`, `ExpectedSkip` or `QualityRefused` if that cannot be done."""

    @classmethod
    def refused(cls, cube: str, protocol: Protocol, error: HyperFuseError) -> Trial:
        """A place that is known to be of no use before it is read."""

        def make() -> SimulatedPair:
            raise error

        return cls(cube=cube, protocol=protocol, make=make)


@dataclass(frozen=True, kw_only=True, eq=False)
class Fused:
    """A fused image and what it cost."""

    image: NDArray[np.float32]
    """Shape (C, y, x), in the truth's unit; holes are filled, not marked."""
    seconds: float
    """First pass, construction and fusion."""
    peak_bytes: int
    """Memory above that of the process before, or allocated on the device."""
    told: Mapping[str, Any] = field(default_factory=dict)
    """What a whole pipeline decided on the way."""


@dataclass(frozen=True, kw_only=True)
class TrialRow:
    """One method on one cube under one protocol."""

    cube: str
    """Name of the cube."""
    method: str
    """Name of the method."""
    protocol: Protocol
    """How the pair was simulated."""
    scores: Scores | None = None
    """None if the method failed."""
    seconds: float = 0.0
    """Time of the fusion."""
    peak_bytes: int = 0
    """Memory of the fusion."""
    unit: float = 1.0
    """Step of the cube's own unit per unit of the truth."""
    over_noise: float | None = None
    """Disagreement of the degraded image with the HSI, over the HSI's noise, of the worst band; None if not asked for."""
    outside: Scores | None = None
    """Scores where the MSI shows the place of the truth; None if it does everywhere."""
    told: Mapping[str, Any] = field(default_factory=dict)
    """What a whole pipeline decided on the way."""
    error: str | None = None
    """Why it failed."""

    def to_json(self) -> dict[str, Any]:
        """Flat record, with what of the protocol varies within an evaluation; a score that is not finite is None."""
        scores = {} if self.scores is None else self.scores.to_json()
        return {
            "cube": self.cube,
            "method": self.method,
            "ratio": self.protocol.ratio,
            "msi": self.protocol.msi,
            "hsi_snr_db": self.protocol.hsi_snr_db,
            "msi_snr_db": self.protocol.msi_snr_db,
            **({} if self.protocol.planted == Planting() else {"planted": self.protocol.planted.name}),
            **{key: value if math.isfinite(value) else None for key, value in scores.items()},
            **({"rmse_own_unit": self.scores.rmse * self.unit} if self.scores is not None else {}),
            "seconds": round(self.seconds, 3),
            "peak_mb": round(self.peak_bytes / 1e6, 1),
            **({} if self.over_noise is None else {"over_noise": round(self.over_noise, 4)}),
            **(
                {}
                if self.outside is None
                else {OUTSIDE + "psnr_db": self.outside.psnr_db, OUTSIDE + "sam_deg": self.outside.sam_deg}
            ),
            **self.told,
            "error": self.error,
        }


def methods_without_weights() -> list[str]:
    """Names of the methods that fuse as they are; one that is another without weights is not named beside that one."""
    # No method's need of weights depends on the pair, so any pair serves that all accept.
    observed = Observed(hsi_bands=172, msi_bands=4, ratio=4, psf_sigma_px=2.0)
    specs = {name: method(name).specify(observed) for name in available()}
    return [name for name, spec in specs.items() if not spec.needs_weights and spec.base is None]


def fuse_whole(name: str, pair: SimulatedPair, *, weights: Path | None = None, device: str = "cpu") -> Fused:
    """Fuse a whole pair at once.

    Parameters
    ----------
    name : str
        Method.
    pair : SimulatedPair
    weights : Path, optional
        Trained weights, for a method that needs them.
    device : str
        A torch device.

    Raises
    ------
    LookupError
        If there is no such method.
    ValueError
        If the method cannot fuse such a pair.
    InputRejected
        If weights are missing or made for another pair.
    """
    chosen, tensors, options = method(name), None, {}
    if weights is not None:
        # The architecture that the weights were trained for.
        card = checked_card(weights, name, pair.observed)
        require_bands(weights, card, pair.bands)
        options, tensors = dict(card.options), load_weights(weights)
    spec = chosen.specify(pair.observed, **options)
    if spec.needs_weights and tensors is None:
        raise InputRejected(f"{name} means nothing without trained weights; give a file with --weights {name}=FILE")
    return fuse_by(chosen, spec, pair, tensors, device=device)


def fuse_by(
    chosen: Method, spec: ModelSpec, pair: SimulatedPair, tensors: Mapping[str, torch.Tensor] | None, *, device: str
) -> Fused:
    """Fuse a whole pair at once, as tiles are fused, by a method that is specified for it, with weights that may still be trained.

    Raises
    ------
    ValueError
        If the weights do not fit.
    """
    with MeteredCall(device) as cost:
        image = pair_fuser(chosen, spec, pair, tensors, torch.device(device)).whole()
    return Fused(image=image, seconds=cost.seconds, peak_bytes=cost.peak_bytes)


Fuser = Callable[..., Fused]
"""Fuses a whole pair, called as `fuse_whole` is."""


def score(fused: NDArray[np.float32], pair: SimulatedPair, *, but: NDArray[np.bool_] | None = None) -> Scores:
    """Scores of a fused image inside the rim, but where `but`, shape (y, x), is True.

    Raises
    ------
    ValueError
        If no pixel of the truth is valid there.
    """
    ratio, rim = pair.observed.ratio, pair.rim_px * pair.observed.ratio
    height, width = pair.truth.shape[1:]
    inside = slice(rim, height - rim), slice(rim, width - rim)
    comparison = Comparison(pair.truth.shape[0], ratio)
    truth = pair.truth if but is None else np.where(but, np.float32(np.nan), pair.truth)
    comparison.add(fused[:, *inside], truth[:, *inside])
    return comparison.scores()


def evaluate(
    trials: Sequence[Trial],
    methods: Sequence[str],
    *,
    weights: Mapping[str, Path] | None = None,
    device: str = "cpu",
    strict: bool = False,
    fuse: Fuser = fuse_whole,
    progress: Progress = silent,
) -> list[TrialRow]:
    """A row for every trial and method, in this order.

    Parameters
    ----------
    trials : sequence of Trial
    methods : sequence of str
    weights : mapping of str to Path, optional
        Trained weights by method.
    device : str
        A torch device.
    strict : bool
        Add a row for each method in strict mode, see `pipeline.fusion.strict`, named after it.
    fuse : callable
        How a pair is fused.
    progress : Progress

    Returns
    -------
    list of TrialRow
        A pair that cannot be made, and a method that fails on it, are rows with the reason.

    Raises
    ------
    InputRejected, ExpectedSkip, QualityRefused
        If no pair can be made: the reason of the first.
    """
    rows: list[TrialRow] = []
    refusals: list[HyperFuseError] = []
    for n_before, trial in enumerate(trials):
        try:
            pair = trial.make()
        except (InputRejected, ExpectedSkip, QualityRefused) as error:
            refusals.append(error)
            rows += [TrialRow(cube=trial.cube, method=m, protocol=trial.protocol, error=str(error)) for m in methods]
            continue
        for done, name in enumerate(methods, start=1):
            rows += _rows(trial, name, pair, weights=(weights or {}).get(name), device=device, strict=strict, fuse=fuse)
            progress("evaluate", n_before * len(methods) + done, len(trials) * len(methods))
    if refusals and len(refusals) == len(trials):
        raise refusals[0]
    return rows


def _rows(
    trial: Trial, name: str, pair: SimulatedPair, *, weights: Path | None, device: str, strict: bool, fuse: Fuser
) -> list[TrialRow]:
    """The row of a method, and that of its strict mode."""
    unscored = TrialRow(cube=trial.cube, method=name, protocol=trial.protocol, unit=pair.unit)
    names = [name, f"{name}{STRICT_SUFFIX}"] if strict else [name]
    try:
        fused = fuse(name, pair, weights=weights, device=device)
        plain = replace(
            unscored,
            scores=score(fused.image, pair),
            outside=None if pair.changed is None else score(fused.image, pair, but=grown(pair.changed)),
            seconds=fused.seconds,
            peak_bytes=fused.peak_bytes,
            told={**pair.told, **fused.told},
        )
        if not strict:
            return [plain]
        with MeteredCall("cpu") as cost:
            made = project_whole(fused.image, pair)
        return [
            replace(plain, over_noise=made.before),
            replace(
                plain,
                method=names[1],
                scores=score(made.image, pair),
                outside=None if pair.changed is None else score(made.image, pair, but=grown(pair.changed)),
                seconds=fused.seconds + cost.seconds,
                peak_bytes=max(fused.peak_bytes, cost.peak_bytes),
                over_noise=made.after,
            ),
        ]
    # Whatever a method raises is its result on this cube; it must not end the comparison of the others.
    except Exception as error:  # noqa: BLE001
        told = " ".join(str(error).split()) or type(error).__name__
        return [replace(unscored, method=each, unit=1.0, error=told) for each in names]


class MeteredCall:
    """Time and peak memory of the block under `with`."""

    def __init__(self, device: str) -> None:
        self._cuda = torch.device(device).type == "cuda"
        self._device = device
        self._process = psutil.Process()
        self._done = threading.Event()
        self._watch = threading.Thread(target=self._sample, daemon=True)
        self.seconds, self.peak_bytes = 0.0, 0

    def __enter__(self) -> Self:
        if self._cuda:
            torch.cuda.synchronize(self._device)
            torch.cuda.reset_peak_memory_stats(self._device)
        self._before = self._process.memory_info().rss
        self._started = time.perf_counter()
        self._watch.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._cuda:
            torch.cuda.synchronize(self._device)
        self.seconds = time.perf_counter() - self._started
        self._done.set()
        self._watch.join()
        if self._cuda:
            self.peak_bytes = int(torch.cuda.max_memory_allocated(self._device))

    def _sample(self) -> None:
        while True:
            self.peak_bytes = max(self.peak_bytes, self._process.memory_info().rss - self._before)
            if self._done.wait(_SAMPLING_S):
                return
