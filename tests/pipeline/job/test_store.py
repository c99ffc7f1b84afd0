from __future__ import annotations

import numpy as np
import pytest

from hyperfuse.pipeline.geometry.box import Box
from hyperfuse.pipeline.job import store
from hyperfuse.pipeline.job.ledger import Ledger, TileRecord


def record(key: str) -> TileRecord:
    return TileRecord(
        key=key,
        sha256="0",
        pixels=4,
        valid=[4],
        total=[1.0],
        low=[0.0],
        high=[1.0],
        clipped=0,
        seconds=0.1,
        device="cpu",
    )


def test_only_whole_chunks_are_written(tmp_path):
    array = store.create_cube(tmp_path / "a.zarr", (2, 50, 70), 16)
    store.write(array, Box(y0=16, y1=50, x0=0, x1=32), np.ones((2, 34, 32), np.float32))
    with pytest.raises(ValueError, match="cut the chunks"):
        store.write(array, Box(y0=0, y1=20, x0=0, x1=16), np.ones((2, 20, 16), np.float32))
    assert np.isnan(store.read(array, Box(y0=0, y1=16, x0=0, x1=70))).all()


def test_digest_sees_a_changed_and_a_missing_chunk(tmp_path):
    folder = tmp_path / "a.zarr"
    array = store.create_cube(folder, (2, 32, 32), 16)
    box = Box(y0=0, y1=32, x0=0, x1=16)
    assert store.chunks_digest(folder, array, box) is None
    store.write(array, box, np.ones((2, 32, 16), np.float32))
    before = store.chunks_digest(folder, array, box)
    assert before == store.chunks_digest(folder, array, box)
    chunk = next(store.chunk_paths(folder, array, box))
    chunk.write_bytes(chunk.read_bytes()[:-1] + b"x")
    assert store.chunks_digest(folder, array, box) != before
    chunk.unlink()
    assert store.chunks_digest(folder, array, box) is None


def test_chunks_of_fill_value_are_written(tmp_path):
    """Otherwise a tile of nodata and a tile that was never computed look alike."""
    folder = tmp_path / "a.zarr"
    store.create_cube(folder, (1, 16, 16), 16)
    array = store.open_array(folder, write=True)
    box = Box(y0=0, y1=16, x0=0, x1=16)
    store.write(array, box, np.full((1, 16, 16), np.nan, np.float32))
    assert store.chunks_digest(folder, array, box) is not None


def test_attributes_must_be_finite(tmp_path):
    with pytest.raises(ValueError, match="finite"):
        store.create_group(tmp_path / "g.zarr", {"a": float("nan")})


def test_ledger_ignores_what_it_cannot_trust(tmp_path):
    ledger = Ledger(tmp_path / "tiles")
    assert ledger.records() == {}
    for key in ("0.0", "0.1", "1.0"):
        ledger.add(record(key))
    (tmp_path / "tiles/0.1.json").write_text('{"key": "0.1", "sha')
    (tmp_path / "tiles/9.9.json").write_text(record("1.0").model_dump_json())
    assert list(ledger.records()) == ["0.0", "1.0"]
    assert list(ledger.records(lambda found: found.key == "1.0")) == ["1.0"]
