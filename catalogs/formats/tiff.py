"""The directory of a TIFF file: what GDAL passes over in silence.

GDAL opens a truncated file and ignores tags that lie beyond its end, so that the scale can get lost with a mere
warning; and it reads blocks that were never written as zeros. The directory tells both without reading any block.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hyperfuse.catalogs.errors import InputRejected

_TYPE_BYTES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
_OFFSETS, _SIZES = (273, 324), (279, 325)  # tags of strips and of tiles
_MAX_TAGS = 65536


def unwritten_blocks(path: Path, inside: tuple[int, int] | None = None) -> float:
    """Share of the blocks of the first image that were never written, 0 to 1.

    `inside` is the first byte and the size of a TIFF that an archive stores as it is.

    Raises
    ------
    InputRejected
        If the directory, a tag or a block lies beyond the end of the file.
    """
    begin, size = inside or (0, path.stat().st_size)
    blocks = _blocks(path, begin, size)
    if blocks is not None:
        offsets, sizes = blocks
        # Each alone first: the sum of two numbers near 2^64 would wrap around.
        if np.all(offsets <= size) and np.all(sizes <= size) and np.all(offsets + sizes <= size):
            return float(np.mean(sizes == 0)) if sizes.size else 0.0
    raise InputRejected(
        f"{path}: parts of it lie beyond its end at {size} bytes; the file is truncated, fetch it again"
    )


def _blocks(path: Path, begin: int, size: int) -> tuple[NDArray[np.uint64], NDArray[np.uint64]] | None:
    """Offsets and sizes of the blocks; None if the directory or a tag is not all there."""
    with path.open("rb") as file:
        file.seek(begin)
        head = file.read(16)
        order = "<" if head[:2] == b"II" else ">"
        big = 43 in head[2:4]
        word = np.dtype(f"{order}u{8 if big else 4}")
        first = head[8:16] if big else head[4:8]
        if len(first) < word.itemsize or (start := int(np.frombuffer(first, word)[0])) >= size:
            return None
        file.seek(begin + start)
        n_tags = int.from_bytes(file.read(8 if big else 2), "little" if order == "<" else "big")
        tag = np.dtype([("id", f"{order}u2"), ("type", f"{order}u2"), ("count", word), ("value", f"V{word.itemsize}")])
        content = file.read(min(n_tags, _MAX_TAGS) * tag.itemsize)
        if not 0 < n_tags <= _MAX_TAGS or len(content) < n_tags * tag.itemsize:
            return None
        found = {}
        for entry in np.frombuffer(content, tag):
            inline: bytes = entry["value"].tobytes()
            width = _TYPE_BYTES.get(int(entry["type"]), 0)
            length = int(entry["count"]) * width
            start = int(np.frombuffer(inline, word)[0])
            if length > len(inline) and start + length > size:
                return None
            if int(entry["id"]) in (*_OFFSETS, *_SIZES):
                if width not in (2, 4, 8):
                    return None
                if length > len(inline):
                    file.seek(begin + start)
                values = file.read(length) if length > len(inline) else inline[:length]
                found[int(entry["id"])] = np.frombuffer(values, f"{order}u{width}").astype(np.uint64)
    return _either(found, _OFFSETS), _either(found, _SIZES)


def _either(found: dict[int, NDArray[Any]], tags: tuple[int, ...]) -> NDArray[np.uint64]:
    return next((found[tag] for tag in tags if tag in found), np.zeros(0, np.uint64))
