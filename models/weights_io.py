"""Trained weights: safetensors only, checked by content, whole and finite.

A weight file says in its header (`metadata["hyperfuse"]`, a JSON object) for which network, bands, ratio and options it
was trained; see `catalogs.weight_cards.WeightCard`. Nothing is unpickled, ever.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from hyperfuse.models.spec import ModelSpec


def load_weights(path: Path) -> dict[str, torch.Tensor]:
    """All tensors of a weight file.

    Raises
    ------
    ValueError
        If the file is no safetensors file, is cut short, or holds a value that is not finite; the caller names the file.
    """
    try:
        tensors: dict[str, torch.Tensor] = load_file(path)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"not a whole safetensors file ({error}); fetch it again, or convert it with "
                         "`hyperfuse import-weights`") from error  # fmt: skip
    for name, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise ValueError(f"{name} holds values that are not finite; the file is damaged or training diverged")
    return tensors


def take_weights(network: torch.nn.Module, spec: ModelSpec, weights: Mapping[str, torch.Tensor] | None) -> None:
    """Give a network all its tensors, and no other; None leaves those that it has.

    Raises
    ------
    ValueError
        If a tensor is missing, unknown or of another shape.
    """
    if weights is None:
        return
    try:
        network.load_state_dict(weights, strict=True)
    except RuntimeError as error:  # lists every key that does not fit
        raise ValueError(f"these are not weights of {spec.name} with {dict(spec.options)}: {error}") from error
