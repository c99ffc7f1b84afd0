"""Where the workers of a job find what they need and leave what they made: the job's place.

Without a store the place is the job's folder itself, which all workers see under one path, and nothing is carried. With
one it is a folder in the store, any address that fsspec understands (`s3://`, `file://`, `memory://` ...), and files go
there and back:

    coordinator                                   store                                 worker
    offer     all but tiles, listed last    ->    contents.json, job.json, stage/ ...   ->  opened: into its mirror,
    collect   verified, records last        <-    product/, tiles/, delivered/          <-  and back, with a note last

A mirror holds the records and weights, and the chunks of the staged images that its tiles look at; so whatever fuses
tiles works on a folder and knows nothing of stores. One file holds back the others on each way: without `contents.json`
no worker begins, and what no delivery note lists was never made.
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import shutil
import socket
import tempfile
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from queue import Empty, SimpleQueue
from typing import Any, TypeVar

import fsspec
from fsspec.callbacks import Callback

from hyperfuse.catalogs.errors import Busy, HyperFuseError, InputRejected, OutOfResources, UsageError
from hyperfuse.catalogs.formats.files import file_sha256
from hyperfuse.catalogs.locks import locked
from hyperfuse.pipeline.fusion.windows import touched
from hyperfuse.pipeline.job import store
from hyperfuse.pipeline.job.folder import STAGED_FILES, Job, StagedJob
from hyperfuse.pipeline.job.records import JOB_SCHEMA
from hyperfuse.pipeline.job.staging_folder import (
    AREA_SCHEMA,
    identity,
    made_by_another,
    may_be_removed,
    staging_folders,
)

log = logging.getLogger(__name__)

Indices = Sequence[tuple[int, int]]
"""Row and column of some tiles."""
_CONTENTS = "contents.json"
_DELIVERED = "delivered"
_MADE = ("product", "tiles")
"""Folders of a job that tiles write into."""
STORE_SECONDS = 180.0
"""After which a store that moves no file counts as lost."""
_LOOK_SECONDS = 0.5
T = TypeVar("T")


class StoreLost(OutOfResources):
    """A store cannot be read or written, or does not answer."""


class Heard(Callback):  # type: ignore[misc] # fsspec is not typed
    """When a store was heard of last: fsspec tells it of every file, and of parts of large ones."""

    def __init__(self) -> None:
        super().__init__()
        self._at = time.monotonic()

    @property
    def silent_s(self) -> float:
        """Seconds since then."""
        return time.monotonic() - self._at

    def relative_update(self, inc: int = 1) -> None:
        """Called by fsspec."""
        self._at = time.monotonic()
        super().relative_update(inc)

    def branched(self, *_: object, **__: object) -> Callback:
        """Called by fsspec for the parts of one file."""
        return self


@dataclass(frozen=True)
class Place(ABC):
    """Where the workers of one job meet; small, and sent to them with every task."""

    address: str
    """Path or URL of the place."""

    @abstractmethod
    def offer(self, job: StagedJob) -> None:
        """See that workers find all they need; called once the scenes are staged, and again when resuming."""

    @abstractmethod
    def collect(self, job: StagedJob, tiles: Indices | None = None) -> None:
        """Take finished tiles into the job's folder: those of one batch, or all that ever arrived."""

    @abstractmethod
    def opened(self, tiles: Indices) -> AbstractContextManager[Path]:
        """On a worker: a folder of the job in which these tiles can be fused; what they leave there is handed over.

        Raises
        ------
        OutOfResources
            If this worker cannot see the place.
        """

    @abstractmethod
    def remove(self) -> None:
        """Remove what lies at the place; the job's own folder stays."""

    def filesystem(self) -> tuple[Any, str]:
        """File system of the address, and the path in it.

        Raises
        ------
        UsageError
            If nothing here understands the address.
        """
        # Only files want folders made for them; other file systems pass the word on to a client that does not know it.
        local = {"auto_mkdir": True} if self.address.startswith(("/", "file:")) else {}
        try:
            # Other processes write at the same place: a listing that is remembered is a listing that is wrong.
            return fsspec.url_to_fs(self.address, use_listings_cache=False, **local)  # type: ignore[no-any-return]
        except (ImportError, ValueError) as error:
            raise UsageError(
                f"store {self.address!r} cannot be used ({error}); give a path, s3://, or file://"
            ) from error


@dataclass(frozen=True)
class SharedFolder(Place):
    """The job's own folder, seen by all workers."""

    def offer(self, job: StagedJob) -> None:
        """Nothing to do."""

    def collect(self, job: StagedJob, tiles: Indices | None = None) -> None:
        """Nothing to do."""

    @contextmanager
    def opened(self, tiles: Indices) -> Iterator[Path]:  # noqa: ARG002
        """The folder."""
        folder = Path(self.address)
        if not (folder / "job.json").is_file():
            raise OutOfResources(
                f"the worker on {socket.gethostname()} does not see {folder}; share that folder with all workers, or name a "
                "store that they can reach with --set store=URL"
            )
        yield folder

    def remove(self) -> None:
        """Nothing to do: it goes with the job."""


@dataclass(frozen=True)
class Depot(Place):
    """A folder in a store that coordinator and workers reach, and nothing else that they share."""

    def offer(self, job: StagedJob) -> None:
        """Copy what is not there yet, the list of it last."""
        files = {path.relative_to(job.folder).as_posix(): path for path in sorted(job.folder.rglob("*"))}
        sizes = {name: path.stat().st_size for name, path in files.items() if path.is_file() and _is_offered(name, job)}

        def put(fs: Any, root: str, heard: Heard) -> None:
            there = {path.removeprefix(f"{root}/"): entry["size"] for path, entry in _found(fs, root).items()}
            # Settings that do not decide the content may have changed since; a record of the same size may be another.
            missing = [name for name, size in sizes.items() if there.get(name) != size or "/" not in name]
            sources, targets = [str(job.folder / name) for name in missing], [f"{root}/{name}" for name in missing]
            fs.put(sources, targets, callback=heard)
            fs.pipe_file(f"{root}/{_CONTENTS}", json.dumps(sizes).encode())

        self._ask(put)

    def collect(self, job: StagedJob, tiles: Indices | None = None) -> None:
        """Download, compare with the note, and put in place: samples first, the records that vouch for them last."""
        incoming = job.folder / "incoming"

        def get(fs: Any, root: str, heard: Heard) -> None:
            notes = [f"{root}/{_note(tiles)}"] if tiles is not None else sorted(_found(fs, f"{root}/{_DELIVERED}"))
            # What is recorded here needs no second look, unless it was just made again because it was found damaged.
            known = {f"tiles/{path.name}" for path in job.ledger.folder.glob("*.json")} if tiles is None else set()
            for note in notes:
                digests = _read_note(fs.cat_file(note))
                if known.issuperset(name for name in digests if name.startswith("tiles/")):
                    continue
                heard.relative_update()
                sources, targets = [f"{root}/{name}" for name in digests], [str(incoming / name) for name in digests]
                fs.get(sources, targets, callback=heard)
                if any(file_sha256(incoming / name) != digest for name, digest in digests.items()):
                    log.warning("%s: does not hold what its note says; its tiles count as not done", note)
                    continue
                for name in sorted(digests):  # product before tiles
                    _move(incoming, job.folder, name)
            shutil.rmtree(incoming, ignore_errors=True)

        self._ask(get)

    @contextmanager
    def opened(self, tiles: Indices) -> Iterator[Path]:
        """The mirror of this process with all that the tiles look at; one batch at a time, whatever the worker's threads."""
        with _mirroring:
            folder = _mirror(self.address)
            try:
                self._fetch(folder, tiles)
                yield folder
                self._deliver(folder, tiles)
            except StoreLost:
                forget_mirrors()  # what comes late comes to nobody
                raise
            finally:
                for name in list(_made(folder)):
                    (folder / name).unlink()

    def remove(self) -> None:
        """Delete the folder in the store; what cannot be deleted now is only litter."""

        def rm(fs: Any, root: str, _: Heard) -> None:
            if fs.exists(root):
                fs.rm(root, recursive=True)

        try:
            self._ask(rm)
        except OutOfResources as error:
            log.warning("%s", error)

    def _fetch(self, folder: Path, tiles: Indices) -> None:
        def get(fs: Any, root: str, heard: Heard) -> None:
            sizes: dict[str, int] = json.loads(fs.cat_file(f"{root}/{_CONTENTS}"))
            self._download(folder, [name for name in sizes if not _is_staged_chunk(name)], sizes, heard)
            self._download(folder, _staged_chunks(StagedJob.load(folder), tiles, sizes), sizes, heard)

        self._ask(get)

    def _deliver(self, folder: Path, tiles: Indices) -> None:
        made = list(_made(folder))

        def put(fs: Any, root: str, heard: Heard) -> None:
            fs.put([str(folder / name) for name in made], [f"{root}/{name}" for name in made], callback=heard)
            digests = {name: file_sha256(folder / name) for name in made}
            fs.pipe_file(f"{root}/{_note(tiles)}", json.dumps(digests).encode())

        self._ask(put)

    def _download(self, folder: Path, names: list[str], sizes: dict[str, int], heard: Heard) -> None:
        fs, root = self.filesystem()
        wanted = [name for name in names if _size(folder / name) != sizes[name]]
        if not wanted:
            return
        arriving = folder / "arriving"
        sources, targets = [f"{root}/{name}" for name in wanted], [str(arriving / name) for name in wanted]
        fs.get(sources, targets, callback=heard)
        for name in wanted:
            if _size(arriving / name) != sizes[name]:
                raise OutOfResources(f"{root}/{name}: is not the file that the run offered; run again")
            _move(arriving, folder, name)

    def _ask(self, work: Callable[[Any, str, Heard], T]) -> T:
        """Do something with the store, in a thread that is left alone when it does not come back; what goes wrong is one sentence.

        Clients of stores have timeouts and repetitions of their own, which add up to hours.

        Raises
        ------
        StoreLost
        """
        (fs, root), heard = self.filesystem(), Heard()
        ended: SimpleQueue[tuple[list[T], Exception | None]] = SimpleQueue()

        def go() -> None:
            try:
                ended.put(([work(fs, root, heard)], None))
            except Exception as error:  # noqa: BLE001 (raised below, by who waits)
                ended.put(([], error))

        threading.Thread(target=go, name="store", daemon=True).start()
        while True:
            try:
                result, error = ended.get(timeout=_LOOK_SECONDS)
                break
            except Empty:
                if heard.silent_s > STORE_SECONDS:
                    raise StoreLost(
                        f"{self.address}: the store has not answered for {STORE_SECONDS:g} s; finished tiles are kept: see that it "
                        "runs, and run again to resume"
                    ) from None
        if error is None:
            return result[0]
        if isinstance(error, HyperFuseError):
            raise error
        # Stores raise what their client libraries do.
        if isinstance(error, OSError) and error.errno in {errno.ENOSPC, errno.EDQUOT}:
            raise error
        raise StoreLost(
            f"{self.address}: the store cannot be read or written ({type(error).__name__}: {error}); check its address and "
            "your access to it, and run again to resume"
        ) from error


def place_of(job: Job) -> Place:
    """The place of a job: in the store of its settings, otherwise its own folder."""
    if job.config.store is None:
        return SharedFolder(str(job.folder.resolve()))
    base = job.config.store if "://" in job.config.store else f"file://{Path(job.config.store).absolute()}"
    return Depot(f"{base.rstrip('/')}/{job.name}.{job.record.samples[:12]}")


def drop_abandoned(output: Path, keep: Path | None = None) -> None:
    """Remove the staging folders of a product and their places, unless a process still holds them or they are not known for ours.

    Parameters
    ----------
    output : Path
        Product folder that they were made for.
    keep : Path, optional
        The staging folder of the run that asks.
    """
    for other in staging_folders(output):
        if other == keep:
            continue
        with suppress(Busy, InputRejected), locked(other):
            if not may_be_removed(other):
                log.warning("%s: is left as it is, for no record in it tells a job of that name; remove it", other)
                continue
            found = identity(other)
            if found is None or found.schema in {JOB_SCHEMA, AREA_SCHEMA}:
                log.info("removing %s, left by a run with other settings", other.name)
            else:
                log.warning("removing %s, %s", other.name, made_by_another(found, JOB_SCHEMA))
            with suppress(OSError, ValueError, InputRejected):  # killed before it had a record, or of another version
                place_of(Job.load(other)).remove()
            shutil.rmtree(other, ignore_errors=True)


_mirrors: dict[str, Path] = {}
_mirroring = threading.Lock()


def _mirror(address: str) -> Path:
    """The folder of this process for a place; that of another place goes, for workers outlive jobs."""
    if address not in _mirrors:
        forget_mirrors()
        _mirrors[address] = Path(tempfile.mkdtemp(prefix="hyperfuse-", dir=_scratch()))
    return _mirrors[address]


def forget_mirrors() -> None:
    """Remove what this process has mirrored."""
    for folder in _mirrors.values():
        shutil.rmtree(folder, ignore_errors=True)
    _mirrors.clear()


def _scratch() -> str | None:
    """The local folder of the Dask worker, which Dask clears even after workers that were killed; elsewhere the system's."""
    from distributed import get_worker  # noqa: PLC0415 (a second that only clusters need)

    try:
        return str(get_worker().local_directory)
    except ValueError:
        return None


def _is_offered(name: str, job: StagedJob) -> bool:
    """Whether workers need a file of the job's folder: all but what tiles make, and of that the product's metadata."""
    first, hidden = PurePosixPath(name).parts[0], PurePosixPath(name).name.startswith(".")
    if first == "product":
        return name == (job.fused / "zarr.json").relative_to(job.folder).as_posix()
    return first not in {"tiles", "incoming", "running", "release", "writing", "lock", STAGED_FILES} and not hidden


def _is_staged_chunk(name: str) -> bool:
    """Whether a file is a chunk of a staged array, of which a worker needs only some."""
    parts = PurePosixPath(name).parts
    return parts[0] == "stage" and len(parts) > 3 and parts[2] == "c"


def _staged_chunks(job: StagedJob, tiles: Indices, sizes: dict[str, int]) -> list[str]:
    """Chunks of the staged arrays under what the tiles read; a chunk that is all holes was never written."""
    boxes = [touched(job, job.plan.tile(row, col)) for row, col in tiles]
    wanted: set[str] = set()
    for folder in (job.folder / "stage").iterdir():
        array = store.open_array(folder)
        for box in (named[folder.stem] for named in boxes):
            wanted.update(path.relative_to(job.folder).as_posix() for path in store.chunk_paths(folder, array, box))
    return sorted(wanted & sizes.keys())


def _made(folder: Path) -> Iterator[str]:
    """Files that tiles wrote into a mirror: chunks and records."""
    for path in sorted(path for first in _MADE for path in (folder / first).rglob("*") if path.is_file()):
        if path.name != "zarr.json" and not path.name.startswith("."):
            yield path.relative_to(folder).as_posix()


def _note(tiles: Indices) -> str:
    """Name of the note of a batch."""
    return f"{_DELIVERED}/{hashlib.sha256(json.dumps(list(tiles)).encode()).hexdigest()[:16]}.json"


def _read_note(text: bytes) -> dict[str, str]:
    """Digests by name; a note that was cut off lists nothing, and a name that leads out of the job's folder is none of ours."""
    try:
        digests = {str(name): str(digest) for name, digest in json.loads(text).items()}
    except (ValueError, AttributeError):
        return {}
    inside = all((parts := name.split("/"))[0] in _MADE and ".." not in parts for name in digests)
    return digests if inside else {}


def _found(fs: Any, root: str) -> dict[str, Any]:
    """All files under a folder by path, none if there is no such folder."""
    try:
        return dict(fs.find(root, detail=True))
    except FileNotFoundError:
        return {}


def _size(path: Path) -> int | None:
    return path.stat().st_size if path.is_file() else None


def _move(source: Path, target: Path, name: str) -> None:
    (target / name).parent.mkdir(parents=True, exist_ok=True)
    (source / name).replace(target / name)
