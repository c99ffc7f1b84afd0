"""Cards of weight files: for which network, bands and ratio a file was trained, on what, and under which license."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from hyperfuse.catalogs.errors import InputRejected

HEADER_KEY = "hyperfuse"
"""Key of the card in the metadata of a safetensors header."""
_MAX_HEADER_BYTES = 100 * 2**20


@dataclass(frozen=True, kw_only=True)
class WeightCard:
    """What a weight file says of itself."""

    network: str
    """Method name, with its variant."""
    hsi_bands: int
    """0 in universal space, where any number serves; so with those below."""
    msi_bands: int
    ratio: int
    space: str = "native"
    """`native`, the bands and ratio above, or `universal`, see `models.universal`."""
    components: int = 0
    """Planes of the universal space."""
    ratios: list[int] = field(default_factory=list)
    """Ratios learnt from in universal space; others are served too."""
    center_nm: list[float] = field(default_factory=list)
    """Centers of the HSI bands learnt from, increasing; empty in universal space, and where nobody told them."""
    msi_center_nm: list[float] = field(default_factory=list)
    """Those of the MSI bands."""
    options: dict[str, Any] = field(default_factory=dict)
    """Options of the architecture."""
    source: str = ""
    """Where it comes from: training run, or the file it was converted from."""
    license: str = "unknown"
    """SPDX identifier."""
    training: dict[str, Any] = field(default_factory=dict)
    """How it was trained here: data, bands, simulation, scaling, losses, steps, scores, command; empty if elsewhere."""
    data_sha256: str = ""
    """Digest of the tensors' bytes, everything after the header: a flipped bit is a readable number, and this tells it."""
    sha256: str = ""
    """Digest of the file; not stored in it."""

    def header(self) -> dict[str, str]:
        """The card as metadata of a safetensors header."""
        record = asdict(self)
        del record["sha256"]
        return {HEADER_KEY: json.dumps(record, sort_keys=True)}


def read_card(path: Path) -> WeightCard:
    """The card of a weight file; reads the header and the digest, loads no tensor.

    Raises
    ------
    InputRejected
        If the file is missing, is no safetensors file, carries no card, or its tensors have changed since.
    """
    if path.exists() and not path.is_file():
        raise InputRejected(f"{path}: is no file, expected a safetensors weight file; name one")
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            # A header that claims more than the file holds is read to the file's end, and is then no JSON.
            header = json.loads(file.read(min(length, _MAX_HEADER_BYTES)))
            data = hashlib.file_digest(file, "sha256").hexdigest()
            file.seek(0)
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        metadata = header.get("__metadata__", {})
    except (OSError, ValueError, AttributeError, RecursionError) as error:
        raise InputRejected(
            f"{path}: not a safetensors weight file ({error}); convert it with `hyperfuse import-weights`"
        ) from error
    try:
        card = WeightCard(**json.loads(metadata[HEADER_KEY]), sha256=digest)
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise InputRejected(
            f"{path}: carries no card of HyperFuse ({error}), so its network and bands are unknown; convert it with "
            "`hyperfuse import-weights`"
        ) from error
    if card.data_sha256 != data:
        raise InputRejected(f"{path}: its tensors are not those that its card was written for; fetch the file again")
    return card
