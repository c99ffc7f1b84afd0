"""The engine beside what bounds it, and beside its peers: `make bench`.

    network    fusing all tiles of a staged pair, over the pure forward of the same tiles (with their halos, nothing else running)
    disk       the same, over writing the same samples with the same codec and chunks, nothing else running
    busy       share of the time in which the device computed
    memory     peak of a whole run (`hyperfuse fuse`) at three sizes, beside what the plan predicts
    pixels     time of fusing per pixel at three sizes
    workers    one and two Dask workers of one thread
    peers      the same network and scene by MONAI, Dask and one whole forward (tests/benchmarks/peers.py)

Networks have random weights: what they compute is not looked at, what it costs is. Every figure is a ratio to a baseline of
the same run, and each measurement has a process of its own; what is compared takes turns. The table is printed, and kept as
benchmarks/<machine>.json.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from hyperfuse import models
from hyperfuse.catalogs.weight_cards import WeightCard
from hyperfuse.models import Observed, method
from hyperfuse.pipeline.fusion.tile_fuser import TileFuser
from hyperfuse.pipeline.fusion.weights import save_weights
from hyperfuse.pipeline.job import store
from hyperfuse.pipeline.job.folder import StagedJob
from hyperfuse.pipeline.run import fuse_tiles, open_run, stage_pair
from tests import ROOT
from tests.benchmarks.measured import in_own_process
from tests.benchmarks.memory import measure
from tests.benchmarks.peers import compare_peers
from tests.synthetic import config

models.__path__.append(str(Path(__file__).with_name("cheap")))


def settings(folder: Path, network: str, *, edge: int, bands: int, core: int) -> Any:
    """A RunConfig of a synthetic pair, with random weights where the network wants some."""
    chosen = method(network)
    spec = chosen.specify(Observed(hsi_bands=bands, msi_bands=4, ratio=4, psf_sigma_px=2.0))
    given: dict[str, Any] = {
        "method": network,
        "tiles__core": core,
        "tiles__chunk": min(core, 256),
        "tiles__memory_gb": 20,
        "publish__formats": "[zarr]",
    }
    if spec.needs_weights:
        path = folder / f"{network}.safetensors"
        card = WeightCard(network=network, hsi_bands=bands, msi_bands=4, ratio=4, options=dict(spec.options))
        save_weights(path, chosen.build(spec).state_dict(), card)
        given["weights"] = str(path)
    return config(folder / "product", f"size={edge}&ratio=4&bands={bands}&seed=1", **given)


def forward_seconds(job: StagedJob) -> float:
    """Time of the method alone on all windows, each read before the clock runs."""
    fuser = TileFuser(job)
    seconds = 0.0
    # The first call pays for threads and memory once; it is not counted.
    with torch.inference_mode():
        fuser._call(fuser.load([job.plan.tile(0, 0)]).part)
    for tile in job.plan:
        part = fuser.load([tile]).part
        if fuser.device.type == "cuda":
            torch.cuda.synchronize()
        started = time.perf_counter()
        with torch.inference_mode():
            fuser._call(part)
        if fuser.device.type == "cuda":
            torch.cuda.synchronize()
        seconds += time.perf_counter() - started
    return seconds


def write_seconds(job: StagedJob, name: str) -> float:
    """Time of writing the fused samples once more, tile by tile, into an array like the product's, of that name."""
    fused = store.open_array(job.fused)
    copy = store.create_array(
        job.folder, name, shape=fused.shape, dtype=str(fused.dtype), chunks=fused.chunks,
        dims=("wavelength", "y", "x"), attributes={}, fill=-32768,
    ).with_config({"write_empty_chunks": True})  # fmt: skip
    seconds = 0.0
    for tile in job.plan:
        cube = store.read(fused, tile.core)
        started = time.perf_counter()
        store.write(copy, tile.core, cube)
        seconds += time.perf_counter() - started
    return seconds


def tiles_beside_their_bounds(network: str, edge: int, bands: int, core: int, rounds: int) -> dict[str, Any]:
    """Seconds of fusing all tiles, of their pure forward, and of writing the same bytes.

    The baselines of a round are measured before the fusion and after it, since a shared machine is now faster, now slower;
    what is told is the round of the middle ratio.
    """
    found = [_bounds_once(network, edge, bands, core) for _ in range(rounds)]
    middle = sorted(found, key=lambda row: row["over_forward"])[rounds // 2]
    spread = [round(row["over_forward"], 3) for row in found]
    return middle | {"over_write": sorted(row["over_write"] for row in found)[rounds // 2], "all_over_forward": spread}


def _bounds_once(network: str, edge: int, bands: int, core: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="hyperfuse-bench-") as folder:
        run = settings(Path(folder), network, edge=edge, bands=bands, core=core)
        with open_run(run) as held:
            job = stage_pair(held)
            forward_s = forward_seconds(job)
            started = time.perf_counter()
            fuse_tiles(job)
            seconds = time.perf_counter() - started
            forward_s = (forward_s + forward_seconds(job)) / 2
            told = json.loads((job.folder / "fused.json").read_text())
            write_s = (write_seconds(job, "copy.zarr") + write_seconds(job, "again.zarr")) / 2
            stored = sum(path.stat().st_size for path in job.fused.rglob("*") if path.is_file())
            return {
                "network": network, "edge_px": edge, "bands": bands, "core_px": core, "tiles": job.plan.n_tiles,
                "redundancy": round(job.plan.redundancy, 3), "seconds": seconds, "forward_s": forward_s, "write_s": write_s,
                "over_forward": seconds / forward_s, "over_write": seconds / write_s, "busy": told["device_busy"],
                "stored_mb": stored / 1e6,
            }  # fmt: skip


def tiles_on_workers(network: str, edge: int, bands: int, core: int, workers: int) -> dict[str, Any]:
    """Seconds of fusing all tiles on Dask workers of one thread each, which have loaded everything before."""
    from distributed import Client, LocalCluster

    with (
        tempfile.TemporaryDirectory(prefix="hyperfuse-bench-") as folder,
        LocalCluster(n_workers=workers, threads_per_worker=1, dashboard_address=None) as cluster,
        Client(cluster) as client,
    ):
        client.run(_one_thread)
        run = settings(Path(folder), network, edge=edge, bands=bands, core=core)
        with open_run(run.model_copy(update={"dask": cluster.scheduler_address})) as held:
            job = stage_pair(held)
            started = time.perf_counter()
            fuse_tiles(job)
            return {"network": network, "workers": workers, "seconds": time.perf_counter() - started}


def _one_thread() -> None:
    from hyperfuse.pipeline.fusion import tile_fuser  # noqa: F401 (loads what the first batch would)

    torch.set_num_threads(1)


def machine() -> str:
    """A name for this machine: its processors and its GPU."""
    model = platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file() and (found := re.search(r"model name\s*:\s*(.+)", cpuinfo.read_text())):
        model = found[1]
    gpu = f" {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    return re.sub(r"[^a-z0-9]+", "-", f"{os.cpu_count()} x {model}{gpu}".lower()).strip("-")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--networks",
        nargs="+",
        default=["csakd-student:1024", "hyfusion-s:512"],
        metavar="NAME:PX",
        help="networks, and the edge of the scene of each: a minute of work, so that beginnings do not count",
    )
    parser.add_argument("--bands", type=int, default=172)
    parser.add_argument("--cheap-edge", type=int, default=2048, metavar="PX", help="scene of the cheap method")
    parser.add_argument(
        "--core", type=int, default=128, metavar="PX", help="tile of the networks and peers, for several of them"
    )
    parser.add_argument("--sizes", type=int, nargs="+", default=[1024, 2048, 4096], metavar="PX")
    parser.add_argument("--size-bands", type=int, default=60, metavar="N", help="bands of these scenes")
    parser.add_argument(
        "--peers-edge",
        type=int,
        default=512,
        metavar="PX",
        help="scene of the peers, and twice the edge of the workers'",
    )
    parser.add_argument(
        "--rounds",
        type=int,
        default=3,
        metavar="N",
        help="times that all of a comparison take turns; the middle one counts",
    )
    parser.add_argument(
        "--parts", nargs="+", default=["network", "memory", "workers", "peers"], metavar="PART", help="default: all"
    )
    options = parser.parse_args()
    parts: dict[str, Callable[[], Any]] = {
        "network": lambda: [
            in_own_process(tiles_beside_their_bounds, name, edge, options.bands, core, options.rounds)
            for name, edge, core in (
                *((name, int(edge), options.core) for name, _, edge in (n.partition(":") for n in options.networks)),
                ("modulate", options.cheap_edge, 2 * options.core),
            )
        ],
        "memory": lambda: _sizes(options.sizes, options.size_bands),
        "workers": lambda: [
            in_own_process(
                tiles_on_workers, "csakd-student", options.peers_edge // 2, options.bands, options.core // 2, n
            )
            for n in (1, 2)
        ],
        "peers": lambda: compare_peers(
            "csakd-student", options.peers_edge, options.bands, options.core, options.rounds
        ),
    }
    record: dict[str, Any] = {"machine": machine(), "threads": torch.get_num_threads(), "torch": torch.__version__}
    for part in options.parts:
        record[part] = parts[part]()
        print(f"\n{part}")
        for row in record[part]:
            print("  " + "  ".join(f"{key} {_short(value)}" for key, value in row.items()))
    (ROOT / "benchmarks").mkdir(exist_ok=True)
    path = ROOT / "benchmarks" / f"{record['machine']}.json"
    kept = json.loads(path.read_text()) if path.is_file() else {}
    path.write_text(json.dumps(kept | record, indent=1) + "\n")
    print(f"\n{path.relative_to(ROOT)}")


def _sizes(sizes: list[int], bands: int) -> list[dict[str, Any]]:
    with tempfile.TemporaryDirectory(prefix="hyperfuse-bench-") as folder:
        rows = [measure(edge, bands, 4, "bicubic", Path(folder), formats="[zarr]") for edge in sizes]
    first = rows[0]
    return [
        row
        | {
            "memory_over_smallest": row["peak_mb"] / first["peak_mb"],
            "fuse_s_per_px_over_smallest": first["fuse_pixels_per_second"] / row["fuse_pixels_per_second"],
        }
        for row in rows
    ]


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    main()
