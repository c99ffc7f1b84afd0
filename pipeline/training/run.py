"""A training from its settings to weight files: open the scenes, learn, validate, keep the best; safe to kill at any time.

<output>/
    config.json                 the settings, as they were checked
    <network>.safetensors       the best weights so far, with their card: `hyperfuse fuse --weights` takes them at once
    steps.csv, validation.csv   the curves
    tensorboard/                the same as event files, if asked for
    state.safetensors           where the training is
    lock                        held while a process works here

Several devices share the steps, a process each (`ranks`). The calling process then only checks, prepares and watches; the first
of the others does what one process does alone, and the rest learn along.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from hyperfuse.catalogs.errors import ExpectedSkip, InputRejected, UsageError
from hyperfuse.catalogs.formats.files import write_atomic
from hyperfuse.catalogs.locks import locked
from hyperfuse.catalogs.weight_cards import WeightCard
from hyperfuse.models import Observed
from hyperfuse.pipeline.fusion.device import pick_device
from hyperfuse.pipeline.fusion.weights import save_weights
from hyperfuse.pipeline.job.records import code_version
from hyperfuse.pipeline.progress import Progress, silent
from hyperfuse.pipeline.quality.metrics import Scores
from hyperfuse.pipeline.quality.trials import fuse_by, score
from hyperfuse.pipeline.training.checkpoint import Progressed, load_state, save_state
from hyperfuse.pipeline.training.curves import Logs, check_tensorboard
from hyperfuse.pipeline.training.distributed import ALONE, Rank, count_devices, together
from hyperfuse.pipeline.training.pairs import Ground, open_grounds
from hyperfuse.pipeline.training.patches import Samples, TrainingSample
from hyperfuse.pipeline.training.planes import Residuals, exercises
from hyperfuse.pipeline.training.settings import TrainConfig

if TYPE_CHECKING:
    from hyperfuse.pipeline.training.step import Learner, Lesson

log = logging.getLogger(__name__)

_SCORED = [field.name for field in fields(Scores) if field.name != "pixels"]


@dataclass(frozen=True, kw_only=True)
class Trained:
    """A finished training."""

    output: Path
    """Folder of the training."""
    steps: int
    """Batches learnt from."""
    resumed_at: int
    """Step at which this run took it up."""
    weights: dict[str, Path]
    """Weight files by role, `network` and `teacher`."""
    best: dict[str, dict[str, Any]]
    """Step and mean scores of these weights on the scenes held out, by role."""

    def to_json(self) -> dict[str, Any]:
        """Plain record."""
        return {
            "output": str(self.output),
            "steps": self.steps,
            "resumed_at": self.resumed_at,
            "weights": {role: str(path) for role, path in self.weights.items()},
            "best": self.best,
        }


def train(config: TrainConfig, *, progress: Progress = silent) -> Trained:
    """Train a network, or take up its training where it was killed.

    Parameters
    ----------
    config : TrainConfig
    progress : Progress

    Returns
    -------
    Trained

    Raises
    ------
    UsageError
        If Lightning, or a TensorBoard that is asked for, is not installed, a network cannot be trained on such pairs, or a
        batch cannot be shared evenly.
    InputRejected
        If a scene cannot be used, or the folder holds another training.
    ExpectedSkip
        If all steps are done.
    Busy
        If another process trains there.
    QualityRefused
        If the loss is no number.
    OutOfResources
        If a device is asked for that is not there.
    Transient
        If one of the processes of several devices was lost.
    """
    device = pick_device(config.device)
    n_devices = count_devices(config.devices, device, config.samples.batch)
    if config.tensorboard:
        check_tensorboard()
    if not config.output.absolute().parent.is_dir():
        raise InputRejected(f"{config.output}: its parent folder does not exist; create it first")
    learnt, held_out = open_grounds(
        config.scenes, config.held_out, config.simulation, generated=config.generated, universal=config.universal
    )
    _lesson_class().check(config, learnt[0].pair.observed)
    course = _Course(
        config=config, device=device, learnt=learnt, held_out=held_out, samples=_samples(config, learnt, progress)
    )
    config.output.mkdir(exist_ok=True)
    with locked(config.output, f"{config.output}: another process trains here"):
        begun = load_state(config.output, config.key, ())
        if begun.step >= config.steps:
            raise ExpectedSkip(f"{config.output}: has learnt {begun.step} steps already; raise steps to go on")
        write_atomic(config.output / "config.json", config.model_dump_json(indent=2))
        if n_devices == 1:
            done = _learn(course, ALONE, progress)
        else:
            done = together(partial(_learn, course), n_devices, device, progress=progress)
    return Trained(
        output=config.output,
        steps=done.step,
        resumed_at=begun.step,
        weights={role: _weight_file(config.output, name) for role, name in config.roles.items()},
        best={role: dict(best) for role, best in done.best.items()},
    )


def _samples(config: TrainConfig, learnt: Sequence[Ground], progress: Progress) -> Dataset[TrainingSample]:
    """Patches to learn from, by number."""
    if not config.universal:
        return Samples(learnt, config.samples, config.simulation, seed=config.seed)
    pairs = exercises(
        learnt,
        config.network,
        config.variations,
        config.samples,
        seed=config.seed,
        options=config.options,
        progress=progress,
    )
    return Residuals(pairs, config.samples, seed=config.seed)


def _lesson_class() -> type[Lesson]:
    try:
        from hyperfuse.pipeline.training.step import Lesson  # noqa: PLC0415 (Lightning is optional)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "lightning":
            raise
        raise UsageError(
            "training needs PyTorch Lightning; install it with `pip install 'hyperfuse[train]'`"
        ) from error
    return Lesson


def _weight_file(output: Path, network: str) -> Path:
    return output / f"{network}.safetensors"


@dataclass(frozen=True, kw_only=True, eq=False)
class _Course:
    """What the steps are made with; every process has it whole."""

    config: TrainConfig
    device: torch.device
    """The only one, or the kind of all."""
    learnt: Sequence[Ground]
    held_out: Sequence[Ground]
    samples: Dataset[TrainingSample]


def _learn(course: _Course, rank: Rank, progress: Progress) -> Progressed:
    """All steps that are left; of each batch the part that is this process's."""
    config = course.config
    lesson = _lesson_class()(config, course.learnt[0].pair.observed, course.device, rank)
    keep = _Keep(course, lesson)
    now = begun = load_state(config.output, config.key, lesson.learners)
    batch = config.samples.batch
    part = batch // rank.of
    firsts = range(begun.step * batch + rank.number * part, config.steps * batch, batch)
    batches = DataLoader(
        course.samples,
        batch_size=part,
        sampler=(number for first in firsts for number in range(first, first + part)),
        num_workers=config.workers,
        # A fork would inherit the threads of whoever calls, Prefect's among them, and die of them on its way out.
        multiprocessing_context="spawn" if config.workers else None,
        pin_memory=course.device.type != "cpu",
    )
    logs = Logs(config.output, begun.step, tensorboard=config.tensorboard) if rank.leads else None
    with logs or nullcontext():
        for step, given in enumerate(batches, start=begun.step + 1):
            losses = lesson.step(given, step - 1)
            due = step % config.every == 0 or step == config.steps
            if logs is not None:
                logs.learnt(step, losses)
                progress("train", step, config.steps)
                if due:
                    now = keep.validated(replace(now, step=step), logs)
                    save_state(config.output, now, lesson.learners)
            if due:
                lesson.wait()
    return now


class _Keep:
    """Scores of the networks on the scenes held out; keeps the weights that have the smallest spectral angle."""

    def __init__(self, course: _Course, lesson: Lesson) -> None:
        self.config, self._lesson, self._device = course.config, lesson, str(course.device)
        self._learnt, self._held_out = course.learnt, course.held_out
        self._estimate: dict[str, float | None] = {}  # mean scores of what universal networks begin with

    def validated(self, now: Progressed, logs: Logs) -> Progressed:
        """Score all networks at this step; what is best so far is in the result."""
        best: dict[str, Mapping[str, Any]] = dict(now.best)
        if self.config.universal:
            if not self._estimate:
                learner = self._lesson.learner
                self._estimate = _means([self._scores(learner, None, ground) for ground in self._held_out])
            logs.validated(now.step, "map_subspace", _known(self._estimate))
        for learner in self._lesson.learners:
            tensors = learner.tensors()
            scores = [self._scores(learner, tensors, ground) for ground in self._held_out]
            mean = _means(scores)
            logs.validated(now.step, learner.method.name, _known(mean))
            log.info("%s, step %d: SAM %.3f deg", learner.method.name, now.step, mean["sam_deg"])
            before = best.get(learner.role)
            if before is None or mean["sam_deg"] < before["sam_deg"]:
                best[learner.role] = {"step": now.step, **mean}
                card = self._card(learner, now.step, scores, mean)
                save_weights(_weight_file(self.config.output, learner.method.name), tensors, card)
        return replace(now, best=best)

    def _scores(self, learner: Learner, tensors: Mapping[str, torch.Tensor] | None, ground: Ground) -> Scores:
        """By the way that `hyperfuse evaluate` takes, on whole scenes."""
        spec = learner.method.specify(ground.pair.observed, **learner.spec.options)
        return score(fuse_by(learner.method, spec, ground.pair, tensors, device=self._device).image, ground.pair)

    def _card(self, learner: Learner, step: int, scores: Sequence[Scores], mean: Mapping[str, Any]) -> WeightCard:
        config, observed = self.config, learner.spec.observed
        data = [{"part": "learnt", **ground.to_json()} for ground in self._learnt]
        for ground, found in zip(self._held_out, scores, strict=True):
            data.append({"part": "held out", **ground.to_json(), "sam_deg": found.sam_deg, "psnr_db": found.psnr_db})
        taught = learner.role == "network" and config.teacher is not None
        training = {
            "command": "hyperfuse train config.json",
            "key": config.key,
            "code": code_version(),
            **self._space(observed),
            "data": data,
            "generated": None if config.generated is None else config.generated.to_json(),
            "simulation": config.simulation.model_dump(mode="json"),
            "samples": config.samples.model_dump(mode="json"),
            "losses": dict(learner.terms),
            "teacher": config.teacher if taught else None,
            "distill": dict(self._lesson.distill) if taught else {},
            "steps": config.steps,
            "rate": config.rate,
            "seed": config.seed,
            "precision": config.precision,
            "best_step": step,
            "scores": dict(mean),
        }
        sized = not config.universal
        return WeightCard(
            network=learner.method.name,
            hsi_bands=observed.hsi_bands if sized else 0,
            msi_bands=observed.msi_bands if sized else 0,
            ratio=observed.ratio if sized else 0,
            space="native" if sized else "universal",
            components=learner.spec.options.get("components", 0),
            ratios=[] if sized else sorted(set(config.variations.ratios)),
            center_nm=self._centers(0) if sized else [],
            msi_center_nm=self._centers(1) if sized else [],
            options=dict(learner.spec.options),
            source="trained by hyperfuse train",
            license=config.license,
            training=training,
        )

    def _centers(self, role: int) -> list[float]:
        """Centers (nm) of the bands of the HSI (0) or the MSI (1) that were learnt from, if they are known."""
        bands = self._learnt[0].pair.bands
        return [] if bands is None else [round(float(nm), 2) for nm in bands[role].center_nm]

    def _space(self, observed: Observed) -> dict[str, Any]:
        """What a card says of the space that was trained in."""
        if self.config.universal:
            return {
                "space": "universal",
                "variations": self.config.variations.model_dump(mode="json"),
                "scaling": "planes of the training-free estimate, by statistics of the scene; see models.universal",
                "estimate": self._estimate,
            }
        return {
            "space": "native",
            "psf_sigma_px": observed.psf_sigma_px,
            "scaling": "both images by the smallest and largest sample of the scene's HSI to [-1, 1]",
        }


def _means(scores: Sequence[Scores]) -> dict[str, float | None]:
    """Mean of each score over scenes."""
    return {name: _mean([getattr(each, name) for each in scores]) for name in _SCORED}


def _known(mean: Mapping[str, float | None]) -> dict[str, float]:
    return {name: value for name, value in mean.items() if value is not None}


def _mean(values: Sequence[float]) -> float | None:
    """None where one is no number, as the SSIM of a scene smaller than its windows."""
    mean = float(np.mean(values))
    return mean if math.isfinite(mean) else None
