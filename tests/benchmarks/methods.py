"""Time and memory of methods without weights on a synthetic scene: `python -m tests.benchmarks.methods map_subspace`.

Each method runs on each scene in a process of its own, so that its peak resident memory is its own, above what the
process held with both images read. Times are of the first run, as a user's are.
"""

from __future__ import annotations

import argparse
import itertools
import multiprocessing
import resource
import time
from dataclasses import dataclass

import torch

from hyperfuse import models
from hyperfuse.models.operators import degrade, upsample

CONTROL = "bicubic"


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Of one method on one scene."""

    first_pass_s: float
    """Sums over the scene."""
    build_s: float
    """From the sums to the method."""
    fuse_s: float
    """From both images to the fused one."""
    peak_mb: float
    """Resident memory above that with both images read."""

    @property
    def seconds(self) -> float:
        """All of it."""
        return self.first_pass_s + self.build_s + self.fuse_s


def pair(edge: int, options: argparse.Namespace) -> tuple[torch.Tensor, torch.Tensor, models.Observed]:
    """Mixtures of six materials in a little noise, as both sensors see them; `edge` in coarse pixels."""
    rng = torch.Generator().manual_seed(0)
    sigma, n_materials = 0.5 * options.ratio, 6
    shares = upsample(torch.rand(1, n_materials, edge, edge, generator=rng), options.ratio)
    spectra = 0.1 + torch.rand(options.bands, n_materials, generator=rng)
    response = torch.rand(options.msi_bands, options.bands, generator=rng) / options.bands
    # The truth itself is never formed: with 200 bands it would be the largest thing in memory.
    hsi = torch.einsum("cm,nmhw->nchw", spectra, degrade(shares, options.ratio, sigma))
    msi = torch.einsum("km,nmhw->nkhw", response @ spectra, shares)
    hsi += 0.01 * torch.randn(hsi.shape, generator=rng)
    msi += 0.005 * torch.randn(msi.shape, generator=rng)
    seen = models.Observed(
        hsi_bands=options.bands,
        msi_bands=options.msi_bands,
        ratio=options.ratio,
        psf_sigma_px=sigma,
        srf=tuple(tuple(row) for row in (response / response.sum(dim=1, keepdim=True)).tolist()),
    )
    return hsi, msi, seen


def peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def run(name: str, edge: int, options: argparse.Namespace) -> Cost:
    """The method on a scene of that many coarse pixels along an edge, in this process."""
    torch.set_num_threads(options.threads)
    with torch.inference_mode():
        hsi, msi, seen = pair(edge, options)
        method = models.method(name)
        spec = method.specify(seen)
        before = peak_mb()
        ticks = [time.perf_counter()]
        sums = None
        if spec.needs_first_pass:
            sums = method.first_pass(spec).sums(hsi, msi, torch.ones(1, edge, edge, dtype=torch.bool))
        ticks.append(time.perf_counter())
        model = method.build(spec, sums)
        ticks.append(time.perf_counter())
        model(hsi, msi)
        ticks.append(time.perf_counter())
    first_pass_s, build_s, fuse_s = (after - start for start, after in itertools.pairwise(ticks))
    return Cost(first_pass_s=first_pass_s, build_s=build_s, fuse_s=fuse_s, peak_mb=peak_mb() - before)


def measure(name: str, edge: int, options: argparse.Namespace) -> Cost:
    """The same in a new process."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(run, (name, edge, options))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("methods", nargs="+", metavar="METHOD")
    parser.add_argument("--edges", default="100,200,400", metavar="PX,...", help="of the HSI, in coarse pixels")
    parser.add_argument("--bands", type=int, default=200)
    parser.add_argument("--msi-bands", type=int, default=4)
    parser.add_argument("--ratio", type=int, default=4)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    print(f"{options.bands} + {options.msi_bands} bands, x{options.ratio}, {options.threads} threads")
    print(
        f"{'fused px':>9}  {'method':>18}  {'pass s':>7}  {'build s':>7}  {'fuse s':>7}  {'s/Mpx':>6}"
        f"  {'to ' + CONTROL:>10}  {'peak MB':>8}"
    )
    for edge in (int(part) for part in options.edges.split(",")):
        control = measure(CONTROL, edge, options)
        fine = edge * options.ratio
        for name in options.methods:
            cost = control if name == CONTROL else measure(name, edge, options)
            print(
                f"{fine:>9}  {name:>18}  {cost.first_pass_s:7.2f}  {cost.build_s:7.2f}  {cost.fuse_s:7.2f}"
                f"  {cost.seconds / (fine**2 / 1e6):6.2f}  {cost.seconds / control.seconds:10.1f}  {cost.peak_mb:8.0f}"
            )


if __name__ == "__main__":
    main()
