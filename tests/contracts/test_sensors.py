"""What every reader of products promises, tried on one built product of each sensor."""

from __future__ import annotations

import pickle
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from hyperfuse.catalogs.errors import HyperFuseError
from hyperfuse.catalogs.scene import Cube, Scene
from hyperfuse.catalogs.sensors import Source, available, open_scene, sensor_module
from tests.products import (
    aviris,
    desis,
    emit,
    enmap,
    landsat,
    neon,
    planetscope,
    prisma,
    sentinel2,
    sentinel2_eopf,
    tanager,
)
from tests.synthetic import whole

BUILDERS = {
    "aviris": aviris.aviris,
    "desis": desis.desis,
    "emit": emit.emit,
    "enmap": enmap.enmap,
    "landsat": landsat.landsat,
    "neon": lambda folder: neon.neon(_made(folder) / "a.h5"),
    "planetscope": planetscope.planetscope,
    "prisma": lambda folder: prisma.prisma(_made(folder) / "a.he5"),
    "sentinel2": sentinel2.sentinel2,
    "sentinel2_eopf": sentinel2_eopf.sentinel2_eopf,
    "tanager": tanager.tanager,
}


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True)
    return folder


@pytest.fixture(scope="module")
def products(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("products")
    return {name: build(folder / name / "product") for name, build in BUILDERS.items()}


@pytest.fixture(params=sorted(BUILDERS))
def scene(request: pytest.FixtureRequest, products: dict[str, Path]) -> Scene:
    return open_scene(Source(uri=str(products[request.param])))


def test_every_reader_of_a_product_has_a_builder():
    inside = {name for name in available() if sensor_module(name).SENSOR.inside}  # in the files of another reader
    assert set(available()) - {"generic", "synthetic"} - inside == set(BUILDERS)


@pytest.mark.parametrize("name", sorted(BUILDERS))
def test_exactly_one_reader_takes_a_product(products, name):
    takers = [module for module in available() if sensor_module(module).accepts(str(products[name]))]
    assert [taker for taker in takers if taker != "generic"] == [name]
    assert open_scene(Source(uri=str(products[name]))).sensor == name


@pytest.mark.parametrize("name", sorted(BUILDERS))
def test_nothing_else_is_taken(tmp_path, name):
    (tmp_path / "empty").mkdir()
    (tmp_path / "a.xml").write_text("<a/>")
    (tmp_path / "a.json").write_text("{}")
    (tmp_path / "a.he5").write_bytes(b"\x89HDF\r\n\x1a\n")
    for place in ("absent", "empty", "a.xml", "a.json", "a.he5", ""):
        assert not sensor_module(name).accepts(str(tmp_path / place)), place


def test_windows_are_parts_of_the_whole(scene):
    assert isinstance(scene.cube, Cube)
    n_bands, height, width = scene.cube.shape
    all_of_it = whole(scene)
    assert all_of_it.dtype == np.float32
    assert np.isfinite(all_of_it).any()
    rng = np.random.default_rng(5)
    for _ in range(10):
        y0, y1 = sorted(rng.choice(height + 1, 2, replace=False))
        x0, x1 = sorted(rng.choice(width + 1, 2, replace=False))
        bands = rng.permutation(n_bands)[: rng.integers(1, n_bands + 1)]
        part = scene.read((slice(int(y0), int(y1)), slice(int(x0), int(x1))), [int(b) for b in bands])
        np.testing.assert_array_equal(part, all_of_it[bands, y0:y1, x0:x1])


def test_reads_agree_between_threads_and_copies(scene):
    want = whole(scene)
    _, height, width = scene.cube.shape
    window = (slice(0, height), slice(0, width))
    with ThreadPoolExecutor(8) as pool:
        for got in pool.map(lambda _: scene.read(window), range(16)):
            np.testing.assert_array_equal(got, want)
    again = pickle.loads(pickle.dumps(scene.cube))  # noqa: S301 (our own bytes)
    np.testing.assert_array_equal(again.read(range(len(scene.bands)), window), want)


def test_a_window_outside_is_a_mistake_of_the_caller(scene):
    _, height, width = scene.cube.shape
    with pytest.raises(ValueError, match="does not lie inside"):
        scene.read((slice(0, height + 1), slice(0, width)))


def test_the_digest_is_that_of_the_content(scene, products):
    assert open_scene(Source(uri=scene.uri)).digest == scene.digest
    assert len(scene.digest) == 64


@pytest.mark.parametrize("name", sorted(BUILDERS))
def test_damage_ends_in_a_sentence_or_does_no_harm(products, tmp_path, name):
    """Bytes of the metadata, images and headers changed or missing: no error but the expected ones escapes."""
    rng = np.random.default_rng(list(name.encode()))
    source = products[name]
    source = source.parent if source.is_file() else source
    files = sorted(path.relative_to(source) for path in source.rglob("*") if path.is_file())
    # Metadata are where a reader has to understand most.
    texts = [path for path in files if path.suffix.lower() in {".xml", ".json", ".txt"}] or files
    refusals = 0
    for number in range(16):
        copy = tmp_path / str(number)
        shutil.copytree(source, copy)
        among = texts if number % 4 else files
        victim = copy / among[rng.integers(len(among))]
        raw = bytearray(victim.read_bytes())
        first = int(rng.integers(len(raw)))
        if number % 2:
            del raw[first : first + int(rng.integers(1, 60))]
        else:
            raw[first] = int(rng.choice(list(b"0129<>-.x")))
        victim.write_bytes(raw)
        place = next(copy.iterdir()) if products[name].is_file() else copy
        try:
            whole(open_scene(Source(uri=str(place))))
        except HyperFuseError:
            refusals += 1
    assert refusals
