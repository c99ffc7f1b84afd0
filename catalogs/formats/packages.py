"""A product as its operator packs it: a folder, a zip or a tar archive, read where it lies.

Members that an archive stores uncompressed are read in place. Compressed members cannot be read window by window: the
images among them are unpacked once per process into a temporary folder, under names of our own, with a bound on every
size. An archive that would write elsewhere, or unpack to something absurd, is refused as a whole and never repaired.
"""

from __future__ import annotations

import atexit
import fnmatch
import gzip
import os
import shutil
import stat
import struct
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import IO, Any, Literal, cast
from xml.etree.ElementTree import Element

from hyperfuse.catalogs.errors import InputRejected, OutOfResources
from hyperfuse.catalogs.formats.markup import parse_xml

MAX_MEMBERS = 20_000
"""Files of one product, at most."""
MAX_DEPTH = 6
"""Folders inside folders, at most: a SAFE folder has four."""
MAX_TEXT = 50 << 20
"""Bytes of a metadata file, at most."""
MAX_IMAGE = 64 << 30
"""Bytes of an image that is unpacked, at most."""
MAX_RATIO = 200
"""Bytes per compressed byte of a large member or a whole archive, at most; masks of zeros alone pack better."""
LARGE = 256 << 20
"""Members up to this many bytes may pack as well as they like."""

_MAX_NESTED = 2
"""Archives inside each other that are opened."""
_ARCHIVES = ("*.zip", "*.tar", "*.tar.gz", "*.tgz")
_PARTS = {
    ".xml",
    ".json",
    ".txt",
    ".tif",
    ".tiff",
    ".jp2",
    ".he5",
    ".h5",
    ".nc",
    ".bsq",
    ".bil",
    ".bip",
    ".img",
    ".hdr",
}
"""Endings of files that make a product."""

_DAMAGE = (OSError, EOFError, RuntimeError, ValueError, struct.error, zlib.error, zipfile.BadZipFile, tarfile.TarError)
"""What the libraries raise over an archive that is not what it says."""
Kind = Literal["folder", "zip", "tar", "tar.gz"]


@dataclass(frozen=True, kw_only=True)
class Member:
    """One file of a package."""

    name: str
    """Path inside the package, with slashes."""
    holder: Path
    """File on disk that holds it."""
    offset: int
    """First byte in `holder`; meaningless if packed."""
    size: int
    """Bytes, unpacked."""
    packed: bool
    """Compressed, so that it cannot be read in place."""
    bring: Callable[[], Path] | None = field(default=None, compare=False, repr=False)
    """Fetches the file from its server and gives its path; None where it lies here. Its size is known then only."""

    def here(self) -> Member:
        """The same member on this disk."""
        if self.bring is None:
            return self
        path = self.bring()
        return replace(self, holder=path, size=path.stat().st_size, bring=None)

    @property
    def base(self) -> str:
        """Name without folders."""
        return PurePosixPath(self.name).name

    @property
    def label(self) -> Path:
        """Name for messages: the path, in an archive as if that were a folder."""
        return self.holder if self.offset == 0 and not self.packed else self.holder / self.name


@dataclass(frozen=True, kw_only=True)
class Package:
    """A folder or archive and its files.

    Raises
    ------
    InputRejected
        By every method, if a member is damaged.
    """

    path: Path
    """Folder or archive."""
    kind: Kind
    """How it is packed."""
    members: tuple[Member, ...]
    """Its files, sorted by name."""

    def find(self, *patterns: str) -> list[Member]:
        """Members whose base name matches one of the shell patterns, whatever its case."""
        lowered = [pattern.lower() for pattern in patterns]
        return [m for m in self.members if any(fnmatch.fnmatchcase(m.base.lower(), p) for p in lowered)]

    def one(self, *patterns: str) -> Member:
        """The member that matches; refused if there is none or there are several."""
        found = self.find(*patterns)
        if len(found) != 1:
            told = ", ".join(m.name for m in found[:5]) or "none"
            raise InputRejected(
                f"{self.path}: {len(found)} files match {' or '.join(patterns)} ({told}), expected one; "
                "fetch the product again, or name the folder of one product"
            )
        return found[0]

    def read(self, member: Member, *, limit: int = MAX_TEXT) -> bytes:
        """Content of a metadata file, at most `limit` bytes."""
        member = member.here()
        if member.size > limit:
            raise InputRejected(f"{member.label}: has {member.size} bytes, expected at most {limit} of metadata")
        return self.head(member, member.size)

    def head(self, member: Member, size: int) -> bytes:
        """The first bytes of a member."""
        member = member.here()
        try:
            if self.kind == "tar.gz" and member.size <= MAX_TEXT:
                return _tar_text(self.path, member.name, self.path.stat().st_mtime_ns)[:size]
            with self.open(member) as file:
                return file.read(min(size, member.size))
        except _DAMAGE as error:
            raise InputRejected(f"{member.label}: cannot be read ({error}); fetch the product again") from error

    def xml(self, member: Member) -> Element:
        """Root element of an XML file; entities and document types are refused."""
        return parse_xml(self.read(member), member.label)

    def in_place(self, members: Iterable[Member], *, whole_files: bool = False) -> dict[str, Member]:
        """The same members by name, as files that can be read window by window: compressed ones are unpacked.

        With `whole_files` all members of an archive are, for libraries that read nothing else.
        """
        wanted = [member.here() for member in members]
        packed = [m for m in wanted if m.packed or (whole_files and self.kind != "folder")]
        there = _unpack(self, packed) if packed else {}
        return {m.name: there.get(m.name, m) for m in wanted}

    def files(self, members: Iterable[Member]) -> list[Path]:
        """Files whose bytes stand for some members: the archive, or the members themselves."""
        return [m.here().holder for m in members] if self.kind == "folder" else [self.path]

    @contextmanager
    def open(self, member: Member) -> Iterator[IO[bytes]]:
        """A member as a stream of bytes, unpacked; one stored in an archive goes on beyond its own end."""
        member = member.here()
        if not member.packed:
            with member.holder.open("rb") as plain:
                plain.seek(member.offset)
                yield plain
        elif self.kind == "zip":
            with zipfile.ZipFile(self.path) as archive, archive.open(member.name) as unpacked:
                yield unpacked
        else:
            with closing(_bounded_tar(self.path)) as tar:
                yield cast("IO[bytes]", tar.extractfile(member.name))


_SET_OUT: dict[str, Package] = {}
"""Packages of this process whose files lie on servers, by the path of their metadata."""


def set_out(uri: str, package: Package) -> None:
    """Let a package stand for a path on this disk: files of it are fetched when a reader looks into them."""
    _SET_OUT[uri] = package


def open_package(uri: str) -> Package | None:
    """The package at an address: a folder, an archive, or the folder of a metadata file; None for anything else.

    Raises
    ------
    InputRejected
        If it is an archive that is damaged, hostile or absurd.
    """
    made = _opened(uri)
    for _ in range(_MAX_NESTED):
        if made is None or (inner := _archive_inside(made)) is None:
            break
        made = _opened(str(made.in_place([inner], whole_files=True)[inner.name].holder))
    return made


def _archive_inside(package: Package) -> Member | None:
    """The archive in a package that holds nothing else that could be a product: portals pack a product twice."""
    archives = package.find(*_ARCHIVES)
    is_wrapping = len(archives) == 1 and not any(
        PurePosixPath(m.name).suffix.lower() in _PARTS for m in package.members if m is not archives[0]
    )
    return archives[0] if is_wrapping else None


def _opened(uri: str) -> Package | None:
    path = Path(uri)
    if path.is_dir() or uri in _SET_OUT:
        return _SET_OUT.get(uri) or _folder(path)
    if not path.is_file():
        return None
    with path.open("rb") as file:
        start = file.read(512)
    if start[:4] in (b"PK\3\4", b"PK\5\6"):
        return _archive(path, "zip", path.stat().st_mtime_ns)
    if start[:2] == b"\x1f\x8b" and path.name.lower().endswith((".tar.gz", ".tgz")):
        return _archive(path, "tar.gz", path.stat().st_mtime_ns)
    if start[257:262] == b"ustar":
        return _archive(path, "tar", path.stat().st_mtime_ns)
    is_text = start[:1] in (b"<", b"{") or start[:3] == b"\xef\xbb\xbf" or start.startswith(b"GROUP")
    return _folder(path.parent) if is_text else None


def _folder(path: Path) -> Package | None:
    """Files below a folder; None if there are so many that it is no product."""
    members: list[Member] = []
    for folder, inner, names in os.walk(path):
        if len(Path(folder).relative_to(path).parts) + 1 >= MAX_DEPTH:
            inner.clear()
        for name in names:
            if is_debris(name):
                continue
            file = Path(folder) / name
            try:
                size = file.stat().st_size
            except OSError:
                continue  # a dangling link is no file
            relative = file.relative_to(path).as_posix()
            members.append(Member(name=relative, holder=file, offset=0, size=size, packed=False))
        if len(members) > MAX_MEMBERS:
            return None
    return Package(path=path, kind="folder", members=tuple(sorted(members, key=lambda m: m.name)))


def is_debris(name: str) -> bool:
    """Whether a file is one that macOS leaves on foreign disks and in archives: `._NAME` begins with no data of NAME."""
    parts = PurePosixPath(name).parts
    return bool(parts) and (parts[-1].startswith("._") or parts[-1] == ".DS_Store" or parts[0] == "__MACOSX")


@lru_cache(maxsize=64)
def _archive(path: Path, kind: Kind, _modified_ns: int) -> Package:
    try:
        members = _zip_members(path) if kind == "zip" else _tar_members(path, kind)
    except _DAMAGE as error:
        raise InputRejected(f"{path}: not a whole {kind} archive ({error}); fetch it again") from error
    for member in members:
        _refuse_name(path, member.name)
    members = [m for m in members if not is_debris(m.name)]
    names = [m.name for m in members]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise InputRejected(f"{path}: holds {twice} twice, expected one file of each name; fetch it again")
    return Package(path=path, kind=kind, members=tuple(sorted(members, key=lambda m: m.name)))


def _zip_members(path: Path) -> list[Member]:
    size = path.stat().st_size
    with zipfile.ZipFile(path) as archive:
        infos = archive.infolist()
        _refuse_number(path, len(infos))
        members = []
        for info in infos:
            if info.is_dir():
                continue
            if stat.S_ISLNK(info.external_attr >> 16):
                raise InputRejected(f"{path}: {info.filename} is a link, expected files only; unpack it yourself")
            if info.flag_bits & 1:
                raise InputRejected(f"{path}: {info.filename} is encrypted; unpack it yourself")
            if info.file_size > max(LARGE, MAX_RATIO * info.compress_size):
                raise _bomb(path, info.filename)
            packed = info.compress_type != zipfile.ZIP_STORED
            if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise InputRejected(f"{path}: {info.filename} is not compressed by deflate; unpack it yourself")
            if not packed and info.file_size != info.compress_size:
                raise InputRejected(f"{path}: {info.filename} has two sizes, expected one; fetch it again")
            offset = 0 if packed else _zip_data_offset(archive, info)
            if not packed and offset + info.file_size > size:
                raise InputRejected(f"{path}: {info.filename} lies beyond its end; the archive is truncated")
            members.append(
                Member(name=info.filename, holder=path, offset=offset, size=info.file_size, packed=packed)
            )  # fmt: skip
    return members


def _zip_data_offset(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> int:
    """First byte of a stored member: its local header may be longer than the directory's record of it."""
    file = cast("IO[bytes]", archive.fp)
    file.seek(info.header_offset)
    header = file.read(30)
    if header[:4] != b"PK\3\4":
        raise zipfile.BadZipFile(f"no file at {info.header_offset}, where {info.filename} should begin")
    name_length, extra_length = struct.unpack("<HH", header[26:30])
    return info.header_offset + 30 + int(name_length) + int(extra_length)


def _tar_members(path: Path, kind: Kind) -> list[Member]:
    members = []
    with closing(_bounded_tar(path) if kind == "tar.gz" else tarfile.open(path, "r:")) as tar:
        for number, info in enumerate(tar, start=1):
            _refuse_number(path, number)
            if info.isdir():
                continue
            if not info.isreg() or info.issparse():
                raise InputRejected(
                    f"{path}: {info.name} is a link, a device or a sparse file, expected plain files; unpack it yourself"
                )
            packed = kind == "tar.gz"
            offset = 0 if packed else info.offset_data
            if not packed and offset + info.size > path.stat().st_size:
                raise InputRejected(f"{path}: {info.name} lies beyond its end; the archive is truncated")
            members.append(Member(name=info.name, holder=path, offset=offset, size=info.size, packed=packed))
    return members


@lru_cache(maxsize=8)
def _tar_text(path: Path, name: str, _modified_ns: int) -> bytes:
    """A metadata file of a compressed tar, kept: each look into such an archive unpacks all that lies before it."""
    with closing(_bounded_tar(path)) as tar:
        return cast("IO[bytes]", tar.extractfile(name)).read()


class _BoundedGzip(gzip.GzipFile):
    """A gzip stream that stops where no product would still go on."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, "rb")
        self._label = path
        self._limit = max(LARGE, MAX_RATIO * path.stat().st_size)

    def read(self, size: int | None = -1) -> bytes:
        content = super().read(size)
        if self.tell() > self._limit:
            raise _bomb(self._label, "it")
        return content

    def seek(self, offset: int, whence: int = 0) -> int:
        # A seek forward unpacks all that lies between.
        if whence == 0 and offset > self._limit:
            raise _bomb(self._label, "it")
        return super().seek(offset, whence)


def _bounded_tar(path: Path) -> tarfile.TarFile:
    return tarfile.open(fileobj=_BoundedGzip(path), mode="r:")


def _unpack(package: Package, members: list[Member]) -> dict[str, Member]:
    """Files on disk with the content of compressed members; unpacked once per process, gone when it ends."""
    folder = _temporary_folder(package.path, package.path.stat().st_mtime_ns)
    # Numbered by place in the package: a name from an archive never becomes a path.
    places = {m.name: folder / f"{package.members.index(m):05d}{PurePosixPath(m.name).suffix[:8]}" for m in members}
    missing = [m for m in members if not places[m.name].is_file()]
    needed, free = sum(m.size for m in missing), shutil.disk_usage(folder).free
    if max((m.size for m in missing), default=0) > MAX_IMAGE:
        raise InputRejected(f"{package.path}: unpacks to more than {MAX_IMAGE >> 30} GiB a file; unpack it yourself")
    if needed > free:
        raise OutOfResources(
            f"{package.path}: its compressed images need {needed >> 20} MiB in {folder.parent}, {free >> 20} MiB are "
            "free; make room, set TMPDIR to a larger disk, or unpack the archive yourself"
        )
    try:
        for member, source in _streams(package, missing):
            place = places[member.name]
            part = place.with_suffix(".part")
            with part.open("wb") as target:
                _copy(source, target, member)
            part.rename(place)
    except _DAMAGE as error:
        raise InputRejected(f"{package.path}: cannot be unpacked ({error}); fetch the product again") from error
    return {
        m.name: Member(name=m.name, holder=places[m.name], offset=0, size=m.size, packed=False) for m in members
    }  # fmt: skip


def _streams(package: Package, members: list[Member]) -> Iterator[tuple[Member, IO[bytes]]]:
    """Members and their content; a compressed tar is gone through once, for all of them."""
    if package.kind == "tar.gz" and members:
        wanted = {m.name: m for m in members}
        with closing(_bounded_tar(package.path)) as tar:
            for info in tar:
                if info.name in wanted:
                    yield wanted[info.name], cast("IO[bytes]", tar.extractfile(info))
        return
    for member in members:
        with package.open(member) as source:
            yield member, source


def _copy(source: IO[bytes], target: IO[bytes], member: Member) -> None:
    """Copy what the directory declares, and not a byte more."""
    left = member.size
    while left and (piece := source.read(min(left, 1 << 20))):
        target.write(piece)
        left -= len(piece)
    if left or (member.packed and source.read(1)):
        raise EOFError(f"{member.name} has not the {member.size} bytes that the archive declares")


@lru_cache(maxsize=64)
def _temporary_folder(path: Path, _modified_ns: int) -> Path:
    folder = Path(tempfile.mkdtemp(prefix=f"hyperfuse-{path.name[:20]}-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def _refuse_name(path: Path, name: str) -> None:
    parts = PurePosixPath(name).parts
    if not name or name.startswith("/") or ".." in parts or "\\" in name or "\0" in name or ":" in (parts or ("",))[0]:
        raise InputRejected(f"{path}: holds {name!r}, a name that leaves the archive; fetch it from its operator")
    if len(parts) > 2 * MAX_DEPTH:
        raise InputRejected(f"{path}: {name!r} lies {len(parts)} folders deep, expected at most {2 * MAX_DEPTH}")


def _refuse_number(path: Path, number: int) -> None:
    if number > MAX_MEMBERS:
        raise InputRejected(f"{path}: holds more than {MAX_MEMBERS} files, expected one product; unpack what you need")


def _bomb(path: Path, name: str) -> Any:
    return InputRejected(
        f"{path}: {name} unpacks to more than {MAX_RATIO} times its size, which no image does; unpack it yourself"
    )
