"""From a finished mosaic to a product: built aside, read back, and put in place by one rename.

A product folder is absent or complete, whatever dies when:

    build    files are written inside the staging folder; everything can be written again
    check    every format is read back as a stranger would
    seal     RO-Crate, manifest.json (SHA-256 of every file), then the STAC item, which holds the manifest's checksum
    sync     files and folders reach the disk
    rename   one system call that refuses an existing target; the staging folder goes after it

With `publish.replace` a product that stands there already is exchanged with its new version by one system call instead:
the path holds the old version or the new one, whole, at every moment. A product that is open keeps its open files; one
that is opened file by file, as Zarr is, has to be opened again.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from hyperfuse.catalogs.errors import AlreadyPublished, InputRejected
from hyperfuse.catalogs.formats.files import file_sha256, write_atomic
from hyperfuse.catalogs.times import rfc3339
from hyperfuse.pipeline.job import store
from hyperfuse.pipeline.job.encoding import WORKING_FORMAT
from hyperfuse.pipeline.job.folder import Job, StagedJob
from hyperfuse.pipeline.job.product_files import CRATE, FLAGS, MANIFEST, PROV, PROVENANCE, QA, REPORT, THUMBNAIL
from hyperfuse.pipeline.products.commit import files_of, put_in_place
from hyperfuse.pipeline.products.draft import Asset, BadProduct, Draft
from hyperfuse.pipeline.products.flags import write_flags
from hyperfuse.pipeline.products.product import Product
from hyperfuse.pipeline.products.prov_rocrate import crate, prov_document
from hyperfuse.pipeline.products.thumbnail import thumbnail
from hyperfuse.pipeline.products.writers import writer
from hyperfuse.pipeline.products.writers.stac import item, multihash
from hyperfuse.pipeline.progress import Progress, Steps, silent
from hyperfuse.pipeline.registration.report import FIGURE, TABLE
from hyperfuse.pipeline.stage_times import stage_times, timed

log = logging.getLogger(__name__)

SCHEMA = "hyperfuse-manifest/1"
SIDE_FILES = ("*.aux.xml", "*.qmd", ".DS_Store", "Thumbs.db")
"""Names of files that viewers leave beside what they show: statistics of GDAL and QGIS, metadata of QGIS, icons."""


def plain_asset(key: str, href: str, media_type: str, title: str, role: str) -> Asset:
    """An asset of one role without further fields."""
    return Asset(key=key, href=href, media_type=media_type, title=title, roles=(role,))


COMMON_ASSETS = (
    plain_asset("thumbnail", THUMBNAIL, "image/png", "True color, or the spectrum in three bands", "thumbnail"),
    plain_asset("provenance", PROVENANCE, "application/json", "Inputs, settings, software and steps", "metadata"),
)
"""Files of every product, beside its cube."""
_RECORDS = (
    plain_asset("prov", PROV, "application/json", "The same as W3C PROV-JSON", "metadata"),
    plain_asset(
        "quality-flags", FLAGS, "image/tiff; application=geotiff", "Bits that tell of single pixels", "metadata"
    ),
    plain_asset("tie-points", TABLE, "application/geo+json", "Tie points of the registration", "metadata"),
    plain_asset("registration", FIGURE, "image/png", "Tie points of the registration over the HSI", "overview"),
    plain_asset("qa", QA, "application/json", "Scores, gates and their definitions", "metadata"),
    plain_asset("report", REPORT, "text/html", "Report to look at in any browser", "overview"),
)
"""Files of a fused product, as far as they were made."""
_SEALED = plain_asset("manifest", MANIFEST, "application/json", "Size and SHA-256 of every file", "metadata")


def publish(draft: Draft, *, progress: Progress = silent) -> Product:
    """Write every format of a finished mosaic, check it, and put the product in place.

    Parameters
    ----------
    draft : Draft
        After an interruption the same job may be published again.
    progress : callable, optional

    Raises
    ------
    ExpectedSkip
        If the product exists already.
    InputRejected
        If something else is where the product should go, or there is no folder to put it in.
    BadProduct
        If a format does not read back as it was written.
    """
    job = draft.job
    if _is_published(job):
        # An earlier run died between the rename and the last clean-up.
        _discard(job.folder)
        return Product.load(job.config.output)
    require_free(job)
    formats = [name for name in job.config.publish.formats if name != "stac"]
    _sweep(job)
    step = Steps(progress, "publish", 2 * len(formats) + 3)
    assets: list[Asset] = []
    cube = draft.cube
    for name in formats:
        with timed(job.folder, f"write {name}"):
            assets += writer(name).write(cube)
        step()
    root = _product_root(job)
    record = draft.provenance.model_copy(update={"stages": tuple(stage_times(job.folder))}).model_dump(mode="json")
    write_atomic(root / PROVENANCE, json.dumps(record, indent=1, allow_nan=False))
    write_atomic(root / PROV, json.dumps(prov_document(draft.provenance), indent=1, allow_nan=False))
    for name in formats:
        writer(name).check(root, draft.provenance.product)
        step()
    thumbnail(job, root / THUMBNAIL)
    write_flags(job, root)
    for name in (TABLE, FIGURE, QA, REPORT):
        if (job.folder / name).is_file():
            shutil.copyfile(job.folder / name, root / name)
    step()
    _seal(draft, root, assets)
    step()
    put_in_place(root, job.config.output, aside=job.folder / "replaced" if job.config.publish.replace else None)
    _discard(job.folder)
    step()
    return Product.load(job.config.output)


def require_free(job: Job) -> None:
    """Refuse a target that exists or cannot hold a product; `publish` refuses too, but only after the work is done.

    Parameters
    ----------
    job : Job

    Raises
    ------
    ExpectedSkip
        If this very product is there.
    InputRejected
        If anything else is there that may not be replaced, the parent folder is missing, or the name is that of a file of
        every product.
    """
    require_vacant(job.config.output, job.record.key, replaceable=job.config.publish.replace)


def require_vacant(output: Path, key: str, *, replaceable: bool = False) -> None:
    """The same of any product folder and the key of what is to be in it."""
    if f"{output.name}.json" in {MANIFEST, PROVENANCE, PROV, QA, CRATE}:
        raise InputRejected(f"{output}: {output.name}.json is a file of every product; choose another name")
    if f"{output.name}.tif" == FLAGS:
        raise InputRejected(f"{output}: {FLAGS} is a file of every product; choose another name")
    if not output.parent.is_dir():
        raise InputRejected(f"{output}: its parent folder does not exist; create it")
    if not os.path.lexists(output):
        return
    if _is_of(output, key):
        raise AlreadyPublished(f"{output}: already published from the same inputs and settings; nothing to do")
    if not replaceable:
        raise InputRejected(f"{output}: exists and is not this product; choose another output, or move it away")
    if not holds_product(output):
        raise InputRejected(f"{output}: exists and is no product, so it is not replaced; move it away")


def verify(path: Path, *, progress: Progress = silent) -> Product:
    """Check a product against its own records, offline.

    Files that viewers leave are no fault: they are told in the log, and `side_files` lists them.

    Parameters
    ----------
    path : Path
        Product folder.
    progress : callable, optional

    Raises
    ------
    BadProduct
        If a file is missing, changed or foreign, or a format does not read as the record says; the message names it.
    """
    if not path.is_dir():
        raise BadProduct(f"{path}: no such product folder")
    recorded = _read_manifest(path)
    step = Steps(progress, "verify", len(recorded) + 1)
    _require_samefiles_of(path, recorded, step)
    product = Product.load(path)
    for name in product.formats:
        try:
            writer(name).check(path, product.facts)
        except LookupError as error:
            raise BadProduct(f"{path}: this version cannot check the format {name!r}") from error
    step()
    return product


def side_files(path: Path) -> list[str]:
    """Files that viewers left in a product, relative to its folder, sorted; the manifest lists none of them.

    Raises
    ------
    BadProduct
        If the manifest is missing or damaged.
    """
    recorded = _read_manifest(path)
    return sorted(
        name
        for file in files_of(path)
        if (name := file.relative_to(path).as_posix()) not in recorded and _is_side_file(file)
    )


def _is_side_file(file: Path) -> bool:
    return any(fnmatchcase(file.name, pattern) for pattern in SIDE_FILES) and file.is_file() and not file.is_symlink()


def _is_published(job: StagedJob) -> bool:
    """Whether the rename has happened: the product folder is gone, or was not what was renamed."""
    renamed = not job.product.exists() or WORKING_FORMAT not in job.config.publish.formats
    return renamed and _is_of(job.config.output, job.record.key)


def _is_of(output: Path, key: str) -> bool:
    try:
        return Product.load(output).job_key == key
    except BadProduct:
        return False


def holds_product(output: Path) -> bool:
    """Whether a product stands at a path, of whatever scenes; it is not verified."""
    try:
        return bool(Product.load(output).job_key)
    except BadProduct:
        return False


def _sweep(job: StagedJob) -> None:
    """Remove what a killed run left in the product: half-written chunks, and files that are written anew."""
    for partial in job.product.rglob("*.partial"):
        partial.unlink()
    for entry in job.product.iterdir():
        if entry != job.fused.parent:
            _remove(entry)


def _product_root(job: StagedJob) -> Path:
    """The folder that will be renamed, holding what the writers wrote.

    The mosaic stays where it is if the working format was not asked for: a rerun after a crash finds its tiles there.
    """
    if WORKING_FORMAT in job.config.publish.formats:
        return job.product
    root = job.folder / "release"
    _remove(root)
    root.mkdir()
    for entry in list(job.product.iterdir()):
        if entry != job.fused.parent:
            entry.rename(root / entry.name)
    return root


def _seal(draft: Draft, root: Path, assets: list[Asset]) -> None:
    """Crate, manifest, then the item."""
    job = draft.job
    listed = [asset for asset in (*assets, *COMMON_ASSETS, *_RECORDS) if (root / asset.href).exists()]
    described = crate(
        draft.provenance,
        [*listed, _SEALED],
        published=rfc3339(draft.created),
        license_id=job.config.publish.license,
    )
    write_atomic(root / CRATE, json.dumps(described, indent=1, allow_nan=False))
    listed.append(
        plain_asset("ro-crate", CRATE, "application/ld+json", "The product as a Process Run Crate", "metadata")
    )
    published = root / job.fused.relative_to(job.product)
    arrays = {
        path.relative_to(job.product).as_posix(): {
            "chunks": store.n_chunk_files(published.with_name(path.name), store.open_array(path))[0]
        }
        for path in ((job.fused, job.errors) if job.config.publish.uncertainty else (job.fused,))
    }
    sealed, checksum = write_manifest(
        root,
        name=job.name,
        key=job.record.key,
        arrays=arrays if published.is_dir() else {},
        assets=listed,
    )
    if "stac" not in job.config.publish.formats:
        return
    record = item(draft, sealed, checksum)
    write_atomic(root / f"{job.name}.json", json.dumps(record, indent=1, allow_nan=False))
    writer("stac").check(root, draft.provenance.product)


def write_manifest(
    root: Path, *, name: str, key: str, arrays: dict[str, Any], assets: Iterable[Asset]
) -> tuple[list[Asset], str]:
    """Write the manifest of all files of a product that is being built.

    Parameters
    ----------
    root : Path
        Folder that will be renamed.
    name, key : str
        Identifier and job key of the product.
    arrays : dict
        Number of chunk files by array.
    assets : iterable of Asset
        What the product may offer; those that are not there are left out.

    Returns
    -------
    list of Asset
        For the item: files with size and checksum, the manifest last.
    str
        SHA-256 of the manifest, hexadecimal.
    """
    files = {path.relative_to(root).as_posix(): path for path in files_of(root)}
    listed = {name: {"size": path.stat().st_size, "sha256": file_sha256(path)} for name, path in sorted(files.items())}
    manifest = {"schema": SCHEMA, "product": name, "job_key": key, "arrays": arrays, "files": listed}
    text = json.dumps(manifest, indent=1)
    write_atomic(root / MANIFEST, text)
    described = [_with_checksum(asset, listed) for asset in assets if (root / asset.href).exists()]
    described.append(replace(_SEALED, extra={"file:size": len(text.encode())}))
    return described, hashlib.sha256(text.encode()).hexdigest()


def _with_checksum(asset: Asset, files: Any) -> Asset:
    """The asset with size and checksum, if it is a single file."""
    entry = files.get(asset.href)
    if entry is None:
        return asset
    return replace(asset, extra=asset.extra | {"file:size": entry["size"], "file:checksum": multihash(entry["sha256"])})


def _read_manifest(path: Path) -> dict[str, dict[str, Any]]:
    try:
        manifest = json.loads((path / MANIFEST).read_bytes())
        if manifest["schema"] != SCHEMA:
            raise BadProduct(f"{path}: {MANIFEST} is of schema {manifest['schema']!r}, expected {SCHEMA!r}")
        return {
            str(name): {"size": int(e["size"]), "sha256": str(e["sha256"])} for name, e in manifest["files"].items()
        }
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise BadProduct(f"{path}: {MANIFEST} is missing or damaged ({error})") from error


def _require_samefiles_of(path: Path, recorded: dict[str, dict[str, Any]], step: Steps) -> None:
    """Every file of the manifest, unchanged, and no other."""
    found = {file.relative_to(path).as_posix(): file for file in files_of(path)}
    missing = sorted(recorded.keys() - found.keys())
    if missing:
        raise BadProduct(f"{path}: {missing[0]} is missing ({len(missing)} of {len(recorded)} files are)")
    if PROVENANCE not in recorded:
        raise BadProduct(f"{path}: {MANIFEST} does not list {PROVENANCE}")
    for name, entry in recorded.items():
        file = found[name]
        if file.is_symlink() or file.stat().st_size != entry["size"]:
            raise BadProduct(f"{path}: {name} has {file.stat().st_size} bytes, expected a file of {entry['size']}")
        if file_sha256(file) != entry["sha256"]:
            raise BadProduct(f"{path}: {name} has changed: its SHA-256 is not that of the manifest")
        step()
    product = Product.load(path)
    allowed = {MANIFEST} | ({product.item.name} if product.item is not None else set())
    others = sorted(found.keys() - recorded.keys() - allowed)
    if foreign := [name for name in others if not _is_side_file(found[name])]:
        raise BadProduct(f"{path}: {foreign[0]} does not belong to the product; remove it")
    for name in others:
        log.warning("%s: %s was left by a viewer and is no part of the product; it may be removed", path, name)


def _discard(folder: Path) -> None:
    """The product stands; a staging folder that cannot be removed now is only litter."""
    shutil.rmtree(folder, ignore_errors=True)


def _remove(path: Path) -> None:
    with suppress(FileNotFoundError):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
