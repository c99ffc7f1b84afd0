"""The same network on the same staged pair by what people use today; see `tests.benchmarks.engine`.

    whole          one forward over the image: no seam by definition, and the memory of it
    monai          `sliding_window_inference`, overlap 0.25, Gaussian weights, the HSI repeated onto the fine grid
    map_overlap    `dask.array.map_overlap` in threads, the same stack of both images, an overlap of an eighth of the block
    hyperfuse      the engine, from the staged arrays to the written product

Peers get their images in memory and keep their result there; the engine reads from disk and writes to it. `seam` is the
largest difference from the whole forward over the range of its result.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hyperfuse.models import Observed, method
from tests.benchmarks.measured import Growth, in_own_process

RATIO = 4


def compare_peers(network: str, edge: int, bands: int, core: int, rounds: int) -> list[dict[str, Any]]:
    """Seconds, memory, seam and redundancy of each peer; MONAI only where it is installed.

    All of them take turns, `rounds` times, and the whole forward stands before and after those of a round; what is told of a
    peer is the round of its middle ratio.
    """
    peers = (monai, map_overlap, hyperfuse)
    found: dict[str, list[dict[str, Any]]] = {peer.__name__: [] for peer in (whole, *peers)}
    with tempfile.TemporaryDirectory(prefix="hyperfuse-bench-") as folder:
        found["whole"].append(in_own_process(whole, folder, network, edge, bands))
        for number in range(rounds):
            of_round = [_row(peer, f"{folder}/{number}", network, edge, bands, core) for peer in peers]
            found["whole"].append(in_own_process(whole, folder, network, edge, bands))
            one = sum(row["seconds"] for row in found["whole"][-2:]) / 2
            for row in of_round:
                found[row["peer"]].append(row | ({"over_whole": row["seconds"] / one} if "seconds" in row else {}))
    return [sorted(rows, key=lambda row: row.get("over_whole", 0.0))[len(rows) // 2] for rows in found.values()]


def _row(peer: Callable[..., dict[str, Any]], folder: str, *arguments: Any) -> dict[str, Any]:
    Path(folder).mkdir(exist_ok=True)
    try:
        return in_own_process(peer, folder, *arguments)
    except SystemExit as error:
        return {"peer": peer.__name__, "missing": str(error)}


def scene(edge: int, bands: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Both images, in [-1, 1]."""
    random = torch.Generator().manual_seed(0)
    smooth = torch.nn.functional.interpolate(
        torch.rand((1, bands, edge // 64, edge // 64), generator=random), (edge, edge)
    )
    hsi = torch.nn.functional.avg_pool2d(smooth, RATIO)
    msi = smooth[:, :: bands // 4][:, :4] + 0.05 * torch.rand((1, 4, edge, edge), generator=random)
    return hsi * 2 - 1, msi * 2 - 1


def model(network: str, bands: int) -> Any:
    """The network with its seeded random weights, without the scene-wide attention that no peer could compute."""
    chosen = method(network)
    return chosen.build(chosen.specify(Observed(hsi_bands=bands, msi_bands=4, ratio=RATIO, psf_sigma_px=2.0)))


def stacked(network: Any, bands: int) -> Any:
    """The network as a function of one image on the fine grid, which is all that the peers can tile."""

    def call(image: torch.Tensor) -> torch.Tensor:
        return network(image[:, :bands, ::RATIO, ::RATIO].contiguous(), image[:, bands:].contiguous())

    return call


def _stack(edge: int, bands: int) -> torch.Tensor:
    hsi, msi = scene(edge, bands)
    return torch.cat([hsi.repeat_interleave(RATIO, -1).repeat_interleave(RATIO, -2), msi], dim=1)


def _timed(peer: str, call: Any) -> tuple[dict[str, Any], Any]:
    with torch.inference_mode(), Growth() as growth:
        started = time.perf_counter()
        result = call()
        seconds = time.perf_counter() - started
    return {"peer": peer, "seconds": seconds, "extra_mb": growth.mb}, result


def _seam(result: Any, folder: str) -> float:
    truth = np.load(Path(folder).with_name("whole.npy"), mmap_mode="r", allow_pickle=False)
    return float(np.abs(np.asarray(result) - truth).max() / (truth.max() - truth.min()))


def whole(folder: str, network: str, edge: int, bands: int) -> dict[str, Any]:
    """One forward over the image."""
    hsi, msi = scene(edge, bands)
    chosen = model(network, bands)
    record, result = _timed("whole", lambda: chosen(hsi, msi))
    np.save(Path(folder) / "whole.npy", result[0].numpy())
    return record | {"seam": 0.0, "redundancy": 1.0}


def monai(folder: str, network: str, edge: int, bands: int, core: int) -> dict[str, Any]:
    """MONAI's sliding window."""
    try:
        from monai.inferers import sliding_window_inference
    except ImportError:
        raise SystemExit("pip install monai") from None
    image, call = _stack(edge, bands), stacked(model(network, bands), bands)
    calls: list[int] = []

    def counted(window: torch.Tensor) -> torch.Tensor:
        calls.append(window.shape[-1] * window.shape[-2])
        return call(window)

    record, result = _timed(
        "monai", lambda: sliding_window_inference(image, (core, core), 1, counted, overlap=0.25, mode="gaussian")
    )
    return record | {"seam": _seam(result[0], folder), "redundancy": sum(calls) / edge**2}


def map_overlap(folder: str, network: str, edge: int, bands: int, core: int) -> dict[str, Any]:
    """Dask's overlapping blocks, in threads."""
    import dask
    import dask.array as da

    image, call, depth = _stack(edge, bands)[0].numpy(), stacked(model(network, bands), bands), core // 8
    blocks = da.from_array(image, chunks=(-1, core, core))
    calls: list[int] = []

    def block(window: np.ndarray) -> np.ndarray:
        calls.append(window.shape[-1] * window.shape[-2])
        with torch.inference_mode():
            return call(torch.from_numpy(np.ascontiguousarray(window))[None])[0].numpy()

    tiled = da.map_overlap(
        block, blocks, depth={0: 0, 1: depth, 2: depth}, boundary="none", dtype="float32", chunks=((bands,), *blocks.chunks[1:]),
        meta=np.empty((0, 0, 0), np.float32), trim=True, allow_rechunk=False,
    )  # fmt: skip
    with dask.config.set(scheduler="threads", num_workers=2):
        record, result = _timed("map_overlap", tiled.compute)
    return record | {"seam": _seam(result, folder), "redundancy": sum(calls) / edge**2}


def hyperfuse(folder: str, network: str, edge: int, bands: int, core: int) -> dict[str, Any]:
    """The engine, from the staged arrays to the written product, float32 so that the results compare."""
    from hyperfuse.pipeline.job import store
    from hyperfuse.pipeline.run import fuse_tiles, open_run, stage_pair
    from tests.benchmarks.engine import settings

    run = settings(Path(folder), network, edge=edge, bands=bands, core=core)
    publish = run.publish.model_copy(update={"dtype": "float32"})
    with open_run(run.model_copy(update={"publish": publish})) as held:
        job = stage_pair(held)
        with Growth() as growth:
            started = time.perf_counter()
            fuse_tiles(job)
            seconds = time.perf_counter() - started
        tiled = np.asarray(store.open_array(job.fused)[...])
        chosen = model(network, bands)
        from hyperfuse.pipeline.fusion.windows import StagedPair
        from hyperfuse.pipeline.geometry.box import Box

        height, width = job.grids.coarse_shape
        pair = StagedPair(job)
        window = pair.read(Box(y0=0, y1=height, x0=0, x1=width))
        gain, offset = pair.unscaling
        with torch.inference_mode():
            truth = (chosen(window.hsi, window.msi)[0] * gain + offset).numpy()[:, : tiled.shape[1], : tiled.shape[2]]
        seam = float(np.nanmax(np.abs(tiled - truth)) / (truth.max() - truth.min()))
        return {
            "peer": "hyperfuse", "seconds": seconds, "extra_mb": growth.mb, "seam": seam,
            "redundancy": round(job.plan.redundancy, 3),
        }  # fmt: skip
