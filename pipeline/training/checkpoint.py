"""Where a training is: weights, what the optimizers remember, the step and the best scores, in one safetensors file.

Nothing else is needed to go on, because samples and learning rates follow from seed and step. Lightning's own
checkpoints are not used: they are pickles, and do not resume within an epoch of samples without end.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open

from hyperfuse.catalogs.errors import InputRejected
from hyperfuse.pipeline.fusion.weights import write_tensors

if TYPE_CHECKING:  # it needs the optional Lightning, and this module does not
    from hyperfuse.pipeline.training.step import Learner

FILE = "state.safetensors"
_HEADER_KEY = "hyperfuse-training"


@dataclass(frozen=True, kw_only=True)
class Progressed:
    """What is known of a training besides its tensors."""

    key: str
    """`TrainConfig.key`: of which training."""
    step: int = 0
    """Batches learnt from."""
    best: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """By role: step and mean scores of the weights that are kept."""


def save_state(folder: Path, progressed: Progressed, learners: Sequence[Learner]) -> None:
    """Write the state, whole or not at all."""
    tensors: dict[str, torch.Tensor] = {}
    for learner in learners:
        tensors |= {f"{learner.role}/weights/{name}": value for name, value in learner.tensors().items()}
        tensors |= {f"{learner.role}/moments/{name}": value for name, value in learner.moments()}
        tensors |= {f"{learner.role}/average/{name}": value for name, value in (learner.average or {}).items()}
    record = {"key": progressed.key, "step": progressed.step, "best": progressed.best}
    write_tensors(folder / FILE, tensors, {_HEADER_KEY: json.dumps(record, sort_keys=True)})


def under(start: str, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The tensors whose names begin so, without that beginning."""
    return {name.removeprefix(start): tensor for name, tensor in tensors.items() if name.startswith(start)}


def load_state(folder: Path, key: str, learners: Sequence[Learner]) -> Progressed:
    """Take up the state of a folder; a folder without one begins at step 0.

    Raises
    ------
    InputRejected
        If it is the state of another training, or damaged.
    """
    path = folder / FILE
    if not path.is_file():
        return Progressed(key=key)
    try:
        with safe_open(path, framework="pt") as file:
            progressed = Progressed(**json.loads(file.metadata()[_HEADER_KEY]))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
        if progressed.key == key:
            for learner in learners:
                kinds = ("weights", "moments", "average")
                learner.restore(*(under(f"{learner.role}/{kind}/", tensors) for kind in kinds))
    except (SafetensorError, OSError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise InputRejected(
            f"{path}: is no whole state of a training ({error}); remove the folder to begin anew"
        ) from error
    if progressed.key != key:
        raise InputRejected(
            f"{folder}: holds a training with other settings; only output, device, devices, workers, tensorboard, steps, every "
            "and save_minutes may change between two runs, so choose another output"
        )
    return progressed
