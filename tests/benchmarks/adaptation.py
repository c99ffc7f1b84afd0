"""What fitting a network to its scene brings where it counts: `python -m tests.benchmarks.adaptation --data DIR`.

`hyperfuse adapt` learns from a scene at reduced resolution, and decides there. Here the scenes are generated, large enough for
it, with a known truth at full resolution: so the decision can be held against what it was made for. Each scene is fused with
the default, with the shipped weights, and with these fitted to it, once from the pair as averaging leaves it, almost free of
noise, and once from the pair as noisy as at full resolution, which is what `adapt` takes.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import cast

import torch

from hyperfuse.catalogs.errors import HyperFuseError
from hyperfuse.models import method
from hyperfuse.models.weights_io import load_weights
from hyperfuse.pipeline.fusion.weights import shipped_weights
from hyperfuse.pipeline.observation.protocol import Protocol
from hyperfuse.pipeline.observation.simulate import SimulatedPair, simulate
from hyperfuse.pipeline.quality.rehearsal import noisy_as_full
from hyperfuse.pipeline.quality.trials import fuse_by, score
from hyperfuse.pipeline.training.adapt.fit import AdaptSettings
from hyperfuse.pipeline.training.adapt.run import Adaptation, adapt
from hyperfuse.pipeline.training.generated.scenes import Generator
from hyperfuse.pipeline.training.settings import GeneratedConfig
from tests.benchmarks.uncertainty import reduced
from tests.sources import ecostress_library, sentinel2

NETWORK = "universal-plain"
PROTOCOL = Protocol(ratio=4, msi="s2-4", hsi_snr_db=35.0, msi_snr_db=40.0)
SIZE_PX = 480
"""Edge of a scene: 120 HSI pixels."""
_BANDS = ",".join(str(nm) for nm in range(450, 2400, 30))


def trials(pair: SimulatedPair) -> dict[str, SimulatedPair]:
    """The pair at reduced resolution, by the noise that it has."""
    plain = reduced(pair, pair.observed.ratio)
    return {"averaged noise": plain, "full noise": noisy_as_full(plain, pair.msi, pair.observed)}


def scored(pair: SimulatedPair, weights: dict[str, torch.Tensor] | None) -> tuple[float, float]:
    """PSNR (dB) and spectral angle (degrees) at full resolution."""
    chosen = method(NETWORK)
    found = score(fuse_by(chosen, chosen.specify(pair.observed), pair, weights, device="cpu").image, pair)
    return found.psnr_db, found.sam_deg


def row(pair: SimulatedPair, *, steps: int) -> tuple[dict[str, tuple[float, float]], dict[str, Adaptation]]:
    """Scores at full resolution, and what was decided at the reduced one."""
    start = load_weights(cast("Path", shipped_weights(NETWORK)))
    scores, decided = {"default": scored(pair, None), "shipped": scored(pair, start)}, {}
    for name, trial in trials(pair).items():
        spec = method(NETWORK).specify(trial.observed)
        decided[name], fitted = adapt(trial, spec, start, AdaptSettings(minutes=1e3, most_steps=steps))
        scores[name] = scored(pair, fitted)
    return scores, decided


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, metavar="DIR", help="folder of the images and libraries")
    parser.add_argument("--scenes", type=int, default=2)
    parser.add_argument("--steps", type=int, default=1000, help="batches that an adaptation learns from")
    options = parser.parse_args()
    torch.set_num_threads(1)
    config = GeneratedConfig.model_validate(
        {"images": [sentinel2(options.data)], "libraries": [ecostress_library(options.data)], "bands": _BANDS, "size_px": SIZE_PX}
    )  # fmt: skip
    try:
        generator = Generator(config)
        for number in range(options.scenes):
            scores, decided = row(simulate(generator.scene(number).cube, PROTOCOL), steps=options.steps)
            print(
                f"scene {number}: "
                + ", ".join(f"{name} {db:.2f} dB {deg:.3f} deg" for name, (db, deg) in scores.items())
            )
            for name, made in decided.items():
                print(f"    {name}: {made.reason}", flush=True)
    except HyperFuseError as error:
        raise SystemExit(f"adaptation: {error}") from error


if __name__ == "__main__":
    main()
