"""CSAKD as it is drawn, step by step, on the parameters of a built model: slow, and easy to check."""

from __future__ import annotations

import torch
from torch.nn import functional


def lrelu(x):
    return functional.leaky_relu(x, 0.2)


def dense_unit(unit, x):
    maps = [x]
    for conv in unit.convs[:4]:
        maps.append(lrelu(conv(torch.cat(maps, dim=1))))
    return x + 0.2 * unit.convs[4](torch.cat(maps, dim=1))


def stream(parts, x, *, groups=True):
    for conv in parts["head"]:
        x = lrelu(conv(x))
    for group in parts["groups"] if groups else ():
        inner = x
        for unit in group.units:
            inner = dense_unit(unit, inner)
        x = x + 0.2 * inner
    return x


def attention(fusion, from_hsi, from_msi, both):
    """Attention over all pixels at the fine resolution, before the output layer."""
    query, key, value = (
        layer(x).unflatten(1, (4, 16)).flatten(3)  # (N, 4, 16, H * W)
        for layer, x in ((fusion.query, from_hsi), (fusion.key, from_msi), (fusion.value, both))
    )
    if fusion.temperature is None:
        weights = (torch.einsum("bhqx,bhkx->bhqk", query, key) / 4).softmax(dim=-1)
        out = torch.einsum("bhqk,bhvx->bhqx", weights, value)  # as released: k and v are summed apart
    else:
        query, key = (functional.normalize(t, dim=-1) for t in (query, key))
        logits = torch.einsum("bhqx,bhkx->bhqk", query, key) * fusion.temperature[:, None, None]
        out = torch.einsum("bhqk,bhkx->bhqx", logits.softmax(dim=-1), value)
    return out.flatten(1, 2).unflatten(2, from_msi.shape[-2:])


def plain(model, hsi, msi):
    """The output, for images that are a whole scene."""
    fine, coarse = msi.shape[-2:], hsi.shape[-2:]

    def nearest(x):
        return functional.interpolate(x, size=fine, mode="nearest")

    up = functional.interpolate(hsi, size=fine, mode="bilinear", align_corners=False)
    down = functional.interpolate(msi, size=coarse, mode="bicubic", align_corners=False)
    skip = model.spec.options["dead_branch"]
    fine_both = stream(model.fine_both, torch.cat([up, msi], dim=1), groups=not skip)
    coarse_both = nearest(stream(model.coarse_both, torch.cat([hsi, down], dim=1)))
    from_hsi = nearest(stream(model.from_hsi, hsi))
    from_msi = stream(model.from_msi, msi)
    fusion = model.fusion
    attended = fusion.output(attention(fusion, from_hsi, from_msi, coarse_both))
    if fusion.merge is None:
        fine_both = fine_both + attended
    else:
        fine_both = fusion.merge(torch.cat([attended, fusion.skip(fine_both)], dim=1))
    streams = [from_hsi, from_msi, coarse_both, fine_both]
    gates = fusion.gate(torch.cat(streams, dim=1)).sigmoid()
    fused = sum(gates[:, i : i + 1] * s for i, s in enumerate(streams))
    return model.last(lrelu(model.expand(fused)))
