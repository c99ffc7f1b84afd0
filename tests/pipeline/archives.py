"""A small archive of synthetic scenes, and a night of it in this process."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import shapely

from hyperfuse.catalogs.errors import HyperFuseError
from hyperfuse.catalogs.scene import Conditions
from hyperfuse.catalogs.sensors import Source, open_scene
from hyperfuse.catalogs.stac.catalog import Catalog
from hyperfuse.catalogs.stac.items import Fingerprint, SceneItem
from hyperfuse.pipeline.archive.backlog import Backlog, Task, take_stock
from hyperfuse.pipeline.archive.night import Night, work_off
from hyperfuse.pipeline.archive.outcome import Outcome
from hyperfuse.pipeline.archive.settings import ArchiveConfig, load_archive, open_catalog
from hyperfuse.pipeline.run import run

QUICK = {"method": "bicubic", "publish.formats": ["zarr", "stac"], "quality.gate": "off"}
"""Settings of a fusion that takes a second."""


def recipe(place: int) -> str:
    """The synthetic land of a place of its own: no two zones of UTM overlap there."""
    return f"size=96&ratio=4&bands=8&seed={place}&crs=EPSG:{32601 + place}"


def item(name: str, role: str, place: int, *, uri: str = "", cloud: float | None = None, **changes: Any) -> SceneItem:
    """The catalogue's item of a synthetic scene, or of `uri` with the footprint of that place."""
    scene = open_scene(Source(uri=f"synthetic:{role}?{recipe(place)}"))
    outline = scene.geobox.extent.to_crs("EPSG:4326").geom
    facts: dict[str, Any] = {
        "id": name,
        "role": role,
        "sensor": "generic" if uri else "synthetic",
        "uri": uri or scene.uri,
        "footprint": shapely.geometry.shape(outline),
        "gsd_m": scene.gsd_m,
        "n_bands": len(scene.bands),
        "time": scene.time,
        "conditions": Conditions(cloud_cover=cloud),
        "fingerprint": None if uri else Fingerprint(sha256=scene.digest, size=0, mtime_ns=0),
    }
    return SceneItem(**(facts | changes))


def both(place: int, **changes: Any) -> list[SceneItem]:
    """The pair of a place; changes are those of the HSI."""
    return [item(f"h{place}", "hsi", place, **changes), item(f"m{place}", "msi", place)]


def archive(folder: Path, items: Iterable[SceneItem], **fields: Any) -> ArchiveConfig:
    """An archive of these scenes in a folder: its catalogue and its products."""
    (folder / "catalog").mkdir(exist_ok=True)
    Catalog.open(folder / "catalog").add(items)
    settings = QUICK | fields.pop("settings", {})
    fields = {"roots": [str(folder)], "devices": ["cpu"]} | fields
    return load_archive(
        None, {"catalog": str(folder / "catalog"), "output": str(folder / "products"), "settings": settings} | fields
    )


def here(task: Task) -> Outcome:
    """Fuse a scene in this process."""
    try:
        run(task.config)
    except HyperFuseError as error:
        return Outcome.of(error)
    return Outcome(exit_code=0)


def record_of(task: Task) -> dict[str, Any]:
    """The provenance of a product that was never made, as far as a backlog reads it."""
    return {
        "job_key": task.recipe.key,
        "samples": {"key": "ab" * 32, "code": task.recipe.samples_code},
        "inputs": {
            role: {"uri": uri, "sha256": digest}
            for role, uri, digest in zip(("hsi", "msi"), task.recipe.addresses, task.recipe.inputs, strict=True)
        },
        "config": task.config.model_dump(mode="json"),
        "product": {"shape": [96, 96], "wavelength_nm": [500.0] * 8},
        "method": {"name": task.config.method, "weights_sha256": task.recipe.weights},
        "software": {"code_version": task.recipe.code},
        "tiles": {"resumed": 0},
        "started": "2026-11-21T00:00:00Z",
        "ended": "2026-11-21T00:00:02Z",
    }


def pretend(task: Task) -> Outcome:
    """Leave such a record where a product would be."""
    task.product.mkdir(exist_ok=True)
    (task.product / "provenance.json").write_text(json.dumps(record_of(task)))
    return Outcome(exit_code=0)


def night(config: ArchiveConfig, fuse: Callable[[Task], Outcome] = here) -> Night:
    """Work an archive off."""
    return work_off(config, fuse)


def look(config: ArchiveConfig) -> Backlog:
    """The backlog as anybody finds it from outside."""
    return take_stock(config, open_catalog(config).read())


def states(config: ArchiveConfig) -> dict[str, str]:
    """State and reason code of every scene."""
    return {entry.id: f"{entry.state} {entry.code}".strip() for entry in look(config).entries}
