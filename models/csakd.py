"""CSAKD: four convolutional streams, two at each resolution, fused by gates; teacher and distilled student.

Paper: Hsu et al. (2024), CSAKD: knowledge distillation with cross self-attention for hyperspectral and multispectral
image fusion, arXiv 2406.19666.
Code: reimplemented for HyperFuse from a description of the released code (MIT, (c) 2024 Chia-Ming Lee); nothing copied.

Notes
-----
Certain, from the released code: the graph, all widths, parameter and MAC counts, which the tests hold as anchors.
As released, the attention does not depend on queries and keys: its second sum runs over softmax weights and values
separately, and softmax rows sum to 1. `attention="released"` computes what remains, a linear 1x1 map of the value
stream; the query and key layers are kept for checkpoints and counts, and never run. `attention="channel"` is a
reconstruction of what was intended: attention among the channels of a head, over all pixels of the scene. Its rows are
normalized and it has one learned temperature per head, since raw products would grow with the number of pixels.

Generalization to C bands, c >= 1 bands and an integer ratio: growth = max(1, (C + 2) // 4) and width = 2 * growth, so
172 bands give 43 and 86; a grouped unit has `growth` groups, which divide every width in it. Heads stay at 4 x 16
channels. Upsampling is bilinear, or nearest after the coarse streams; downsampling is bicubic with a = -3/4 and without
antialiasing, as released: four taps inside the coarse pixel for an even ratio of 4 or more, reaching one fine pixel
beyond it for ratio 2, and for an odd ratio the central fine pixel alone.

Layers that commute with nearest upsampling run at the coarse resolution: same numbers, a `ratio ** 2`-th of the work.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

import torch
from torch import nn
from torch.nn import functional

from hyperfuse.models._dense import GROUP_REACH, DenseUnit, Group
from hyperfuse.models._released import from_released, growth_of, to_released
from hyperfuse.models._winograd import SLOPE, convolve
from hyperfuse.models.spec import MethodCard, ModelSpec, Observed, TwoRateSpec
from hyperfuse.models.weights_io import take_weights

__all__ = ["CARD", "LOSSES", "VARIANTS", "build", "first_pass", "from_released", "specify", "to_released"]

CARD = MethodCard(
    title="Cross self-attention fusion of two-streamed networks, with distillation",
    paper="Hsu et al. (2024), CSAKD: knowledge distillation with cross self-attention for hyperspectral and "
    "multispectral image fusion, arXiv:2406.19666",
    code="HyperFuse, Apache-2.0, after a description of https://github.com/ming053l/CSAKD (MIT, (c) 2024 Chia-Ming Lee)",
    weights="https://github.com/ming053l/CSAKD",
)
VARIANTS: Mapping[str, Mapping[str, Any]] = {
    "teacher": {"layers": [6, 6, 4, 4], "grouped": False},
    "student": {"layers": [0, 4, 4, 1], "grouped": True},
}
LOSSES: Mapping[str, float] = {"pixel": 1.0, "sam": 0.1, "beba": 0.1}
"""Terms of `models.losses` that the paper trains with; a student learns from its teacher besides."""
HEADS, HEAD_WIDTH = 4, 16
_SEED = 1029
_TAIL_REACH = 2  # of the two output convolutions


class Fusion(nn.Module):
    """Attention and gates over the four streams; coarse streams stay coarse as long as the numbers allow it."""

    def __init__(self, width: int, *, attention: str, concatenated: bool) -> None:
        super().__init__()
        inner = HEADS * HEAD_WIDTH
        self.query = nn.Conv2d(width, inner, kernel_size=1)
        self.key = nn.Conv2d(width, inner, kernel_size=1)
        self.value = nn.Conv2d(width, inner, kernel_size=1)
        self.output = nn.Conv2d(inner, width, kernel_size=1)
        self.gate = nn.Conv2d(4 * width, 4, kernel_size=1)
        self.temperature = nn.Parameter(torch.ones(HEADS)) if attention == "channel" else None
        self.skip = nn.Conv2d(width, width, kernel_size=1) if concatenated else None
        self.merge = nn.Conv2d(2 * width, width, kernel_size=1) if concatenated else None
        self.sums: Mapping[str, torch.Tensor] | None = None

    def forward(
        self, from_hsi: torch.Tensor, from_msi: torch.Tensor, coarse_both: torch.Tensor, fine_both: torch.Tensor
    ) -> torch.Tensor:
        """Streams (N, F, h, w), (N, F, H, W), (N, F, h, w), (N, F, H, W) -> (N, F, H, W)."""
        attended = self._attended(self._mixing(from_hsi, from_msi), coarse_both)  # (N, F, h, w)
        ratio = from_msi.shape[-1] // from_hsi.shape[-1]
        if self.skip is not None and self.merge is not None:
            # Two 1x1 maps in a row are one.
            _, merging = self.merge.weight.chunk(2, dim=1)
            weight = torch.einsum("abyx,bcyx->acyx", merging, self.skip.weight)
            fine_both = functional.conv2d(fine_both, weight)
        gates = self.gate.weight.chunk(4, dim=1)  # (4, F, 1, 1) for each stream
        coarse = functional.conv2d(from_hsi, gates[0], self.gate.bias)
        coarse = coarse + functional.conv2d(coarse_both, gates[2]) + functional.conv2d(attended, gates[3])
        fine = functional.conv2d(from_msi, gates[1]) + functional.conv2d(fine_both, gates[3])
        gate = (fine + _nearest(coarse, ratio)).sigmoid()  # (N, 4, H, W)
        fused = gate[:, 1:2] * from_msi
        fused = fused.addcmul_(gate[:, 3:4], fine_both).addcmul_(gate[:, :1], _nearest(from_hsi, ratio))
        fused = fused.addcmul_(gate[:, 2:3], _nearest(coarse_both, ratio))
        return fused.addcmul_(gate[:, 3:4], _nearest(attended, ratio))

    def scene_sums(
        self, from_hsi: torch.Tensor, from_msi: torch.Tensor, valid: torch.Tensor | None = None
    ) -> dict[str, torch.Tensor]:
        """Sums over fine pixels per head: `gram` (N, 4, 16, 16) of queries and keys, squared norms (N, 4, 16)."""
        ratio = from_msi.shape[-1] // from_hsi.shape[-1]
        area = ratio**2
        query, key = self.query(from_hsi), self.key(from_msi)  # (N, 64, h, w), (N, 64, H, W)
        pooled = functional.avg_pool2d(key, ratio) * area
        energy = functional.avg_pool2d(key.square(), ratio) * area
        if valid is not None:  # a coarse pixel counts with all its fine ones, or not at all
            query, pooled, energy = (t * valid[:, None].to(t) for t in (query, pooled, energy))
        query, pooled, energy = (
            t.double().reshape(t.shape[0], HEADS, HEAD_WIDTH, -1) for t in (query, pooled, energy)
        )  # (N, 4, 16, h * w)
        return {
            "gram": query @ pooled.transpose(-1, -2),
            "query": query.square().sum(dim=-1) * area,
            "key": energy.sum(dim=-1),
        }

    def _mixing(self, from_hsi: torch.Tensor, from_msi: torch.Tensor) -> torch.Tensor:
        """Weights of values in a head's outputs, shape (N or 1, 4, 16, 16)."""
        if self.temperature is None:  # as released: every output is the sum of its head's values
            return from_hsi.new_ones(1, HEADS, HEAD_WIDTH, HEAD_WIDTH)
        sums = self.scene_sums(from_hsi, from_msi) if self.sums is None else self.sums
        gram, query, key = (sums[name].to(from_hsi.device).double() for name in ("gram", "query", "key"))
        norms = (query[..., :, None] * key[..., None, :]).clamp_min(1e-24).sqrt()
        mixing = (gram / norms * self.temperature[:, None, None]).softmax(dim=-1).to(from_hsi)
        return mixing.expand(1, -1, -1, -1) if mixing.ndim == 3 else mixing

    def _attended(self, mixing: torch.Tensor, coarse_both: torch.Tensor) -> torch.Tensor:
        """Value layer, attention and output layer as one linear map per pixel: (N, F, h, w) -> the same."""
        output, bias = _pixelwise(self.output)  # (F, 64), (F,)
        if self.skip is not None and self.merge is not None:
            merge, merge_bias = _pixelwise(self.merge)
            merging, skipping = merge.chunk(2, dim=1)
            bias = merging @ bias + skipping @ _pixelwise(self.skip)[1] + merge_bias
            output = merging @ output
        heads = output.unflatten(1, (HEADS, HEAD_WIDTH))  # (F, 4, 16)
        value, value_bias = (t.unflatten(0, (HEADS, HEAD_WIDTH)) for t in _pixelwise(self.value))  # (4, 16, F), (4, 16)
        outputs = torch.einsum("fhi,nhij->nfhj", heads, mixing)
        weight = torch.einsum("nfhj,hjg->nfg", outputs, value)
        shift = torch.einsum("nfhj,hj->nf", outputs, value_bias) + bias
        n_images, _, height, width = coarse_both.shape
        mapped = weight.expand(n_images, -1, -1) @ coarse_both.flatten(2) + shift[..., None]  # (N, F, h * w)
        return mapped.reshape(n_images, -1, height, width)


class CSAKD(nn.Module):
    """Four streams and their fusion; a `models.TwoRateModel`. S3RNet is this network in another dress."""

    nominal_fine_layers = ("query", "key", "value", "output", "gate", "skip", "merge")
    """Layers of `fusion` that its paper draws at the fine resolution, wherever they run; for counting MACs."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self.spec = spec
        seen, options = spec.observed, spec.options
        growth = options.get("growth") or growth_of(seen.hsi_bands)
        width = 2 * growth
        n_fine_both, n_coarse_both, n_hsi, n_msi = options["layers"]

        def stream(n_in: int, n_groups: int, *, groups: int = 1) -> nn.ModuleDict:
            head = [
                nn.Conv2d(width if i else n_in, width, kernel_size=3, padding=1) for i in range(options["head_convs"])
            ]
            blocks = nn.Sequential(*(Group(width, growth, groups=groups) for _ in range(n_groups)))
            return nn.ModuleDict({"head": nn.ModuleList(head), "groups": blocks})

        both = seen.hsi_bands + seen.msi_bands
        self.fine_both = stream(both, n_fine_both)
        self.coarse_both = stream(both, n_coarse_both)
        self.from_hsi = stream(seen.hsi_bands, n_hsi, groups=growth if options["grouped"] else 1)
        self.from_msi = stream(seen.msi_bands, n_msi)
        self.fusion = Fusion(width, attention=options["attention"], concatenated=options["concatenated"])
        self.expand = nn.Conv2d(width, seen.hsi_bands, kernel_size=3, padding=1)
        self.last = nn.Conv2d(seen.hsi_bands, seen.hsi_bands, kernel_size=3, padding=1, bias=False)

    def forward(
        self, hsi: torch.Tensor, msi: torch.Tensor, *, return_feature: bool = False
    ) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        """See `models.FusionModel`; with `return_feature` also the fused feature (N, width, H, W) for distillation."""
        feature = self._feature(hsi, msi, self.coarse(hsi, msi))
        return (self._tail(feature), feature) if return_feature else self._tail(feature)

    def coarse(self, hsi: torch.Tensor, msi: torch.Tensor) -> torch.Tensor:
        """Features of the coarse streams, first of both images, then of the HSI: (N, 2 * width, h, w)."""
        low = functional.interpolate(msi, size=hsi.shape[-2:], mode="bicubic", align_corners=False)
        both = _run(self.coarse_both, torch.cat([hsi, low], dim=1))
        return torch.cat([both, _run(self.from_hsi, hsi)], dim=1)

    def fine(self, hsi: torch.Tensor, msi: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
        """The fused window, from its images and the features of the same window."""
        return self._tail(self._feature(hsi, msi, features))

    def skipped(self) -> Iterator[nn.Module]:
        """Parts that are stored and never run."""
        if self.spec.options["dead_branch"]:
            yield self.fine_both["groups"]

    def head_streams(self, hsi: torch.Tensor, msi: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """What queries (N, width, h, w) and keys (N, width, H, W) are made of."""
        return _run(self.from_hsi, hsi), _run(self.from_msi, msi)

    def _feature(self, hsi: torch.Tensor, msi: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
        coarse_both, from_hsi = features.chunk(2, dim=1)
        draft = torch.cat([_bilinear(hsi, msi.shape[-1] // hsi.shape[-1]), msi], dim=1)  # (N, C + c, H, W)
        fine_both = _run(self.fine_both, draft, skip_groups=self.spec.options["dead_branch"])
        del draft
        result: torch.Tensor = self.fusion(from_hsi, _run(self.from_msi, msi), coarse_both, fine_both)
        return result

    def _tail(self, feature: torch.Tensor) -> torch.Tensor:
        return convolve(functional.leaky_relu_(convolve(feature, self.expand), SLOPE), self.last)


class ChannelPass:
    """Sums of the channel attention over valid pixels; a `models.FirstPass`."""

    def __init__(self, spec: ModelSpec, model: CSAKD) -> None:
        seen, head = spec.observed, spec.options["head_convs"]
        _, _, n_hsi, n_msi = spec.options["layers"]
        self.margin = max(head + GROUP_REACH * n_hsi, -(-(head + GROUP_REACH * n_msi) // seen.ratio))
        self._model = model

    def sums(
        self,
        hsi: torch.Tensor,
        msi: torch.Tensor,
        valid: torch.Tensor,
        origin: tuple[int, int] = (0, 0),  # noqa: ARG002 (it matters not where)
    ) -> dict[str, torch.Tensor]:
        """See `models.FirstPass.sums`; per head, over queries and keys of 16 channels each."""
        with torch.no_grad():
            model = self._model.to(hsi.device)
            per_image = model.fusion.scene_sums(*model.head_streams(hsi, msi), valid)
        return {name: value.sum(dim=0) for name, value in per_image.items()}


def specify(
    observed: Observed,
    *,
    layers: Sequence[int],
    grouped: bool,
    attention: str = "released",
    dead_branch: bool = False,
    head_convs: int = 1,
    concatenated: bool = False,
    growth: int | None = None,
) -> ModelSpec:
    """Needs of the network on this pair.

    Parameters
    ----------
    observed : Observed
    layers : sequence of 4 int
        Groups in the streams of both images at the fine and at the coarse resolution, of the HSI, and of the MSI.
    grouped : bool
        Whether the HSI's stream has grouped convolutions.
    attention : {"released", "channel"}
        What was released, or what was intended; the latter needs a first pass.
    dead_branch : bool
        Store the groups of the first stream, as the released student does, and skip them.
    head_convs : int
        Convolutions before the groups of each stream.
    concatenated : bool
        Join attention and first stream by concatenation and 1x1 layers, as S3RNet draws it, not by a sum.
    growth : int, optional
        Channels that a layer adds within a dense unit; the streams have twice as many. From the HSI's bands unless given.

    Raises
    ------
    ValueError
        If an option is none of these.
    """
    layers = [int(n) for n in layers]
    if len(layers) != 4 or min(layers) < 0 or head_convs < 1:
        raise ValueError(
            f"layers are four counts of groups and head_convs is at least 1, got {layers} and {head_convs}"
        )
    if attention not in ("released", "channel"):
        raise ValueError(f"there is no attention {attention!r}; choose 'released' or 'channel'")
    if growth is not None and growth < 1:
        raise ValueError(f"growth must be at least 1, got {growth}")
    options = {"layers": layers, "grouped": grouped, "attention": attention, "dead_branch": dead_branch,
               "head_convs": head_convs, "concatenated": concatenated}  # fmt: skip
    if growth is not None:  # not among the options of weights that were made before it was one
        options["growth"] = growth
    n_fine_both, n_coarse_both, n_hsi, n_msi = (head_convs + GROUP_REACH * n for n in layers)
    if dead_branch:
        n_fine_both = head_convs
    ratio = observed.ratio
    taps_beyond = int(ratio == 2)  # the bicubic taps leave the coarse pixel
    coarse = max(n_coarse_both + taps_beyond, n_hsi)
    # A fine pixel n px outside a window reads the bilinear surface between the coarse centers on both of its sides.
    bilinear = -(-(2 * (n_fine_both + _TAIL_REACH) - 1 + ratio) // (2 * ratio))
    fine = max(bilinear, -(-(n_msi + _TAIL_REACH) // ratio), -(-_TAIL_REACH // ratio))
    halo = max(coarse + -(-_TAIL_REACH // ratio), fine)
    # An MSI pixel at one rim of its coarse pixel moves features as far as the other rim of the last one reached.
    msi_reach = max(
        ratio * n_coarse_both + (ratio - 1) + taps_beyond * ratio + _TAIL_REACH, max(n_fine_both, n_msi) + _TAIL_REACH
    )
    growth = growth or growth_of(observed.hsi_bands)
    spec = ModelSpec(
        name="csakd", observed=observed, halo=halo, hsi_reach=halo, msi_reach=msi_reach, options=options,
        needs_first_pass=attention == "channel", needs_weights=True, symmetric_range=True, tile=1024,
        two_rate=TwoRateSpec(coarse_halo=coarse, fine_halo=fine, channels=4 * growth),
        band_copies=4.5, work_floats=500, parameters=0,
    )  # fmt: skip
    return _counted(spec)


def first_pass(spec: ModelSpec, weights: Mapping[str, torch.Tensor] | None = None) -> ChannelPass:
    """Sums of the channel attention, which depend on the weights."""
    return ChannelPass(spec, build(spec, None, weights))


def build(
    spec: ModelSpec, sums: Mapping[str, torch.Tensor] | None, weights: Mapping[str, torch.Tensor] | None = None
) -> CSAKD:
    """The network in evaluation mode; without weights with seeded random ones.

    Without sums the channel attention, if asked for, sums over its own input, which then must be a whole scene.

    Raises
    ------
    ValueError
        If weights or sums do not fit; the message names the tensors.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(_SEED)
        model = CSAKD(spec)
        for module in model.modules():
            if isinstance(module, DenseUnit):
                module.initialize()
    take_weights(model, spec, weights)
    if spec.needs_first_pass and sums is not None:
        missing = {"gram", "query", "key"} - set(sums)
        if missing:
            raise ValueError(
                f"{spec.name} needs the sums of its first pass over the scene; {sorted(missing)} are missing"
            )
        model.fusion.sums = dict(sums)
    return model.eval()


def _pixelwise(layer: nn.Conv2d) -> tuple[torch.Tensor, torch.Tensor]:
    """Weight matrix and bias of a 1x1 convolution."""
    return layer.weight[..., 0, 0], cast("torch.Tensor", layer.bias)


def _run(stream: nn.ModuleDict, x: torch.Tensor, *, skip_groups: bool = False) -> torch.Tensor:
    """Head and groups of one stream."""
    for conv in cast("nn.ModuleList", stream["head"]):
        x = functional.leaky_relu_(convolve(x, cast("nn.Conv2d", conv)), SLOPE)
    result: torch.Tensor = x if skip_groups else stream["groups"](x)
    return result


def _nearest(coarse: torch.Tensor, ratio: int) -> torch.Tensor:
    """Each coarse pixel as a block of fine ones: (N, C, h, w) -> (N, C, H, W)."""
    height, width = coarse.shape[-2:]
    return functional.interpolate(coarse, size=(height * ratio, width * ratio), mode="nearest")


def _bilinear(coarse: torch.Tensor, ratio: int) -> torch.Tensor:
    """Bilinear upsampling, pixel is area, the rim repeated: (N, C, h, w) -> (N, C, H, W).

    The library's own rounds the position of a pixel, so that its weights depend on where a window begins unless the
    ratio is a power of two; here a pixel's weights come from its phase.
    """
    if ratio & (ratio - 1) == 0:
        return functional.interpolate(coarse, scale_factor=ratio, mode="bilinear", align_corners=False)
    return _bilinear_axis(_bilinear_axis(coarse, ratio, -2), ratio, -1)


def _bilinear_axis(x: torch.Tensor, ratio: int, axis: int) -> torch.Tensor:
    size = x.shape[axis]
    before = torch.cat([x.narrow(axis, 0, 1), x.narrow(axis, 0, size - 1)], dim=axis)
    after = torch.cat([x.narrow(axis, 1, size - 1), x.narrow(axis, size - 1, 1)], dim=axis)
    offsets = [(2 * phase + 1 - ratio) / (2 * ratio) for phase in range(ratio)]  # from the coarse center, coarse px
    parts = [torch.lerp(x, before if offset < 0 else after, abs(offset)) for offset in offsets]
    after_axis = x.ndim + axis + 1
    return torch.stack(parts, dim=after_axis).flatten(after_axis - 1, after_axis)  # size -> (size, ratio) -> one axis


def _counted(spec: ModelSpec) -> ModelSpec:
    """The spec with the number of its parameters."""
    with torch.device("meta"):
        model = CSAKD(spec)
    n_stored = sum(p.numel() for p in model.parameters())
    return replace(spec, parameters=n_stored - sum(p.numel() for part in model.skipped() for p in part.parameters()))
