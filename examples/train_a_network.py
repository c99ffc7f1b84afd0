"""Train a student with its teacher on synthetic land for a few steps, and fuse with what they learnt.

    python examples/train_a_network.py [FOLDER]

On the command line: hyperfuse train training.yaml. Seconds make no network: give real scenes and some ten thousand steps.
"""

from __future__ import annotations

import csv
import sys
import tempfile
from pathlib import Path

from hyperfuse import load_config, run
from hyperfuse.pipeline.training import TrainConfig, train

BANDS = "bands=12&high_nm=1000"


def main(folder: Path) -> None:
    config = TrainConfig.model_validate(
        {
            "network": "csakd-student",
            "teacher": "csakd-teacher",
            "scenes": [{"uri": f"synthetic:truth?size=96&seed=1&{BANDS}"}],
            "held_out": [{"uri": f"synthetic:truth?size=64&seed=2&{BANDS}"}],
            "output": folder / "student",
            "simulation": {"ratio": 4, "msi": "s2-4"},
            "samples": {"patch": 8, "batch": 2, "shift_px": 0.5},
            "steps": 20,
            "every": 10,
            "rate": 1e-3,
            "device": "cpu",
        }
    )
    trained = train(config)
    with (config.output / "steps.csv").open(newline="") as file:
        losses = [float(row["network.loss"]) for row in csv.DictReader(file)]
    print(f"loss {losses[0]:.3f} -> {losses[-1]:.3f} in {trained.steps} steps")
    for role, best in trained.best.items():
        print(f"{role}: SAM {best['sam_deg']:.1f} deg on the scene held out, at step {best['step']}")

    scenes = {f"{role}.uri": f"synthetic:{role}?size=96&seed=5&{BANDS}" for role in ("hsi", "msi")}
    weights = {"method": "csakd-student", "weights": str(trained.weights["network"])}
    # Twenty steps teach it little: what does not agree with the MSI is published only without gates.
    ungated = {"quality.gate": "off"}
    product = run(load_config(None, scenes | weights | ungated | {"output": str(folder / "product")}))
    print(f"fused: {product.path}")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        main(Path(sys.argv[1]))
    else:
        with tempfile.TemporaryDirectory() as temporary:
            main(Path(temporary))
