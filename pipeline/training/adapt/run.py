"""A universal network fitted to one scene: what the scene shows of itself at reduced resolution, blocks of it held back.

    pair at reduced resolution  ->  planes of the estimate, and the residual that it is short of (`residuals`)
    blocks of it                ->  most are learnt from, some choose among the steps, others decide in the end

The result is kept only if it is better than the start in PSNR and no worse in spectral angle, or the other way round, on
blocks that neither taught nor chose; else the start is kept. Steps follow from seed and number, and all that is needed to go
on lies in one file, so that a killed adaptation is taken up; how many steps fit into the minutes is the machine's affair.

Notes
-----
The pair has the noise of full resolution, and its truth has none (`pipeline.quality.rehearsal`). What was measured of that, and of the
whole, on two generated scenes of 480 x 480 pixels (`tests/benchmarks/adaptation.py`): fitted to the pair as averaging leaves
it, almost free of noise, the shipped network gained 0.13 dB on the blocks that decide, twice, and lost 0.17 and 0.11 dB at full
resolution; fitted with the noise it gained 0.08 and 0.23 dB there, and lost 0.05 and 0.02 dB. The rest of the loss is the
step in scale: land is not the same at another resolution. So a fit is for scenes unlike those that the start has learnt from.

On scenes of less than about 10,000 HSI pixels, networks that were fitted to a scene were worse than methods without weights,
because there is too little to learn from that the held-back blocks could confirm: such scenes are refused.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from hyperfuse.catalogs.errors import ExpectedSkip, InputRejected, UsageError
from hyperfuse.catalogs.opening import open_source
from hyperfuse.catalogs.pairs import ScenePair
from hyperfuse.catalogs.sensors import Source
from hyperfuse.catalogs.weight_cards import WeightCard, read_card
from hyperfuse.models import ModelSpec, method
from hyperfuse.models.weights_io import load_weights
from hyperfuse.pipeline.config import AlignConfig, RunConfig
from hyperfuse.pipeline.fusion.device import pick_device
from hyperfuse.pipeline.fusion.weights import save_weights, shipped_weights
from hyperfuse.pipeline.observation.simulate import SimulatedPair
from hyperfuse.pipeline.progress import Progress, silent
from hyperfuse.pipeline.quality.reduced_resolution import reduced, reduced_protocol
from hyperfuse.pipeline.quality.trials import fuse_by, score
from hyperfuse.pipeline.training.adapt.fit import CHOOSING, DECIDING, AdaptSettings, Fitting
from hyperfuse.pipeline.training.planes import exercise
from hyperfuse.pipeline.training.settings import is_universal

log = logging.getLogger(__name__)

LEAST_PIXELS = 10_000
"""HSI pixels of a scene below which it is refused."""
_BLOCKS = 8
"""Blocks along the shorter edge of the scene."""
_HELD_BACK = 0.125
"""Share of the blocks that choose, and the same of those that decide."""


@dataclass(frozen=True, kw_only=True)
class Adaptation:
    """What became of it."""

    kept: bool
    """Whether the fitted weights are better, and are those to take."""
    reason: str
    """In words."""
    steps: int
    """Batches learnt from."""
    best_step: int
    """After which of them the weights are; 0 is the start."""
    seconds: float
    """Of learning."""
    psnr_db: tuple[float, float]
    """On the blocks that decide, with the fitted weights and with the start."""
    sam_deg: tuple[float, float]
    """Likewise."""
    estimate: tuple[float, float]
    """PSNR (dB) and spectral angle (degrees) of the estimate without any residual, likewise."""

    def to_json(self) -> dict[str, Any]:
        """Plain record."""
        return asdict(self)


def adapt(
    pair: SimulatedPair,
    spec: ModelSpec,
    start: Mapping[str, torch.Tensor] | None,
    settings: AdaptSettings,
    *,
    device: str = "cpu",
    state: Path | None = None,
    progress: Progress = silent,
) -> tuple[Adaptation, dict[str, torch.Tensor]]:
    """Fit a universal network to a scene.

    Parameters
    ----------
    pair : SimulatedPair
        The scene at reduced resolution; its truth is the HSI.
    spec : ModelSpec
        Of a universal network on this pair.
    start : mapping of str to Tensor, optional
        Weights to begin with; without them the network begins as the estimate.
    settings : AdaptSettings
    device : str
        A torch device.
    state : Path, optional
        File that holds where the adaptation is; one that is there is taken up.
    progress : Progress

    Returns
    -------
    Adaptation
    dict of str to Tensor
        The fitted weights, on the CPU, whether kept or not.

    Raises
    ------
    ExpectedSkip
        If the scene is too small.
    InputRejected
        If `state` is of another adaptation, or damaged.
    """
    n_pixels = int(np.isfinite(pair.truth).all(axis=0).sum())
    if n_pixels < LEAST_PIXELS:
        raise ExpectedSkip(
            f"{pair.name}: {n_pixels} HSI pixels with data, expected at least {LEAST_PIXELS} to fit a network to; fuse it "
            "with weights as they are"
        )
    shown = exercise(pair, spec, settings.patch)
    part = _parts(pair, np.random.default_rng((settings.seed, 0)))
    learner = Fitting(shown, part, spec=spec, start=start, settings=settings, device=device)
    if state is not None and state.is_file():
        learner.restore(state)
    for step in learner.steps():
        progress("adapt", min(round(learner.seconds), round(60 * settings.minutes)), round(60 * settings.minutes))
        if state is not None and step % settings.every == 0:
            learner.save(state)
    if state is not None:
        learner.save(state)
    asked = replace(pair, truth=np.where(part == DECIDING, pair.truth, np.float32(np.nan)))
    made = _decided(asked, spec, start, learner, device)
    log.info("%s: adaptation %s", pair.name, made.reason)
    return made, learner.best


def adapt_to_scene(
    hsi: Source,
    msi: Source,
    *,
    network: str,
    weights: Path | None,
    minutes: float,
    output: Path,
    ratio: int | None = None,
    align: AlignConfig | None = None,
    device: str = "auto",
    progress: Progress = silent,
) -> Adaptation:
    """Fit a universal network to a scene and write its weights, if they are better than the start.

    Parameters
    ----------
    hsi, msi : Source
    network : str
        Universal network.
    weights : Path, optional
        File to begin with; without one the network begins with those that come with it, else as the estimate.
    minutes : float
        Time to learn in. A run that was killed goes on by the state beside `output`.
    output : Path
        Weight file.
    ratio : int, optional
        Fine pixels per coarse pixel; the rounded ratio of the ground sampling distances unless given.
    align : AlignConfig, optional
        How the scenes are brought together.
    device : str
    progress : Progress

    Raises
    ------
    UsageError
        If the network is not universal.
    InputRejected
        If a scene or the weights cannot be used.
    ExpectedSkip
        If the scene is too small.
    """
    if not is_universal(network):
        raise UsageError(
            f"{network}: belongs to its bands and ratio, expected a universal network (see `hyperfuse methods`)"
        )
    weights = weights or shipped_weights(network)
    card = None if weights is None else read_card(weights)
    if card is not None and card.network != network:
        raise InputRejected(f"{weights}: trained for {card.network}, expected {network}; choose weights that fit")
    if not output.absolute().parent.is_dir():
        raise InputRejected(f"{output}: its folder does not exist; create it first")
    both = ScenePair(hsi=open_source(hsi), msi=open_source(msi))
    pair = reduced(both, reduced_protocol(both, ratio), align=align or AlignConfig(), noisy=True)
    spec = method(network).specify(pair.observed, **({} if card is None else card.options))
    state = output.with_name(f"{output.name}.state")
    start = None if weights is None else load_weights(weights)
    settings = AdaptSettings(minutes=minutes)
    made, tensors = adapt(pair, spec, start, settings, device=str(pick_device(device)), state=state, progress=progress)
    if made.kept:
        begun = "the estimate" if card is None else card.sha256[:12]
        known = card or WeightCard(network=network, hsi_bands=0, msi_bands=0, ratio=0, ratios=[pair.observed.ratio])
        adapted = {
            "scene": pair.name,
            "inputs": [both.hsi.digest, both.msi.digest],
            "start": None if card is None else card.sha256,
            **made.to_json(),
        }
        save_weights(
            output,
            tensors,
            replace(
                known,
                space="universal",
                components=spec.options["components"],
                options=dict(spec.options),
                source=f"{begun}, adapted to {pair.name}",
                training=known.training | {"adapted": adapted},
            ),
        )
        state.unlink(missing_ok=True)
    return made


def adapted_run(config: RunConfig, *, minutes: float, progress: Progress = silent) -> RunConfig:
    """The run with weights that are fitted to its scene, or as it is where they are not better, or the scene is too small.

    They lie beside the product, so that whoever runs it again goes on with the same ones.

    Raises
    ------
    UsageError, InputRejected
        As `adapt_to_scene`.
    """
    output = config.output.with_name(f"{config.output.name}.adapted.safetensors")
    start = config.weights or shipped_weights(config.method)
    if output.is_file():
        told = read_card(output).training.get("adapted") or {}
        if told.get("start") != (None if start is None else read_card(start).sha256):
            raise InputRejected(
                f"{output}: was fitted from other weights than {start}; remove it, or choose another output"
            )
    else:
        try:
            made = adapt_to_scene(
                config.hsi.source(),
                config.msi.source(),
                network=config.method,
                weights=config.weights,
                minutes=minutes,
                output=output,
                ratio=config.ratio,
                align=config.align,
                device=config.device,
                progress=progress,
            )
        except ExpectedSkip as skip:
            log.warning("not adapted: %s", skip)
            return config
        if not made.kept:
            return config
    return config.model_copy(update={"weights": output})


def _parts(pair: SimulatedPair, rng: np.random.Generator) -> NDArray[np.int8]:
    """For which part each pixel of the truth is, shape (y, x): whole blocks, drawn at random; the rim is learnt from alone."""
    height, width = pair.truth.shape[1:]
    edge = max(min(height, width) // _BLOCKS, 1)
    n_down, n_right = -(-height // edge), -(-width // edge)
    n = n_down * n_right
    held = max(1, round(_HELD_BACK * n))
    drawn = np.zeros(n, np.int8)
    order = rng.permutation(n)
    drawn[order[:held]], drawn[order[held : 2 * held]] = CHOOSING, DECIDING
    part = drawn.reshape(n_down, n_right).repeat(edge, axis=0).repeat(edge, axis=1)[:height, :width]
    part[~np.isfinite(pair.truth).all(axis=0)] = -1
    return part


def _decided(
    pair: SimulatedPair,
    spec: ModelSpec,
    start: Mapping[str, torch.Tensor] | None,
    learner: Fitting,
    device: str,
) -> Adaptation:
    """The method itself, with both weights and without any, on a pair whose truth is known on the blocks that decide alone."""
    chosen = method(spec.name)
    after, before, without = (
        score(fuse_by(chosen, spec, pair, weights, device=device).image, pair)
        for weights in (learner.best, start, None)
    )
    better = after.psnr_db > before.psnr_db or after.sam_deg < before.sam_deg
    kept = learner.best_step > 0 and better and after.psnr_db >= before.psnr_db and after.sam_deg <= before.sam_deg
    return Adaptation(
        kept=kept,
        reason=f"{'kept' if kept else 'not kept'}: on blocks held back PSNR {after.psnr_db:.2f} dB, {before.psnr_db:.2f} dB "
        f"before, SAM {after.sam_deg:.3f} deg, {before.sam_deg:.3f} deg before, after {learner.best_step} of {learner.step} steps",
        steps=learner.step,
        best_step=learner.best_step,
        seconds=round(learner.seconds, 1),
        psnr_db=(after.psnr_db, before.psnr_db),
        sam_deg=(after.sam_deg, before.sam_deg),
        estimate=(without.psnr_db, without.sam_deg),
    )
