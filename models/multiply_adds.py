"""Multiply-adds of a network, counted the way papers do."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import nn

from hyperfuse.models.spec import ModelSpec, method


def macs(spec: ModelSpec, edge: int = 256) -> int:
    """Multiply-adds of the convolutions and linear layers on one image of `edge` fine pixels along each side.

    Notes
    -----
    Layers are counted as they are called, on tensors without data. Parts that are skipped do not count. Layers that a
    network runs at another place than its paper draws them, for speed, count where they are drawn (`nominal_fine_layers`
    once per fine pixel, `nominal_share` for all layers), so that the number is comparable with published ones. Products
    between activations count as the published counts have it: CSAKD's attention does not, HyFusion's windows do.

    Parameters
    ----------
    spec : ModelSpec
        Of a method found by name.
    edge : int
        Rounded up to what the network can take.

    Returns
    -------
    int
        0 for a method without weights.
    """
    module: Any = method(spec.name).module
    if not spec.needs_weights and spec.base is None:
        return 0
    with torch.device("meta"):
        # Of a universal network the core alone is one.
        model: Any = module.build(spec, None, None) if spec.base is None else module.bare_core(spec)
    if spec.base is not None:
        spec = module.core_spec(spec)
    seen = spec.observed
    step = seen.ratio * spec.multiple_of
    edge = -(-edge // step) * step
    nominal = set(getattr(model, "nominal_fine_layers", ()))
    total = 0

    def count(layer: nn.Module, _: Any, out: torch.Tensor) -> None:
        nonlocal total
        channel_axis = 1 if isinstance(layer, nn.Conv2d) else -1
        total += cast("torch.Tensor", layer.weight).numel() * out.numel() // out.shape[channel_axis]

    if (share := getattr(model, "nominal_share", None)) is not None:
        return sum(round(_per_pixel(layer) * share(name) * edge**2) for name, layer in model.named_modules())
    for name, layer in model.named_modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            if name.rpartition(".")[2] in nominal:
                total += layer.weight.numel() * edge**2
            else:
                layer.register_forward_hook(count)
    with torch.no_grad():
        model(
            torch.empty(1, seen.hsi_bands, edge // seen.ratio, edge // seen.ratio, device="meta"),
            torch.empty(1, seen.msi_bands, edge, edge, device="meta"),
        )
    return total


def _per_pixel(layer: nn.Module) -> int:
    """Multiply-adds of one layer per pixel of its own grid, without those of its parts."""
    if isinstance(layer, nn.Conv2d | nn.Linear):
        return layer.weight.numel()
    return int(getattr(layer, "attention_macs", 0))
