"""Time and memory of networks against their plain references: `python -m tests.benchmarks.models csakd-student`.

Each forward runs in a process of its own, so that its peak resident memory is its own; times are the best of some runs,
taken in turns, because other work on the machine slows both.
"""

from __future__ import annotations

import argparse
import importlib
import multiprocessing
import resource
import time
from collections.abc import Callable
from typing import Any

import torch

from hyperfuse import models


def prepare(name: str, which: str, options: argparse.Namespace) -> Callable[[], torch.Tensor]:
    """The forward to measure, on random images of [-1, 1]."""
    method = models.method(name)
    seen = models.Observed(hsi_bands=options.bands, msi_bands=options.msi_bands, ratio=options.ratio, psf_sigma_px=1.7)
    spec = method.specify(seen)
    step = spec.multiple_of * seen.ratio
    edge = -(-options.edge // step) * step
    rng = torch.Generator().manual_seed(0)
    hsi = torch.rand(1, seen.hsi_bands, edge // seen.ratio, edge // seen.ratio, generator=rng) * 2 - 1
    msi = torch.rand(1, seen.msi_bands, edge, edge, generator=rng) * 2 - 1
    model: Any = method.build(spec)
    if which == "fast":
        return lambda: model(hsi, msi)
    reference = importlib.import_module(f"tests.models.reference_{name.partition('-')[0]}")
    return lambda: reference.plain(model, hsi, msi)


def serve(name: str, which: str, options: argparse.Namespace, pipe: Any) -> None:
    """Run the forward once for every request, and answer with seconds, peak MB and a sample of the output."""
    torch.set_num_threads(options.threads)
    with torch.inference_mode():
        run = prepare(name, which, options)
        while pipe.recv():
            started = time.perf_counter()
            out = run()
            seconds = time.perf_counter() - started
            pipe.send((seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, out[0, :, ::7, ::7].numpy()))


def measure(name: str, options: argparse.Namespace) -> dict[str, float]:
    """Best times (s), peaks (MB) and the largest relative difference of both forwards."""
    context = multiprocessing.get_context("spawn")
    pipes, workers, best, last = {}, [], {}, {}
    for which in ("plain", "fast"):
        pipes[which], theirs = context.Pipe()
        workers.append(context.Process(target=serve, args=(name, which, options, theirs), daemon=True))
        workers[-1].start()
    for _ in range(options.repeat + 1):  # the first warms up
        for which, pipe in pipes.items():
            pipe.send("run")
            last[which] = pipe.recv()
            best[which] = min(best.get(which, float("inf")), last[which][0])
    for pipe, worker in zip(pipes.values(), workers, strict=True):
        pipe.send("")
        worker.join()
    plain, fast = (last[which][2] for which in ("plain", "fast"))
    return {
        "plain_s": best["plain"],
        "fast_s": best["fast"],
        "plain_mb": last["plain"][1],
        "fast_mb": last["fast"][1],
        "difference": float(abs(plain - fast).max() / abs(plain).max()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="+", metavar="NETWORK")
    parser.add_argument("--edge", type=int, default=256, metavar="PX")
    parser.add_argument("--bands", type=int, default=172)
    parser.add_argument("--msi-bands", type=int, default=4)
    parser.add_argument("--ratio", type=int, default=4)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    print(
        f"{options.bands} + {options.msi_bands} bands, x{options.ratio}, {options.edge} px, {options.threads} threads"
    )
    print(
        f"{'network':>18}  {'plain s':>8}  {'fast s':>8}  {'ratio':>6}  {'plain MB':>8}  {'fast MB':>8}  {'rel. diff.':>10}"
    )
    for name in options.networks:
        row = measure(name, options)
        print(
            f"{name:>18}  {row['plain_s']:8.2f}  {row['fast_s']:8.2f}  {row['plain_s'] / row['fast_s']:6.2f}"
            f"  {row['plain_mb']:8.0f}  {row['fast_mb']:8.0f}  {row['difference']:10.1e}"
        )


if __name__ == "__main__":
    main()
