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
import resource
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, fields, replace
from datetime import timedelta
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
from hyperfuse.pipeline.training.stopping import Told, held_back

if TYPE_CHECKING:
    from hyperfuse.pipeline.training.step import Learner, Lesson

log = logging.getLogger(__name__)

_TOLD_EVERY_S = 60.0
_REHEARSED = 3
"""Steps that a rehearsal is timed by, after one that pays for threads and memory."""
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


@dataclass(frozen=True, kw_only=True)
class Rehearsed:
    """What a training is going to take, by its first steps."""

    parameters: dict[str, int]
    """Of each network, by role."""
    step_s: float
    """Seconds of a step."""
    validation_s: float
    """Seconds of scoring all networks on the scenes held out."""
    hours: float
    """Of the whole training."""
    peak_gb: float
    """Memory of the process, GB."""
    device_gb: float | None
    """Memory of the device; None on a CPU."""


def rehearse_training(config: TrainConfig, *, progress: Progress = silent) -> Rehearsed:
    """Time the first steps of a training, and one validation, on one device; nothing is written.

    Raises
    ------
    As `train`, but for what it finds in the output folder.
    """
    device = pick_device(config.device)
    learnt, held_out = open_grounds(
        config.scenes, config.held_out, config.simulation, generated=config.generated, universal=config.universal
    )
    _lesson_class().check(config, learnt[0].pair.observed)
    course = _Course(
        config=config, device=device, learnt=learnt, held_out=held_out, samples=_samples(config, learnt, progress)
    )
    lesson = _lesson_class()(config, learnt[0].pair.observed, device)
    batches = iter(DataLoader(course.samples, batch_size=config.samples.batch, sampler=range(10**9)))
    lesson.step(next(batches), 0)
    started = time.monotonic()
    for number in range(_REHEARSED):
        lesson.step(next(batches), number + 1)
    step_s = (time.monotonic() - started) / _REHEARSED
    started = time.monotonic()
    keep = _Keep(course, lesson)
    for learner in lesson.learners:
        for ground in held_out:
            keep.scores(learner, learner.kept(), ground)
    validation_s = time.monotonic() - started
    return Rehearsed(
        parameters={each.role: sum(value.numel() for value in each.network.parameters()) for each in lesson.learners},
        step_s=step_s,
        validation_s=validation_s,
        hours=(config.steps * step_s + math.ceil(config.steps / config.every) * validation_s) / 3600.0,
        peak_gb=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9,
        device_gb=torch.cuda.max_memory_allocated(device) / 1e9 if device.type == "cuda" else None,
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
    # Of several processes the one that watches them is told to end.
    with logs or nullcontext(), held_back() if rank.of == 1 else nullcontext(Told()) as told:
        watch = _Watch(config, begun.step)
        for step, given in enumerate(batches, start=begun.step + 1):
            losses = lesson.step(given, step - 1)
            due = step % config.every == 0 or step == config.steps
            if logs is not None:
                logs.learnt(step, losses)
                progress("train", step, config.steps)
                watch.tell(step, losses)
                if due:
                    now = keep.validated(replace(now, step=step), logs)
                if due or told or watch.is_save_due:
                    now = replace(now, step=step)
                    save_state(config.output, now, lesson.learners)
                    watch.saved()
            if told:
                log.info("told to end; step %d is saved, run again to go on", step)
                break
            if due:
                lesson.wait()
    return now


class _Watch:
    """When the state was last saved, and how fast the steps go."""

    def __init__(self, config: TrainConfig, step: int) -> None:
        self._config, self._begun = config, step
        self._start = self._saved = self._told = time.monotonic()

    @property
    def is_save_due(self) -> bool:
        """Whether so many minutes have passed."""
        return time.monotonic() - self._saved >= 60.0 * self._config.save_minutes

    def saved(self) -> None:
        """Note that the state is saved."""
        self._saved = time.monotonic()

    def tell(self, step: int, losses: Mapping[str, float]) -> None:
        """Say once a minute in the log where the training is, and when it will end."""
        now = time.monotonic()
        if now - self._told < _TOLD_EVERY_S:
            return
        self._told, pace = now, (now - self._start) / (step - self._begun)
        log.info(
            "step %d of %d: loss %.4g, %.3g s per step, %s left",
            step, self._config.steps, losses["network.loss"], pace, timedelta(seconds=round(pace * (self._config.steps - step))),
        )  # fmt: skip


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
                self._estimate = _means([self.scores(learner, None, ground) for ground in self._held_out])
            logs.validated(now.step, "map_subspace", _known(self._estimate))
        for learner in self._lesson.learners:
            tensors = learner.kept()
            scores = [self.scores(learner, tensors, ground) for ground in self._held_out]
            mean = _means(scores)
            logs.validated(now.step, learner.method.name, _known(mean))
            log.info("%s, step %d: SAM %.3f deg", learner.method.name, now.step, mean["sam_deg"])
            before = best.get(learner.role)
            if before is None or mean["sam_deg"] < before["sam_deg"]:
                best[learner.role] = {"step": now.step, **mean}
                card = self._card(learner, now.step, scores, mean)
                save_weights(_weight_file(self.config.output, learner.method.name), tensors, card)
        return replace(now, best=best)

    def scores(self, learner: Learner, tensors: Mapping[str, torch.Tensor] | None, ground: Ground) -> Scores:
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
            **{name: value for name in ("warmup", "clip", "average") if (value := getattr(config, name))},
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
