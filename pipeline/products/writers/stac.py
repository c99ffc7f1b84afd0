"""STAC item, version 1.1.0: the product as a catalog sees it.

`pipeline.products.publish` writes the item last of all files. It holds the checksum of the manifest, the manifest those of all
other files, and the item its own: so the item alone vouches for the whole product.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import pystac
from odc.geo.geobox import GeoBox
from pystac.errors import RequiredPropertyMissing, STACError, STACTypeError, STACValidationError
from pystac.validation.stac_validator import JsonSchemaSTACValidator

from hyperfuse.catalogs.bands import Bands
from hyperfuse.catalogs.errors import HyperFuseError
from hyperfuse.catalogs.formats.files import file_sha256
from hyperfuse.catalogs.outline import grid_outline, projection
from hyperfuse.catalogs.scene import pixel_size_m
from hyperfuse.catalogs.stac.build import STAC_VERSION, cite_as, item_record
from hyperfuse.catalogs.stac.fused_products import DIGEST, JOB_KEY
from hyperfuse.catalogs.times import rfc3339
from hyperfuse.pipeline.composite import true_color
from hyperfuse.pipeline.job.completeness import MosaicSummary
from hyperfuse.pipeline.job.encoding import ERRORS, VARIABLE
from hyperfuse.pipeline.job.product_files import MANIFEST
from hyperfuse.pipeline.job.template import processing_level
from hyperfuse.pipeline.products.draft import Asset, BadProduct, Draft, FinishedCube
from hyperfuse.pipeline.products.prov_rocrate import address
from hyperfuse.pipeline.products.records import ProductFacts
from hyperfuse.pipeline.products.writers._read_back import require_values
from hyperfuse.pipeline.products.writers.zarr import MEDIA_TYPE as ZARR

SUFFIX = ".json"
_PYSTAC = (STACError, STACTypeError, RequiredPropertyMissing)


def write(cube: FinishedCube) -> list[Asset]:  # noqa: ARG001 (the item describes the others, so `publish` asks for it last)
    """Nothing yet: see `item`."""
    return []


def item(draft: Draft, assets: Sequence[Asset], manifest_sha256: str) -> dict[str, Any]:
    """The item as plain JSON.

    Parameters
    ----------
    draft : Draft
    assets : sequence of Asset
        Everything that the product offers, manifest included; files carry `file:size` and `file:checksum`.
    manifest_sha256 : str
        Hexadecimal.
    """
    job = draft.job
    return assemble(
        job.name,
        job.grids.product,
        properties=_properties(draft),
        links=[
            {"rel": "derived_from", "href": address(scene.uri), "title": f"{scene.name}, {role}"}
            for scene, role in (
                (job.record.hsi, "hyperspectral input"),
                (job.record.msi, "multispectral input"),
            )
        ]
        + _model_links(draft),
        assets=assets,
        bands=band_entries(job.bands, draft.summary, draft.provenance.product),
        manifest_sha256=manifest_sha256,
    )


def assemble(
    name: str,
    geobox: GeoBox,
    *,
    properties: dict[str, Any],
    links: Sequence[dict[str, str]],
    assets: Sequence[Asset],
    bands: Sequence[dict[str, Any]],
    manifest_sha256: str,
) -> dict[str, Any]:
    """The item of any product, as plain JSON.

    Parameters
    ----------
    name : str
        Identifier.
    geobox : GeoBox
        Grid of its cube.
    properties : dict
        Without the digest.
    links : sequence of dict
        To what it was made of.
    assets, manifest_sha256
        As `item` has them.
    bands : sequence of dict
        By `band_entries`.
    """
    stores = [
        {"rel": "store", "href": f"./{asset.href}", "type": ZARR}
        for asset in assets
        if asset.media_type == ZARR and "data" in asset.roles
    ]
    record = item_record(
        name,
        grid_outline(geobox),
        properties,
        assets={asset.key: _entry(asset, geobox, bands, manifest_sha256) for asset in assets},
        links=[*links, *stores],
    )
    record["properties"][DIGEST] = digest(record)
    return record


def _entry(asset: Asset, geobox: GeoBox, bands: Sequence[dict[str, Any]], manifest_sha256: str) -> dict[str, Any]:
    """STAC fields of an asset."""
    entry: dict[str, Any] = {
        "href": f"./{asset.href}",
        "type": asset.media_type,
        "title": asset.title,
        "roles": list(asset.roles),
    }
    entry |= asset.extra
    if asset.href == MANIFEST:
        entry["file:checksum"] = multihash(manifest_sha256)
    if "data" in asset.roles:
        zarr = asset.media_type == ZARR
        entry |= _grid(geobox) | {"bands": [_named(band, index, zarr=zarr) for index, band in enumerate(bands)]}
    if "uncertainty" in asset.roles:
        scale = entry.pop("raster:scale")
        entry |= _grid(geobox) | {"bands": [_error_band(band, scale) for band in bands]}
    return entry


def check(folder: Path, expected: ProductFacts) -> None:
    """Read the item with pystac, validate it without a network, and follow its links into the product.

    Raises
    ------
    BadProduct
        With what is wrong.
    """
    path = folder / f"{expected.name}{SUFFIX}"
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        if record["properties"].get(DIGEST) != digest(record):
            raise BadProduct(f"{path.name}: its content has changed since it was published")
        _validate(record, path.name)
        _check_assets(folder, record, expected, path.name)
    except HyperFuseError:
        raise
    except (OSError, ValueError, LookupError, TypeError, AttributeError, *_PYSTAC) as error:
        raise BadProduct(f"{path.name}: cannot be read as a STAC item ({error})") from error


def digest(record: dict[str, Any]) -> str:
    """SHA-256 of an item's canonical JSON, without the property that holds it."""
    properties = {key: value for key, value in record["properties"].items() if key != DIGEST}
    text = json.dumps(record | {"properties": properties}, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def multihash(sha256: str) -> str:
    """A SHA-256 as the file extension wants it: code 0x12, length 0x20, digest."""
    return f"1220{sha256}"


def _properties(draft: Draft) -> dict[str, Any]:
    job, facts = draft.job, draft.provenance
    hsi, msi, created = job.record.hsi, job.record.msi, rfc3339(draft.created)
    pixel = pixel_size_m(job.grids.product)
    registration = job.staged.registration
    return _times(hsi.time, msi.time, draft.created) | {
        "title": f"{hsi.name} fused with {msi.name}",
        "description": f"Bands of {hsi.name} ({hsi.sensor}) on the pixels of {msi.name} ({msi.sensor}).",
        "created": created,
        "updated": created,
        "platform": hsi.sensor,
        "instruments": sorted({hsi.sensor, msi.sensor}),
        "gsd": float(f"{(pixel[0] * pixel[1]) ** 0.5:.6g}"),
        "license": job.config.publish.license,
        **projection(job.grids.product),
        "processing:level": processing_level(job),
        "processing:datetime": facts.ended,
        "processing:version": facts.software["code_version"],
        "processing:facility": facts.facility.host,
        "processing:lineage": (
            f"{msi.name} registered to {hsi.name} ({registration.decision}: {registration.reason}); fused with "
            f"{facts.method.title} in {job.plan.n_tiles} tiles; {facts.method.paper}"
        ),
        "processing:software": {name: str(value) for name, value in facts.software.items()},
        "processing:expression": {"format": "hyperfuse-config", "expression": facts.config},
        JOB_KEY: job.record.key,
        "hrhsi:method": job.config.method,
        "hrhsi:ratio": job.record.grid.ratio,
        "hrhsi:psf_sigma_px": job.observation.psf_sigma_px,
        "hrhsi:registration": registration.model_dump(mode="json"),
        "hrhsi:valid_fraction": draft.summary.valid_fraction,
        "hrhsi:clipped_samples": draft.summary.clipped,
        **({} if facts.quality is None else {"hrhsi:quality": facts.quality.model_dump(mode="json")}),
    }


def _times(hsi: datetime | None, msi: datetime | None, created: datetime) -> dict[str, Any]:
    """The HSI's acquisition, and the span of both; STAC wants some time even where no input tells."""
    known = sorted(time for time in (hsi, msi) if time is not None)
    if not known:
        now = rfc3339(created)
        return {"datetime": None, "start_datetime": now, "end_datetime": now, "hrhsi:time_unknown": True}
    span = {"start_datetime": rfc3339(known[0]), "end_datetime": rfc3339(known[-1])}
    if hsi is None:
        return {"datetime": None, **span}
    return {"datetime": rfc3339(hsi)} | (span if known[0] != known[-1] else {})


def _model_links(draft: Draft) -> list[dict[str, str]]:
    """The weights that made the product, if it has some, and the paper of the method."""
    network, weights, path = draft.job.config.method, draft.job.record.weights, draft.job.config.weights
    links = []
    if weights is not None and path is not None:
        title = f"weights of {network}, SHA-256 {weights['sha256']}"
        links.append({"rel": "derived_from", "href": path.absolute().as_uri(), "title": title})
    return links + cite_as(draft.provenance.method.paper)


def _grid(geobox: GeoBox) -> dict[str, Any]:
    box = geobox.boundingbox
    return projection(geobox) | {
        "proj:shape": list(geobox.shape),
        "proj:transform": list(tuple(geobox.affine)[:6]),
        "proj:bbox": [box.left, box.bottom, box.right, box.top],
    }


def band_entries(bands: Bands, summary: MosaicSummary, facts: ProductFacts) -> list[dict[str, Any]]:
    """One entry per band, in the cube's order, without the name, which depends on the format.

    Parameters
    ----------
    bands : Bands
    summary : MosaicSummary
    facts : ProductFacts
    """
    common = dict(zip(true_color(bands) or (), ("red", "green", "blue"), strict=False))
    entries = []
    for index, (center, width) in enumerate(zip(bands.center_nm, bands.fwhm_nm, strict=True)):
        entry: dict[str, Any] = {
            "description": f"{center:.1f} nm",
            "data_type": facts.dtype,
            "nodata": "nan" if facts.nodata is None else facts.nodata,
            "unit": facts.unit,
            "eo:center_wavelength": float(f"{center / 1000.0:.12g}"),
            "raster:scale": facts.scale,
            "raster:offset": facts.offset,
            "statistics": {"valid_percent": 100.0 * summary.valid[index] / summary.pixels},
        }
        if math.isfinite(width):
            entry["eo:full_width_half_max"] = float(f"{width / 1000.0:.12g}")
        if index in common:
            entry["eo:common_name"] = common[index]
        low, high, mean = (getattr(summary, name)[index] for name in ("low", "high", "mean"))
        if mean is not None:
            entry["statistics"] |= {"minimum": low, "maximum": high, "mean": mean}
        entries.append(entry)
    return entries


def _named(band: dict[str, Any], index: int, *, zarr: bool) -> dict[str, Any]:
    center_nm = band["eo:center_wavelength"] * 1000.0
    return {"name": f"{VARIABLE}[wavelength={center_nm:.10g}]" if zarr else str(index + 1)} | band


def _error_band(band: dict[str, Any], scale: float) -> dict[str, Any]:
    """The same of a band of the standard errors, whose statistics are in `qa.json`."""
    named = _named(band, 0, zarr=True)
    kept = {key: value for key, value in named.items() if key not in {"statistics", "eo:common_name"}}
    return kept | {
        "name": named["name"].replace(VARIABLE, ERRORS, 1),
        "description": f"{band['description']}, standard error",
        "raster:scale": scale,
    }


def _validate(record: dict[str, Any], of: str) -> None:
    """Core schema, from the copy that pystac ships; extensions' schemas are only on the network."""
    if record.get("stac_version") != STAC_VERSION:
        raise BadProduct(f"{of}: STAC {record.get('stac_version')}, expected {STAC_VERSION}")
    validator, kind = JsonSchemaSTACValidator(), pystac.STACObjectType.ITEM
    # A later pystac may ship a later schema only; it would fetch this one.
    if validator.schema_uri_map.get_object_schema_uri(kind, STAC_VERSION) in validator.schema_cache:
        try:
            validator.validate_core(record, kind, STAC_VERSION)
        except STACValidationError as error:
            found = getattr(error.__cause__, "message", str(error)).splitlines()[0]
            raise BadProduct(f"{of}: no valid STAC item ({found[:200]})") from error
    if pystac.Item.from_dict(record, preserve_dict=True).id != record["id"]:
        raise BadProduct(f"{of}: pystac does not read its identifier {record['id']}")


def _check_assets(folder: Path, record: dict[str, Any], expected: ProductFacts, of: str) -> None:
    if record["id"] != expected.name:
        raise BadProduct(f"{of}: describes {record['id']}, expected {expected.name}")
    for key, asset in record["assets"].items():
        target = folder / asset["href"]
        if not target.resolve().is_relative_to(folder.resolve()):
            raise BadProduct(f"{of}: its asset {key} lies outside the product: {asset['href']}")
        if not target.exists():
            raise BadProduct(f"{of}: its asset {key} is missing: {asset['href']}")
        if "file:checksum" in asset:
            _check_file(target, asset, of)
        if "data" in asset["roles"]:
            centers = [band["eo:center_wavelength"] * 1000.0 for band in asset["bands"]]
            require_values(centers, expected.wavelength_nm, f"{of}, wavelengths of {key}")
            require_values(asset["proj:transform"], expected.transform, f"{of}, transform of {key}")
            if asset["proj:shape"] != list(expected.geobox.shape):
                raise BadProduct(f"{of}: {key} has {asset['proj:shape']} pixels, expected {expected.shape}")
    if "manifest" not in record["assets"]:
        raise BadProduct(f"{of}: it does not name the manifest")


def _check_file(path: Path, asset: dict[str, Any], of: str) -> None:
    if multihash(file_sha256(path)) != asset["file:checksum"]:
        raise BadProduct(f"{path.name} is not the file that {of} describes: its checksum differs")
