"""S3RNet: the four streams of CSAKD under other names, with the fusion that its paper draws.

Paper: Hsu et al. (2025), Robust hyperspectral image pansharpening via sparse spatial-spectral representation, IGARSS,
2196-2201, doi:10.1109/IGARSS55030.2025.11243541, arXiv 2501.07953.
Code: reimplemented for HyperFuse from a description of the released code (MIT, (c) 2024 Chia-Ming Lee); nothing copied.

Notes
-----
Certain: the released code and all published numbers of this network are those of CSAKD's teacher; `published` is that
graph. Names here: streams Q, K, V, Z are CSAKD's of the HSI, of the MSI, of both at the coarse and of both at the fine
resolution; DFAB is the dense unit, (G)RG the (grouped) group, N_Q, N_K, N_V, N_Z the counts of groups.

`paper` follows the figures where they differ from the code: each stream begins with convolution, leaky ReLU and
convolution (an activation after the second is ours); the groups of Q are grouped (GRG); the attention among channels
works; its result is concatenated with Z after a 1x1 layer of Z's own, and a 1x1 layer leads back to the width; sigmoid
gates weigh the four features, which are summed. Reconstructed, since figures do not say it: the widths of these 1x1
layers (4 heads of 16 for the attention, the full width for Z), normalized rows and a temperature per head. A dense unit
ends in a concatenation read by its last convolution and a residual sum, in both. The counts of `paper` are therefore
ours; no published number belongs to it.

What holds for any number of bands and any ratio is written in `models.csakd`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from hyperfuse.models import csakd
from hyperfuse.models._released import from_released
from hyperfuse.models.csakd import LOSSES, build, first_pass
from hyperfuse.models.spec import MethodCard, ModelSpec, Observed

__all__ = ["CARD", "LOSSES", "VARIANTS", "build", "first_pass", "from_released", "specify"]

CARD = MethodCard(
    title="Sparse spatial-spectral representation",
    paper="Hsu et al. (2025), Robust hyperspectral image pansharpening via sparse spatial-spectral representation, "
    "arXiv:2501.07953",
    code="HyperFuse, Apache-2.0, after a description of https://github.com/ming053l/S3RNet (MIT, (c) 2024 Chia-Ming Lee)",
    weights="https://github.com/ming053l/S3RNet",
)
_GROUPS = [6, 6, 4, 4]  # N_Z, N_V, N_Q, N_K
VARIANTS: Mapping[str, Mapping[str, Any]] = {
    "paper": {"layers": _GROUPS, "grouped": True, "attention": "channel", "head_convs": 2, "concatenated": True},
    "published": {"layers": _GROUPS, "grouped": False},
}


def specify(observed: Observed, **options: Any) -> ModelSpec:
    """Needs of the network on this pair; see `models.csakd.specify` for the options."""
    return replace(csakd.specify(observed, **options), name="s3rnet")
