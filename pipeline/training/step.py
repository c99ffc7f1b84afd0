"""One step of training: a network by itself, or a teacher and then its student on the same batch.

Losses are those of the networks' modules (`LOSSES`), by the names of `models.losses`. Co-training is CSAKD's
(arXiv:2406.19666): the teacher learns from the truth, the student from the truth and from what the teacher gave for this
batch before it learnt, each with noise of its own; features are compared where both networks show them in one shape.

Notes
-----
Lightning's Fabric brings device and arithmetic; the loop is ours (`workflow`), because two networks with an optimizer each
learn in turn, and because a training must go on at the very step at which it was killed.

Several processes learn from a batch as one does, but for rounding: every loss here is a mean over patches, no network keeps
statistics of a batch, and each process has the same number of patches; so the mean of their gradients is the batch's.

A network without a teacher, and every teacher, learns by AdamW without decay at a rate that falls along half a cosine to
almost 0; a student's rate falls by a tenth after every eighth of the steps, as CSAKD's does.
"""

from __future__ import annotations

import inspect
import logging
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, cast

import torch
from lightning.fabric import Fabric
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.fabric.strategies.ddp import DDPStrategy
from torch import nn

from hyperfuse.catalogs.errors import QualityRefused, UsageError
from hyperfuse.models import Method, ModelSpec, Observed, losses, method, universal
from hyperfuse.pipeline.training.distributed import ALONE, Rank
from hyperfuse.pipeline.training.patches import TrainingSample
from hyperfuse.pipeline.training.settings import TrainConfig, is_universal

log = logging.getLogger(__name__)

TERMS: Mapping[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "pixel": losses.pixel, "absolute": losses.absolute, "relative": losses.relative, "sam": losses.sam, "beba": losses.beba, "wavelet": losses.wavelet,
    "response": losses.response, "feature": losses.feature,
    "sam-released": partial(losses.sam, form="released"), "beba-released": partial(losses.beba, phi="released"),
}  # fmt: skip
_UNNAMED = {"pixel": 1.0, "sam": 0.1}  # of a network whose module says nothing
_LEAST_RATE = 1e-10
_STAIRS, _STAIR = 8, 0.9
_REACH_PER_PATCH = 8
"""Coarse pixels that a network may look to each side for each of a patch's edge. CSAKD's student, which looks 62 far, came to
30 dB with patches of 8 and 12; with patches of 4, which are all border, it was lost on the whole scene, down to -54 dB."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Learner:
    """A network that is trained."""

    role: str
    """`network` or `teacher`."""
    method: Method
    spec: ModelSpec
    terms: Mapping[str, float]
    """Losses against the truth and their weights."""
    network: nn.Module
    """On its device, in the training's arithmetic."""
    optimizer: torch.optim.Optimizer
    shows_feature: bool
    """Whether it gives a feature to learn from, or by."""
    average: dict[str, torch.Tensor] | None = None
    """Running mean of the weights, if one is asked for; changed in place."""

    @classmethod
    def of(cls, name: str, role: str, observed: Observed, config: TrainConfig, fabric: Fabric) -> Learner:
        """A fresh network, seeded.

        Raises
        ------
        UsageError
            If there is nothing to train in it, or it cannot work on such pairs, ranges or patches.
        """
        chosen, spec, network = _chosen(name, role, observed, config)
        network.train()
        shows_feature = "return_feature" in inspect.signature(network.forward).parameters
        optimizer = torch.optim.AdamW(network.parameters(), lr=config.rate, weight_decay=0.0)
        wrapped, stepped = fabric.setup(network, optimizer)
        terms: Mapping[Any, float] = config.losses or getattr(chosen.module, "LOSSES", _UNNAMED)
        return cls(
            role=role,
            method=chosen,
            spec=spec,
            terms=dict(terms),
            network=wrapped,
            optimizer=stepped,
            shows_feature=shows_feature,
            average=None if config.average is None else _copied(wrapped.state_dict()),
        )

    def kept(self) -> dict[str, torch.Tensor]:
        """What is scored and published: the running mean of the weights if there is one, else the weights."""
        return self.tensors() if self.average is None else dict(self.average)

    def follow(self, decay: float) -> None:
        """Take the weights into their running mean."""
        for name, value in self.tensors().items():
            mean = (self.average or {}).get(name)
            if mean is not None and mean.is_floating_point():
                mean.lerp_(value, 1.0 - decay)
            elif mean is not None:
                mean.copy_(value)

    def tensors(self) -> dict[str, torch.Tensor]:
        """Weights under the names of the network's own."""
        return {name: value.detach() for name, value in self.network.state_dict().items()}

    def moments(self) -> Iterator[tuple[str, torch.Tensor]]:
        """What the optimizer remembers of each parameter, as `<number>/<kind>`."""
        for number, kept in self.optimizer.state_dict()["state"].items():
            for kind, value in kept.items():
                yield f"{number}/{kind}", torch.as_tensor(value)

    def restore(
        self,
        tensors: Mapping[str, torch.Tensor],
        moments: Mapping[str, torch.Tensor],
        average: Mapping[str, torch.Tensor],
    ) -> None:
        """The state that `tensors`, `moments` and `average` told."""
        self.network.load_state_dict(tensors, strict=True)
        for name, mean in (self.average or {}).items():
            mean.copy_(average[name])
        kept: dict[int, dict[str, torch.Tensor]] = {}
        for name, value in moments.items():
            number, _, kind = name.partition("/")
            kept.setdefault(int(number), {})[kind] = value
        record: dict[str, Any] = self.optimizer.state_dict()
        self.optimizer.load_state_dict(record | {"state": kept})


class Lesson:
    """What the networks of a training do with a batch.

    Parameters
    ----------
    config : TrainConfig
    observed : Observed
        Of the pairs.
    device : device
    rank : Rank
        Which of several processes this is. They must know each other already (`ranks.together`).

    Raises
    ------
    UsageError
        If a network cannot be trained on such pairs.
    """

    def __init__(self, config: TrainConfig, observed: Observed, device: torch.device, rank: Rank = ALONE) -> None:
        self._config = config
        self._fabric = fabric = _fabric(config, device, rank)
        self.learner = Learner.of(config.network, "network", observed, config, fabric)
        self.teacher = (
            None if config.teacher is None else Learner.of(config.teacher, "teacher", observed, config, fabric)
        )
        self.distill: dict[str, float] = {}
        """Terms of a student against its teacher, and their weights."""
        if self.teacher is not None:
            self.distill |= {str(name): weight for name, weight in config.distill.items()}
        alike = self.teacher is not None and self.teacher.shows_feature and self.learner.shows_feature
        if not alike and self.distill.pop("feature", 0.0) > 0:
            log.warning(
                "%s and %s show no feature in common: one learns from the response of the other alone",
                config.network,
                config.teacher,
            )

    @staticmethod
    def check(config: TrainConfig, observed: Observed) -> None:
        """Refuse what would be refused, before anything costly is made.

        Raises
        ------
        UsageError
            If a network cannot be trained on such pairs.
        """
        for role, name in config.roles.items():
            chosen, spec, _ = _chosen(name, role, observed, config)
            reach = (universal.core_spec(spec) if config.universal else spec).halo
            if (least := math.ceil(reach / _REACH_PER_PATCH)) > config.samples.patch:
                log.warning(
                    "setting samples.patch: %d coarse pixels, and %s looks %d far: of whole scenes it learns little but the "
                    "border; take %d or more",
                    config.samples.patch,
                    chosen.name,
                    reach,
                    least,
                )

    @property
    def learners(self) -> list[Learner]:
        """All networks that are trained, the teacher first."""
        return [self.learner] if self.teacher is None else [self.teacher, self.learner]

    def step(self, batch: TrainingSample, number: int) -> dict[str, float]:
        """Learn from a batch, or from this process's part of it.

        Returns
        -------
        dict of str to float
            `<role>.loss` and `<role>.<term>` before learning, means over the whole batch.

        Raises
        ------
        QualityRefused
            If a loss is not finite.
        """
        batch = self._fabric.to_device(batch)
        if self.teacher is None:
            fused, _ = _fused(self.learner, batch.hsi, batch.msi, feature=False)
            return self._learn(self.learner, _against_truth(self.learner, fused, batch), number)
        feature = "feature" in self.distill
        taught, shown = _fused(self.teacher, batch.hsi, batch.msi, feature=feature)
        told = self._learn(self.teacher, _against_truth(self.teacher, taught, batch), number)
        fused, own = _fused(self.learner, batch.again, batch.msi, feature=feature)
        terms = _against_truth(self.learner, fused, batch)
        pairs = {"response": (fused, taught), "feature": (own, shown)}
        terms |= {name: (weight, TERMS[name](*pairs[name])) for name, weight in self.distill.items()}
        return told | self._learn(self.learner, terms, number)

    def wait(self) -> None:
        """Wait until all processes are here."""
        self._fabric.barrier()

    def _learn(
        self, learner: Learner, terms: Mapping[str, tuple[float, torch.Tensor]], number: int
    ) -> dict[str, float]:
        loss = torch.stack([weight * term for weight, term in terms.values()]).sum()
        own = torch.stack([*(term for _, term in terms.values()), loss]).detach()
        mean = cast("torch.Tensor", self._fabric.all_reduce(own))  # so that all processes refuse, or none
        told = dict(zip([*terms, "loss"], mean.tolist(), strict=True))
        if not math.isfinite(told["loss"]):
            raise QualityRefused(
                f"{learner.method.name}: the loss is {told['loss']} at step {number}, expected a number; lower the rate, or "
                "take precision fp32, and start in another output folder"
            )
        stairs, config = self.teacher is not None and learner is self.learner, self._config
        rate = (falling_in_stairs if stairs else falling)(number, config.steps, config.rate)
        rate *= min((number + 1) / config.warmup, 1.0) if config.warmup else 1.0
        for group in learner.optimizer.param_groups:
            group["lr"] = rate
        learner.optimizer.zero_grad(set_to_none=True)
        self._fabric.backward(loss)
        if config.clip is not None:
            self._fabric.clip_gradients(learner.network, learner.optimizer, max_norm=config.clip)
        learner.optimizer.step()
        if config.average is not None:
            learner.follow(config.average)
        return {f"{learner.role}.{name}": value for name, value in told.items()}


def _copied(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in state.items()}


def _fabric(config: TrainConfig, device: torch.device, rank: Rank) -> Fabric:
    precision: Any = "bf16-mixed" if config.precision == "bf16" else "32-true"
    if rank.of == 1:
        devices = 1 if device.type == "cpu" else [device.index or 0]
        return Fabric(accelerator=device.type, devices=devices, precision=precision)
    fabric = Fabric(
        accelerator=device.type,
        devices=rank.of,
        precision=precision,
        # Some networks store layers that they never run: a static graph learns in the first step which ones.
        strategy=DDPStrategy(gradient_as_bucket_view=True, static_graph=True),
        plugins=[LightningEnvironment()],  # never that of a cluster whose job this may be
    )
    fabric.launch()
    return fabric


def _chosen(name: str, role: str, observed: Observed, config: TrainConfig) -> tuple[Method, ModelSpec, nn.Module]:
    """A fresh network.

    Raises
    ------
    UsageError
        If there is nothing to train in it, or it cannot work on such pairs, ranges or patches.
    """
    chosen = method(name)
    try:
        spec = chosen.specify(observed, **(config.options if role == "network" else {}))
    except (ValueError, TypeError) as error:  # TypeError: it has no such option
        raise UsageError(f"{role} {name}: {error}") from error
    network = _fresh(chosen, spec, role)
    step = _step(chosen, spec, config)
    if config.samples.patch % step:
        raise UsageError(
            f"setting samples.patch: {config.samples.patch} coarse pixels, expected a multiple of {step} for {name}"
        )
    return chosen, spec, network


def _fresh(chosen: Method, spec: ModelSpec, role: str) -> nn.Module:
    """A network that has learnt nothing.

    Raises
    ------
    UsageError
        If there is nothing to train in it, or it does not take the range of the samples.
    """
    if is_universal(chosen.name):
        return universal.build_core(spec)
    if not spec.needs_weights:
        raise UsageError(f"{role} {chosen.name} has no weights to train; choose a network (see `hyperfuse methods`)")
    if not spec.symmetric_range:
        raise UsageError(
            f"{role} {chosen.name}: takes images in their own unit, expected a network that takes them in [-1, 1]"
        )
    return cast("nn.Module", chosen.build(spec))


def _step(chosen: Method, spec: ModelSpec, config: TrainConfig) -> int:
    """Coarse pixels of which a patch must be a multiple, at every ratio that is learnt from."""
    if not config.universal:
        return math.lcm(spec.multiple_of, spec.observed.whole_blocks)
    plain = replace(spec.observed, msi_steps=(), msi_sigma_px=())  # a core sees no blocks
    at_ratios = (chosen.specify(replace(plain, ratio=ratio), **spec.options) for ratio in config.variations.ratios)
    return math.lcm(*(at_ratio.multiple_of for at_ratio in at_ratios))


def falling(step: int, steps: int, rate: float) -> float:
    """Learning rate along half a cosine."""
    return _LEAST_RATE + (rate - _LEAST_RATE) * (1 + math.cos(math.pi * step / steps)) / 2


def falling_in_stairs(step: int, steps: int, rate: float) -> float:
    """Learning rate that loses a tenth after every eighth of the steps."""
    return float(rate * _STAIR ** (_STAIRS * step // steps))


def _fused(
    learner: Learner, hsi: torch.Tensor, msi: torch.Tensor, *, feature: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """Output and feature, in fp32; without a feature the output twice."""
    if not feature:
        fused: torch.Tensor = learner.network(hsi, msi).float()
        return fused, fused
    both: tuple[torch.Tensor, torch.Tensor] = learner.network(hsi, msi, return_feature=True)
    return both[0].float(), both[1].float()


def _against_truth(
    learner: Learner, fused: torch.Tensor, batch: TrainingSample
) -> dict[str, tuple[float, torch.Tensor]]:
    return {name: (weight, TERMS[name](fused, batch.truth)) for name, weight in learner.terms.items()}
