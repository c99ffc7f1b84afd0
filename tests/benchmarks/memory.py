"""Peak memory of fusing a small and a large scene: `make bench-memory`.

Both runs are whole (`hyperfuse fuse`, all formats) in processes of their own; the kernel's own count of the process's
peak resident memory is compared between the two sizes, and with what the plan predicted.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HYPERFUSE = str(Path(sys.executable).with_name("hyperfuse"))


def measure(
    edge: int, bands: int, ratio: int, network: str, folder: Path, *, formats: str = "[zarr, cog, stac]"
) -> dict[str, float]:
    """Peak memory (MB), predicted peak (MB) and time (s) of one run."""
    recipe = f"size={edge}&ratio={ratio}&bands={bands}&seed=1&east_m=7"
    scenes = [f"synthetic:hsi?{recipe}", f"synthetic:msi?{recipe}"]
    common = [*scenes, "--method", network, "--json", "--output", str(folder / f"p{edge}")]
    common += ["--set", f"publish.formats={formats}"]
    plan = json.loads(subprocess.run([HYPERFUSE, "plan", *common], check=True, capture_output=True).stdout)
    started = time.monotonic()
    with subprocess.Popen(
        [HYPERFUSE, "fuse", *common], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"hyperfuse fuse ended with {process.returncode} at {edge} px")
    pace = json.loads((folder / f"p{edge}" / "provenance.json").read_text())
    return {
        "edge_px": edge,
        "peak_mb": usage.ru_maxrss / 1024,
        "predicted_mb": plan["memory_gb"] * 1e9 / 2**20,
        "seconds": time.monotonic() - started,
        "fuse_pixels_per_second": pace["pace"]["pixels_per_second"],
        "pixels_per_second": edge**2 / (time.monotonic() - started),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--edges", type=int, nargs=2, default=[1000, 4000], metavar="PX")
    parser.add_argument("--bands", type=int, default=60)
    parser.add_argument("--ratio", type=int, default=4)
    parser.add_argument("--method", default="map_subspace")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="hyperfuse-bench-") as folder:
        small, large = (
            measure(edge, options.bands, options.ratio, options.method, Path(folder)) for edge in options.edges
        )
    print(
        f"{'scene':>13}  {'peak MB':>8}  {'plan MB':>8}  {'s':>7}  {'Mpx/s':>6}   ({options.method}, {options.bands} bands)"
    )
    for row in (small, large):
        size = f"{row['edge_px']}x{row['edge_px']}"
        print(
            f"{size:>13}  {row['peak_mb']:8.0f}  {row['predicted_mb']:8.0f}  {row['seconds']:7.1f}  "
            f"{row['pixels_per_second'] / 1e6:6.3f}"
        )
    print(f"large / small peak memory: {large['peak_mb'] / small['peak_mb']:.3f}")


if __name__ == "__main__":
    main()
