"""What judging costs beside fusing: `python -m tests.benchmarks.quality`.

A synthetic scene is staged and fused by a network with random weights (what it computes is not looked at, what it costs
is), then judged. Standards ask for at most 15 % of the fusion time of `csakd-student` on a CPU.
"""

from __future__ import annotations

import argparse
import resource
import tempfile
import time
from pathlib import Path

import torch

from hyperfuse.catalogs.weight_cards import WeightCard
from hyperfuse.models import Observed, method
from hyperfuse.pipeline.fusion.weights import save_weights
from hyperfuse.pipeline.job.completeness import mosaic
from hyperfuse.pipeline.quality.assessment import assess
from hyperfuse.pipeline.run import fuse_tiles, open_run, stage_pair
from tests.synthetic import config


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--method", default="csakd-student")
    parser.add_argument("--edge", type=int, default=1024, metavar="PX")
    parser.add_argument("--bands", type=int, default=60)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory(prefix="hyperfuse-bench-") as folder:
        weights = Path(folder) / "weights.safetensors"
        chosen = method(options.method)
        spec = chosen.specify(Observed(hsi_bands=options.bands, msi_bands=4, ratio=4, psf_sigma_px=2.0))
        card = WeightCard(
            network=options.method, hsi_bands=options.bands, msi_bands=4, ratio=4, options=dict(spec.options)
        )
        save_weights(weights, chosen.build(spec).state_dict(), card)
        recipe = f"size={options.edge}&ratio=4&bands={options.bands}&seed=1"
        run = config(Path(folder) / "product", recipe, method=options.method, weights=str(weights), device="cpu")
        with open_run(run) as held:
            job = stage_pair(held)
            started = time.monotonic()
            fuse_tiles(job)
            fused = time.monotonic() - started
            before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            started = time.monotonic()
            assess(job, mosaic(job))
            judged = time.monotonic() - started
            after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(
        f"{options.edge} x {options.edge} px, {options.bands} bands, {options.threads} threads: {options.method} fuses in "
        f"{fused:.1f} s, judging takes {judged:.1f} s, {100 * judged / fused:.1f} %; peak {after / 1024:.0f} MB, "
        f"{(after - before) / 1024:.0f} MB of it for judging"
    )


if __name__ == "__main__":
    main()
