"""An archive of 30 pairs as operators deliver them: products of four sensors, and everything that goes wrong with some."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from affine import Affine

from hyperfuse.catalogs.sensors import Source
from hyperfuse.catalogs.stac.catalog import Catalog
from hyperfuse.catalogs.stac.items import SceneItem
from hyperfuse.catalogs.stac.survey import survey
from tests.pipeline.archives import item
from tests.pipeline.fusion.test_weights import weight_file
from tests.products import enmap, planetscope, prisma, sentinel2
from tests.products.packing import tarred, zipped

WEIGHTS = "net.safetensors"
NETWORK = ("s0", "s1")
"""Scenes that are fused by the network, the others by interpolation."""
EXPECTED = {
    **{f"e{i}": "done" for i in range(6)},  # EnMAP (folder, tar or zip) and Sentinel-2
    **{f"p{i}": "done" for i in range(3)},  # PRISMA and Sentinel-2
    **{f"q{i}": "done" for i in range(2)},  # EnMAP and PlanetScope
    **{f"s{i}": "done" for i in range(6)},  # synthetic land
    **{f"alone{i}": "refused no_partner" for i in range(3)},
    **{f"cloudy{i}": "refused cloudy" for i in range(3)},
    "cut0": "refused input_rejected",  # half of the image file is gone
    "cut1": "refused input_rejected",  # the tar ends in the middle
    "corrupt": "refused input_rejected",  # the head of the HDF5 file is overwritten
    "foreign0": "refused input_rejected",  # an item of somebody else leads to a picture
    "foreign1": "refused input_rejected",  # ... to a table
    "swapped": "refused input_rejected",
    "zz-away": "failed transient",  # a disk that is not mounted; last, so that kills do not add to its attempts
}
SETTINGS: dict[str, Any] = {
    # Planted counts are no scenery: nothing to register by, and no quality to judge.
    "method": "bicubic", "align.estimate": False, "quality.gate": "off", "publish.formats": ["zarr", "stac"],
}  # fmt: skip


def build(folder: Path) -> dict[str, Any]:
    """Write products, catalogue and weights into a folder; returns the archive's configuration."""
    scenes: list[SceneItem] = []
    for place, name in enumerate(EXPECTED):
        scenes += _pair(folder / "scenes" / name, name, place)
    Catalog.open(folder / "catalog").add(scenes)
    _damage(folder / "scenes")
    weights = weight_file(folder / WEIGHTS, "csakd-student", bands=8)
    return {
        "catalog": str(folder / "catalog"),
        "output": str(folder / "products"),
        "roots": [str(folder)],
        "settings": SETTINGS,
        "sensors": {"synthetic": {"method": "csakd-student", "weights": str(weights)}},
        "devices": ["cpu"],
    }


def _pair(folder: Path, name: str, place: int) -> list[SceneItem]:
    kind = name.rstrip("0123456789")
    folder.mkdir(parents=True)
    if kind in {"s", "alone", "foreign", "swapped", "zz-away"}:
        return _synthetic(folder, name, kind, place)
    hsi = _prisma(folder, place) if kind in {"p", "corrupt"} else _enmap(folder, place, pack=(place + 1) % 3)
    msi = _planetscope(folder, place) if kind == "q" else _sentinel2(folder, place)
    scene = _item(name, hsi)
    if kind == "cloudy":
        scene = replace(scene, conditions=replace(scene.conditions, cloud_cover=0.95))
    return [scene, _item(f"m-{name}", msi)]


def _synthetic(folder: Path, name: str, kind: str, place: int) -> list[SceneItem]:
    hsi, msi = item(name, "hsi", place), item(f"m-{name}", "msi", place)
    if kind == "s":
        # A reader that is found by content has no settings of its name: these scenes are not fused by the network.
        return [hsi if name in NETWORK else replace(hsi, sensor=None), msi]
    if kind == "swapped":
        return [replace(hsi, uri=msi.uri), replace(msi, uri=hsi.uri)]
    if kind == "alone":
        return [hsi]
    strange = folder / {"foreign0": "picture.jpg", "foreign1": "table.csv"}.get(name, "away.tif")
    if kind == "foreign":
        strange.write_bytes(b"\xff\xd8\xff\xe0" if name == "foreign0" else b"a,b\n1,2\n")
    return [replace(hsi, uri=str(strange), sensor=None, fingerprint=None), msi]


def _item(name: str, path: Path) -> SceneItem:
    return replace(survey(Source(uri=str(path))), id=name)


def _at(place: int) -> tuple[float, float]:
    """Upper left corner of a place, UTM 32 N."""
    return 400_020.0 + 6_000 * place, 5_400_000.0


def _moved(module: Any, place: int, gsd_m: float, write: Callable[[], Path], **constants: Any) -> Path:
    """The builder's product at another place and of another size; builders keep both as constants."""
    left, top = _at(place)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "GRID", Affine(gsd_m, 0, left, 0, -gsd_m, top))
        for key, value in constants.items():
            patch.setattr(module, key, value)
        return write()


def _enmap(folder: Path, place: int, *, pack: int) -> Path:
    product = _moved(enmap, place, 30, lambda: enmap.enmap(folder / "enmap"))
    if pack == 0:
        return product
    return tarred(product, folder / "enmap.tar.gz") if pack == 1 else zipped(product, folder / "enmap.zip")


def _prisma(folder: Path, place: int) -> Path:
    return _moved(prisma, place, 30, lambda: prisma.prisma(folder / "prisma.he5"))


def _sentinel2(folder: Path, place: int) -> Path:
    return _moved(sentinel2, place, 10, lambda: sentinel2.sentinel2(folder), SHAPE=(72, 90))


def _planetscope(folder: Path, place: int) -> Path:
    return _moved(
        planetscope, place, 3, lambda: planetscope.planetscope(folder / "ps"), SHAPE=(240, 300), CRS="EPSG:32632"
    )


def _damage(scenes: Path) -> None:
    """What happens to files after they were catalogued."""
    for name in ("cut0", "cut1"):
        files = sorted((scenes / name).rglob("enmap*")) + sorted((scenes / name).rglob("*SPECTRAL_IMAGE*"))
        for file in (file for file in files if file.is_file()):
            file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with (scenes / "corrupt" / "prisma.he5").open("r+b") as file:
        file.write(b"\0" * 4096)
