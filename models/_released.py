"""Names of the tensors in the authors' CSAKD checkpoints, and ours.

Source of the names: https://github.com/ming053l/CSAKD, `models/KQD.py` (MIT, (c) 2024 Chia-Ming Lee); names only.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

_STREAMS = {"hm": "fine_both", "mh": "coarse_both", "h": "from_hsi", "m": "from_msi"}
_FUSION = {
    "query_conv": "query",
    "key_conv": "key",
    "value_conv": "value",
    "output_conv": "output",
    "attention_weights": "gate",
}
_OTHER_FUSIONS: Mapping[str, set[str]] = {
    "a plain sum (--adaptive_fuse 0)": set(),
    "learned weights of each channel (--adaptive_fuse 1)": {"weights"},
    "attention without gates (--adaptive_fuse 2)": {"query_conv", "key_conv", "value_conv", "output_conv"},
    "gates without attention (--adaptive_fuse 4)": {"attention_conv"},
}
_TAIL = {"fuse": "expand", "last": "last"}
_ROOT = "decoder."
_CONVOLUTION = re.compile(r"(hm|mh|h|m)feat\.(\d+)\.MFB([123])\.conv([1-5])\.(weight|bias)")


@dataclass(frozen=True, kw_only=True)
class ReleasedCheckpoint:
    """A published checkpoint under our names."""

    tensors: dict[str, torch.Tensor]
    hsi_bands: int
    msi_bands: int
    options: Mapping[str, Any]
    """Options of the architecture, read off the tensors."""


def from_released(state: Mapping[str, torch.Tensor]) -> ReleasedCheckpoint:
    """A published state under our names.

    The student stores the groups of its first stream and never runs them; they are kept, and skipped here too.

    Raises
    ------
    ValueError
        If a name is not one of the authors', a tensor that tells the architecture is missing, or the file is of a variant
        that is not built here.
    """
    own = {name.removeprefix(_ROOT): value for name, value in state.items()}
    _require_published_fusion(own)
    tensors = {_ours(name): value for name, value in own.items()}
    try:
        hsi_bands, msi_bands = tensors["last.weight"].shape[0], tensors["from_msi.head.0.weight"].shape[1]
        width = tensors["from_hsi.head.0.weight"].shape[0]
    except KeyError as error:
        raise ValueError(f"{error} is missing") from error
    fused = tensors["expand.weight"].shape[1] if "expand.weight" in tensors else width
    if fused != width:
        raise ValueError(
            f"its last layers work in {width // max(fused, 1)} groups (--groups of the training script), expected 1"
        )
    layers = [1 + max((int(m[1]) for m in _groups(tensors, stream)), default=-1) for stream in _STREAMS.values()]
    first = tensors.get("from_hsi.groups.0.units.0.convs.0.weight")
    grouped = first is not None and first.shape[1] < width
    options: dict[str, Any] = {"layers": layers, "grouped": grouped, "dead_branch": grouped and layers[0] > 0}
    if width != 2 * growth_of(hsi_bands):
        options["growth"] = width // 2
    return ReleasedCheckpoint(tensors=tensors, hsi_bands=hsi_bands, msi_bands=msi_bands, options=options)


def _require_published_fusion(own: Mapping[str, torch.Tensor]) -> None:
    """Refuse the authors' other ways to join the streams; the tensors do not name them, but tell them apart.

    Raises
    ------
    ValueError
        With the number that their training script gives it.
    """
    if "fuse.weight" not in own:  # no checkpoint of theirs at all
        return
    kinds = {name.split(".")[1] for name in own if name.startswith("fuse_att.")}
    if found := next((told for told, names in _OTHER_FUSIONS.items() if kinds == names), None):
        raise ValueError(
            f"its streams are joined by {found}, and only --adaptive_fuse 3, that of the published results, is built here"
        )


def growth_of(hsi_bands: int) -> int:
    """Growth of the dense units of a network for that many bands."""
    return max(1, (hsi_bands + 2) // 4)


def to_released(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Our state under the authors' names, below their `decoder.`."""
    streams, fusion, tail = ({ours: theirs for theirs, ours in names.items()} for names in (_STREAMS, _FUSION, _TAIL))
    renamed = {}
    for name, value in state.items():
        part, *rest = name.split(".")
        if part == "fusion":
            renamed[f"fuse_att.{fusion[rest[0]]}.{rest[1]}"] = value
        elif part in tail:
            renamed[f"{tail[part]}.{rest[0]}"] = value
        elif rest[0] == "head":
            renamed[f"{streams[part]}conv1.{rest[2]}"] = value
        else:
            _, group, _, unit, _, conv, kind = rest
            renamed[f"{streams[part]}feat.{group}.MFB{int(unit) + 1}.conv{int(conv) + 1}.{kind}"] = value
    return renamed


def _groups(tensors: Mapping[str, torch.Tensor], stream: str) -> list[re.Match[str]]:
    return [m for name in tensors if (m := re.match(rf"{stream}\.groups\.(\d+)\.", name))]


def _ours(name: str) -> str:
    if match := _CONVOLUTION.fullmatch(name):
        stream, group, unit, conv, kind = match.groups()
        return f"{_STREAMS[stream]}.groups.{group}.units.{int(unit) - 1}.convs.{int(conv) - 1}.{kind}"
    if match := re.fullmatch(r"(hm|mh|h|m)conv1\.(weight|bias)", name):
        return f"{_STREAMS[match[1]]}.head.0.{match[2]}"
    if (match := re.fullmatch(r"fuse_att\.(\w+)\.(weight|bias)", name)) and match[1] in _FUSION:
        return f"fusion.{_FUSION[match[1]]}.{match[2]}"
    if (match := re.fullmatch(r"(fuse|last)\.(weight|bias)", name)) and match[1] in _TAIL:
        return f"{_TAIL[match[1]]}.{match[2]}"
    raise ValueError(f"{name} is no tensor of a CSAKD checkpoint")
