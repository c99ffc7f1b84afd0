"""Disks, and files that change behind one's back: E06, E07, E10, E11, X28, X29, and the staging folder."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.benchmarks.faults.commands import (
    N_TILES,
    called,
    ended,
    environment,
    forked,
    fuse_of,
    killed,
    require_same,
    staging_of,
    started,
    tiles_of,
)
from tests.benchmarks.faults.pairs import image, pair, refused, write
from tests.benchmarks.faults.table import NotHere, by_tests, experiment


@contextmanager
def small_disk(megabytes: float) -> Iterator[tuple[Path, list[str]]]:
    """A disk of its own in a namespace of its own: its path from here, and what to put before commands that shall see it at /mnt."""
    script = f"mount -t tmpfs -o size={int(megabytes * 1024)}k none /mnt && echo there && read -r end"
    holder = subprocess.Popen(
        ["unshare", "-Urm", "sh", "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert holder.stdout is not None
        if holder.stdout.readline().strip() != "there":
            raise NotHere("no user namespaces, in which a small disk could be mounted")
        enter = [
            "nsenter",
            "--user",
            "--mount",
            "--preserve-credentials",
            f"--target={holder.pid}",
            f"--wd={Path.cwd()}",
        ]
        yield Path(f"/proc/{holder.pid}/root/mnt"), enter
    finally:
        holder.kill()
        holder.communicate()


@experiment(
    "E06",
    "the disk fills up while tiles are fused (tmpfs of 12 MB)",
    "exit 6 with what is free, output absent; resumes once there is space",
)
def full_disk(folder: Path) -> str:
    with small_disk(12) as (disk, enter):
        output = Path("/mnt/p")
        process = started(fuse_of(output), before=enter)
        while not tiles_of(disk / "p"):
            assert process.poll() is None, ended(process).err[-1500:]
            time.sleep(0.005)
        process.send_signal(signal.SIGSTOP)
        ballast = disk / "ballast"
        with ballast.open("wb") as file:
            file.write(b"x" * (shutil.disk_usage(disk).free - 60_000))
        process.send_signal(signal.SIGCONT)
        told = ended(process).require(6, "the disk is full", "GB free")
        assert not (disk / "p").exists()
        before = tiles_of(disk / "p")
        ballast.unlink()
        called(fuse_of(output), before=enter).require(0, "resuming")
        require_same(disk / "p")
    return f"exit 6 ({told[:60]}…), {before} of {N_TILES} tiles kept, then published"


@experiment("E06b", "a disk that is sure to be too small (tmpfs of 0.5 MB)", "exit 6 before anything is written")
def too_small_a_disk(folder: Path) -> str:
    with small_disk(0.5) as (disk, enter):
        told = called(fuse_of(Path("/mnt/p")), before=enter).require(6, "needed")
        assert not list(disk.iterdir())
    return f"exit 6, {told[:90]}"


@experiment("E06c", "a file system that does not flush folders; one without `flock`", "the product all the same")
def odd_file_systems(folder: Path) -> str:
    for library in ("without_folder_flush", "without_locks"):
        (folder / library).mkdir()
        called(fuse_of(folder / library / "p"), env=environment(library)).require(0)
        require_same(folder / library / "p")
    return "published, samples equal"


@experiment(
    "E06d",
    "one in 300 calls to the disk of the job fails with EIO",
    "published, or exit 9 with a sentence; a rerun on a sound disk equals",
)
def failing_disk(folder: Path) -> str:
    output = folder / "disk" / "p"
    output.parent.mkdir()
    ends = []
    for seed in range(4):
        env = environment("failing_disk", FAILING_DISK=str(output.parent), FAILING_ONE_IN="300", FAILING_SEED=str(seed))
        end = called(fuse_of(output), env=env)
        ends.append(end.code)
        assert end.code in {0, 9}, f"exit {end.code}: {end.err[-1500:]}"
        if end.code:
            assert end.sentence
            assert not output.exists()
        else:
            require_same(output)
            shutil.rmtree(output)
    called(fuse_of(output)).require(0)
    require_same(output)
    return f"exits {ends}, then equal"


@experiment(
    "E07",
    "output's parent missing, output a file, output inside an input, folder read-only",
    "exit 3 before anything is read",
)
def impossible_outputs(folder: Path) -> str:
    hsi, msi = pair(folder)
    (folder / "file").write_text("x")
    inside = folder / "in"
    for output, words in (
        (folder / "no" / "p", "does not exist"), (folder / "file", "exists"), (hsi, "exists"), (Path("/proc/p"), "")
    ):  # fmt: skip
        forked(["fuse", str(hsi), str(msi), "--output", str(output)]).require(3, words)
    assert {path.name for path in inside.iterdir()} == {"hsi.tif", "msi.tif"}
    assert (folder / "file").read_text() == "x"
    return "exit 3 each, nothing written"


@experiment(
    "E10",
    "a GeoTIFF cut at 50 % and at 99.9 %, of 0 bytes, and with one bit flipped (deflate)",
    "exit 3 naming file and place",
)
def torn_inputs(folder: Path) -> str:
    whole, msi = pair(folder, compress="deflate")
    data = whole.read_bytes()
    for name, harmed in {
        "half": data[: len(data) // 2], "end": data[: int(len(data) * 0.999)], "empty": b"",
        "bit": data[: len(data) // 2] + bytes([data[len(data) // 2] ^ 16]) + data[len(data) // 2 + 1 :],
    }.items():  # fmt: skip
        here = folder / name
        (here / "in").mkdir(parents=True)
        (here / "in" / "hsi.tif").write_bytes(harmed)
        refused(here, 3, "hsi.tif", here / "in" / "hsi.tif", msi)
    return "exit 3 four times"


@experiment("E11", "a sparse GeoTIFF of which no block was written; an image that is all nodata", "exit 3")
def never_written(folder: Path) -> str:
    import numpy as np
    import rasterio

    _, msi = pair(folder)
    path = write(folder / "in" / "nodata.tif", "hsi", cube=np.full_like(image("hsi").cube, np.nan))
    refused(folder, 3, "nodata.tif", path, msi)
    sparse = folder / "in" / "sparse.tif"
    with rasterio.open(path) as like:
        profile, tags = like.profile, [like.tags(band) for band in like.indexes]
    with rasterio.open(sparse, "w", **(profile | {"sparse_ok": True})) as file:
        for band, told in enumerate(tags, start=1):
            file.update_tags(band, **told)
    refused(folder, 3, "sparse.tif", sparse, msi)
    return "exit 3 both"


@experiment(
    "X28",
    "records of finished tiles cut, of a wrong digest, and pickles",
    "counted as absent, fused again; no code run",
)
def poisoned_records(folder: Path) -> str:
    output = folder / "p"
    killed(fuse_of(output), lambda: tiles_of(output) >= 8)
    records = sorted(staging_of(output).glob("tiles/[!.]*.json"))
    marker = folder / "ran"
    records[0].write_bytes(records[0].read_bytes()[:40])
    record = json.loads(records[1].read_text())
    records[1].write_text(json.dumps(record | {"sha256": "0" * 64}))
    records[2].write_bytes(pickle.dumps(_Touch(str(marker))))
    called(fuse_of(output)).require(0, f"resuming: {len(records) - 3} of {N_TILES}")
    assert not marker.exists()
    require_same(output)
    return f"{len(records) - 3} of {len(records)} records believed, samples equal"


class _Touch:
    """Unpickled, it makes a file."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return os.mknod, (self.path,)


@experiment(
    "X29", "a published product: one bit flipped, a chunk deleted, a file added", "`verify` exits 3 naming the file"
)
def changed_product(folder: Path) -> str:
    output = folder / "p"
    called(fuse_of(output)).require(0)
    chunk = max(output.glob("p.zarr/reflectance/c/*/*/*"), key=lambda path: path.stat().st_size)
    sound = chunk.read_bytes()
    chunk.write_bytes(sound[:99] + bytes([sound[99] ^ 1]) + sound[100:])
    name = chunk.relative_to(output).as_posix()
    forked(["verify", str(output)]).require(3, name)
    chunk.unlink()
    forked(["verify", str(output)]).require(3, name)
    chunk.write_bytes(sound)
    (output / "extra.bin").write_bytes(b"x")
    forked(["verify", str(output)]).require(3, "extra.bin")
    (output / "extra.bin").unlink()
    forked(["verify", str(output)]).require(0)
    return f"exit 3 three times ({name}); 0 once it is whole again"


by_tests(
    "X29b", "a file of the staging folder lost, cut or changed between kill and resume", "made anew; same samples",
    "pipeline/job/test_seals.py",
)  # fmt: skip
by_tests("X29c", "`kill -9` at every step and system call of publishing", "output absent; the last run publishes",
    "pipeline/products/test_publish.py::test_a_kill_between_steps_leaves_nothing_half",
    "pipeline/products/test_publish.py::test_a_kill_at_every_system_call_leaves_nothing_half",
)  # fmt: skip
