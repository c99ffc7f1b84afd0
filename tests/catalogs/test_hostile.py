"""An archive of hostile products: each is refused with a sentence that names it, and costs its neighbors nothing."""

from __future__ import annotations

import json
import re
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path

import h5py
import pytest

from hyperfuse.catalogs.errors import InputRejected
from hyperfuse.catalogs.formats.markup import parse_xml
from hyperfuse.catalogs.sensors import Source, open_scene
from hyperfuse.catalogs.stac.catalog import Catalog
from hyperfuse.catalogs.stac.gather import gather
from hyperfuse.catalogs.weight_cards import read_card
from tests.products import desis, emit, enmap, landsat, planetscope, prisma, sentinel2
from tests.synthetic import scene

ENTITY = '<?xml version="1.0"?><!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/passwd">]>'
LAUGHS = '<?xml version="1.0"?><!DOCTYPE a [<!ENTITY a "ha"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;">]>'
VRT = "<VRTDataset rasterXSize='30' rasterYSize='24'><VRTRasterBand band='1'><SimpleSource><SourceFilename>/etc/passwd"
DEEP = '{"a":' * 100_000 + "1" + "}" * 100_000


def with_head(path: Path, head: str) -> None:
    """Put another head on an XML file, which still names the mission in its first bytes."""
    path.write_text(head + path.read_text().partition("?>")[2])


def xml_of(builder: Callable[[Path], Path], pattern: str, head: str) -> Callable[[Path], Path]:
    def build(folder: Path) -> Path:
        made = builder(folder)
        for path in made.rglob(pattern):
            with_head(path, head)
        return made

    return build


def image_of(builder: Callable[[Path], Path], pattern: str) -> Callable[[Path], Path]:
    def build(folder: Path) -> Path:
        made = builder(folder)
        next(made.rglob(pattern)).write_text(VRT)
        return made

    return build


def deep_landsat(folder: Path) -> Path:
    made = landsat.landsat(folder, forms=("json",))
    path = next(made.glob("*_MTL.json"))
    path.write_text('{"LANDSAT_METADATA_FILE": ' + DEEP + "}")
    return made


def deep_item(constellation: str) -> Callable[[Path], Path]:
    def build(folder: Path) -> Path:
        folder.mkdir()
        (folder / "a.json").write_text(f'{{"stac_version": "1.0.0", "constellation": "{constellation}", "a": {DEEP}}}')
        return folder

    return build


def link_of(builder: Callable[[Path], Path], name: str) -> Callable[[Path], Path]:
    """An HDF5 product one of whose arrays is a link to another file."""

    def build(folder: Path) -> Path:
        folder.mkdir(exist_ok=True)
        path = builder(folder / "a.nc")
        path = path if path.is_file() else next(path.glob("*RFL*"))
        with h5py.File(path, "a") as file:
            del file[name]
            file[name] = h5py.ExternalLink("/etc/passwd", "/x")
        return path

    return build


def slip(folder: Path) -> Path:
    folder.mkdir()
    made = enmap.enmap(folder / "enmap")
    with zipfile.ZipFile(folder / "a.zip", "w") as archive:
        for path in made.iterdir():
            archive.write(path, path.name)
        archive.writestr("../outside.tif", "x")
    return folder / "a.zip"


def huge_metadata(folder: Path) -> Path:
    made = enmap.enmap(folder)
    with next(made.glob("*METADATA.XML")).open("r+b") as file:
        file.truncate(51 << 20)
    return made


HOSTILE = {
    "entity in EnMAP": (xml_of(enmap.enmap, "*METADATA.XML", ENTITY), "entities or a document type"),
    "entity in DESIS": (xml_of(desis.desis, "*METADATA.xml", ENTITY), "entities or a document type"),
    "entity in Sentinel-2": (xml_of(sentinel2.sentinel2, "MTD_MSIL2A.xml", ENTITY), "entities or a document type"),
    "laughs in a Sentinel-2 tile": (xml_of(sentinel2.sentinel2, "MTD_TL.xml", LAUGHS), "entities or a document type"),
    "laughs in Landsat": (
        xml_of(lambda folder: landsat.landsat(folder, forms=("xml",)), "*_MTL.xml", LAUGHS), "entities or a document type"
    ),
    "metadata of 51 MiB": (huge_metadata, "bytes, expected at most"),
    "VRT in EnMAP": (image_of(enmap.enmap, "*SPECTRAL_IMAGE.TIF"), "expected GeoTIFF or JPEG 2000"),
    "VRT in DESIS": (image_of(desis.desis, "*SPECTRAL_IMAGE.tif"), "is a GDAL virtual raster"),
    "VRT in Sentinel-2": (image_of(sentinel2.sentinel2, "*_B03_10m.jp2"), "is a GDAL virtual raster"),
    "VRT in Landsat": (image_of(landsat.landsat, "*_SR_B3.TIF"), "is a GDAL virtual raster"),
    "VRT in PlanetScope": (image_of(planetscope.planetscope, "*_SR_clip.tif"), "is a GDAL virtual raster"),
    "depth in Landsat": (deep_landsat, "nested too deeply"),
    "depth in Sentinel-2": (deep_item("sentinel-2"), "nested too deeply"),
    "depth in PlanetScope": (deep_item("planetscope"), "nested too deeply"),
    "link in PRISMA": (
        link_of(prisma.prisma, "HDFEOS/SWATHS/PRS_L2D_HCO/Data Fields/VNIR_Cube"), "is a link to another file"
    ),
    "link in EMIT": (link_of(lambda path: emit.emit(path.parent), "sensor_band_parameters/fwhm"), "is a link to another file"),
    "zip slip": (slip, "a name that leaves the archive"),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_refused_by_its_reader(name, tmp_path):
    build, why = HOSTILE[name]
    with pytest.raises(InputRejected, match=why):
        open_scene(Source(uri=str(build(tmp_path / "a"))))


def test_an_archive_of_them(tmp_path):
    built = {name: str(build(tmp_path / f"p{i}")) for i, (name, (build, _)) in enumerate(HOSTILE.items())}
    good = str(landsat.landsat(tmp_path / "good"))
    told = gather(Catalog.open(tmp_path / "cat"), [Source(uri=uri) for uri in (*built.values(), good)])
    assert [one.state for one in told] == ["refused"] * len(built) + ["added"]
    for (name, uri), one in zip(built.items(), told, strict=False):
        assert Path(uri).name in one.reason, name
        assert "its reader failed" not in one.reason, one.reason
    assert [scene.id for scene in Catalog.open(tmp_path / "cat", roots=[tmp_path]).items()] == [landsat.NAME]


def test_weights_with_a_deep_header(tmp_path):
    header = DEEP.encode()
    (tmp_path / "w.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    with pytest.raises(InputRejected, match="not a safetensors weight file"):
        read_card(tmp_path / "w.safetensors")
    header = json.dumps({"__metadata__": {"hyperfuse": DEEP}}).encode()
    (tmp_path / "w.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    with pytest.raises(InputRejected, match="carries no card"):
        read_card(tmp_path / "w.safetensors")


def test_elements_within_elements_are_refused_at_once() -> None:
    """6 MB of them took 23 s and 835 MB: the tree is not built beyond any product's depth."""
    within = 1_000_000
    tracemalloc.start()
    with pytest.raises(InputRejected, match=r"MTD\.xml: nests elements more than 100 deep"):
        parse_xml(b"<a>" * within + b"</a>" * within, Path("MTD.xml"))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 20e6


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"root:x:0:0:root:/root:/bin/bash\n", "plain text"),
        (b"<!DOCTYPE html><html>login</html>", "a page of HTML"),
        (b"\x00\x01\x02 secret", "binary, of no kind known here"),
        (b"", "empty (0 bytes)"),
    ],
)
def test_what_is_no_image_is_named_and_not_quoted(tmp_path: Path, content: bytes, told: str) -> None:
    (tmp_path / "a.tif").write_bytes(content)
    with pytest.raises(InputRejected, match=f"a.tif: is {re.escape(told)}, expected GeoTIFF") as refused:
        open_scene(Source(uri=str(tmp_path / "a.tif")))
    assert not any(word in str(refused.value) for word in ("bash", "login", "\\\\x01"))


@pytest.mark.parametrize(("place", "key"), [("x", "NAME"), ("y", "CLASS"), ("reflectance", "DIMENSION_LIST")])
def test_attributes_of_axes_that_are_something_else_do_not_end_the_process(
    tmp_path: Path, place: str, key: str
) -> None:
    """The NetCDF library crashed on them (found by `make fuzz`)."""
    made = scene("hsi", "size=48&ratio=4&bands=6&seed=2").to_xarray().load()
    made.rename("reflectance").drop_encoding().to_dataset().to_netcdf(tmp_path / "a.nc")
    with h5py.File(tmp_path / "a.nc", "a") as file:
        del file[place].attrs[key]
        file[place].attrs[key] = [float(n) for n in range(40)]
    with pytest.raises(InputRejected, match=rf"a\.nc: .*{place} has an attribute {key} of another type than axes have"):
        open_scene(Source(uri=str(tmp_path / "a.nc")))
