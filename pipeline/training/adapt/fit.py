"""A universal network that is fitted to one scene: its steps, the best weights so far, and where it is on disk."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from hyperfuse.catalogs.errors import InputRejected
from hyperfuse.models import ModelSpec, universal
from hyperfuse.pipeline.fusion.weights import write_tensors
from hyperfuse.pipeline.training.checkpoint import under
from hyperfuse.pipeline.training.planes import Exercise

LEARNT, CHOOSING, DECIDING = 0, 1, 2
"""Parts of a scene: learnt from, choosing among the steps, and deciding in the end."""
_RATE = 3e-4
_HEADER_KEY = "hyperfuse-adaptation"


@dataclass(frozen=True, kw_only=True)
class AdaptSettings:
    """How a network is fitted to a scene."""

    minutes: float
    """Time to learn in, all runs together."""
    most_steps: int | None = None
    """Steps after which it ends before that."""
    patch: int = 8
    """Edge of a patch in coarse pixels of the trial."""
    batch: int = 8
    """Patches per step."""
    every: int = 25
    """Steps between two looks at the blocks that choose."""
    seed: int = 0
    """Of blocks and patches."""


class Fitting:
    """The network, its optimizer, and the best weights so far by the blocks that choose."""

    def __init__(
        self,
        shown: Exercise,
        part: NDArray[np.int8],
        *,
        spec: ModelSpec,
        start: Mapping[str, torch.Tensor] | None,
        settings: AdaptSettings,
        device: str,
    ) -> None:
        self._settings, self._device = settings, device
        self._ratio, self._corners = shown.ratio, shown.corners
        self._coarse, self._fine, self._residual = (
            plane.float().to(device) for plane in (shown.coarse, shown.fine, shown.residual)
        )
        self._learnt, self._choosing = (torch.from_numpy(part == which).to(device) for which in (LEARNT, CHOOSING))
        self._core = universal.build_core(spec, start).to(device)
        self._core.train()
        self._optimizer = torch.optim.AdamW(self._core.parameters(), lr=_RATE, weight_decay=0.0)
        self.step, self.seconds = 0, 0.0
        self.best, self.best_step, self._least = self._tensors(), 0, self._left()

    def steps(self) -> Iterator[int]:
        """Learn, step by step, until the time or the steps are spent."""
        settings = self._settings
        while self.seconds < 60 * settings.minutes and self.step < (settings.most_steps or self.step + 1):
            begun = time.monotonic()
            self._learn(np.random.default_rng((settings.seed, 1, self.step)))
            self.step += 1
            if self.step % settings.every == 0 and (left := self._left()) < self._least:
                self.best, self.best_step, self._least = self._tensors(), self.step, left
            self.seconds += time.monotonic() - begun
            yield self.step

    def save(self, path: Path) -> None:
        """Write where it is, whole or not at all."""
        kept = self._optimizer.state_dict()["state"]
        tensors = {f"now/{name}": value for name, value in self._tensors().items()}
        tensors |= {f"best/{name}": value for name, value in self.best.items()}
        tensors |= {
            f"moments/{number}/{kind}": torch.as_tensor(value).cpu()
            for number, moments in kept.items()
            for kind, value in moments.items()
        }
        record = {"settings": self._key(), "step": self.step, "seconds": self.seconds,
                  "best_step": self.best_step, "least": self._least}  # fmt: skip
        write_tensors(path, tensors, {_HEADER_KEY: json.dumps(record)})

    def restore(self, path: Path) -> None:
        """Take up where it was; raises InputRejected if that is of another adaptation, or damaged."""
        try:
            with safe_open(path, framework="pt") as file:
                record = json.loads(file.metadata()[_HEADER_KEY])
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
            if record["settings"] != self._key():
                raise InputRejected(f"{path}: is of another adaptation; remove it to begin anew")
            self._core.load_state_dict(under("now/", tensors), strict=True)
            moments: dict[int, dict[str, torch.Tensor]] = {}
            for name, value in under("moments/", tensors).items():
                number, _, kind = name.partition("/")
                moments.setdefault(int(number), {})[kind] = value
            self._optimizer.load_state_dict(self._optimizer.state_dict() | {"state": moments})
            self.best = under("best/", tensors)
            self.step, self.seconds = int(record["step"]), float(record["seconds"])
            self.best_step, self._least = int(record["best_step"]), float(record["least"])
        except (SafetensorError, OSError, KeyError, TypeError, ValueError, RuntimeError) as error:
            raise InputRejected(f"{path}: is no whole state of an adaptation ({error}); remove it") from error

    def _key(self) -> dict[str, Any]:
        """What must be the same to go on: not the time."""
        return asdict(replace(self._settings, minutes=0.0, most_steps=None))

    def _tensors(self) -> dict[str, torch.Tensor]:
        return {name: value.detach().cpu().clone() for name, value in self._core.state_dict().items()}

    def _learn(self, rng: np.random.Generator) -> None:
        """One step on patches of the scene, turned."""
        size, ratio = self._settings.patch, self._ratio
        cuts = []
        for row, col in self._corners[rng.integers(len(self._corners), size=self._settings.batch)]:
            turn = int(rng.integers(8))
            coarse = _turned(self._coarse[:, row : row + size, col : col + size], turn)
            fine = slice(row * ratio, (row + size) * ratio), slice(col * ratio, (col + size) * ratio)
            cuts.append(
                (
                    coarse,
                    _turned(self._fine[:, *fine], turn),
                    _turned(self._residual[:, *fine], turn),
                    _turned(self._learnt[None, *fine], turn),
                )
            )
        coarse, fine_planes, residual, learnt = (torch.stack(column) for column in zip(*cuts, strict=True))
        found = self._core(coarse, fine_planes)
        loss = ((found - residual).abs() * learnt).sum() / (learnt.sum() * found.shape[1]).clamp_min(1)
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self._optimizer.step()

    @torch.no_grad()
    def _left(self) -> float:
        """Mean absolute residual that is left on the blocks that choose."""
        self._core.eval()
        found = cast("torch.Tensor", self._core(self._coarse[None], self._fine[None]))[0]
        self._core.train()
        left = (found - self._residual).abs() * self._choosing
        return float(left.sum() / self._choosing.sum().clamp_min(1))


def _turned(planes: torch.Tensor, turn: int) -> torch.Tensor:
    """One of the eight symmetries of a square."""
    turned = torch.rot90(planes, turn % 4, dims=(-2, -1))
    return turned.flip(-1) if turn >= 4 else turned
