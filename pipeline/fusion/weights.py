"""Weight files: those that come with this software, those that fit a pair, and new ones.

Published checkpoints become weight files: read without executing anything, renamed, checked whole, given a card.
"""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save

from hyperfuse.catalogs.bands import Bands
from hyperfuse.catalogs.errors import InputRejected
from hyperfuse.catalogs.pairs import ScenePair
from hyperfuse.catalogs.weight_cards import WeightCard, read_card
from hyperfuse.models import Observed, method, universal
from hyperfuse.models.weights_io import load_weights
from hyperfuse.pipeline.job.folder import Job

log = logging.getLogger(__name__)

WEIGHTS = "weights.safetensors"
"""A job's copy of its network's weights."""
_WRAPPERS = ("_orig_mod.", "module.")
"""Prefixes that torch.compile and DataParallel leave in a saved state."""
_PROFILED = {"total_ops", "total_params"}
_MOST_NESTS = 4
_NESTS = (
    "params_ema", "ema_state_dict", "model_ema", "ema",
    "state_dict", "model_state_dict", "model_state", "model", "net", "network", "params",
)  # fmt: skip
"""Where training scripts keep a state; running means of the weights come before the last ones."""
_ROLES = ("student", "teacher")
"""Networks that are saved beside each other."""


def shipped_weights(network: str) -> Path | None:
    """Weights of a network that come with this software, None if there are none."""
    path = Path(str(files("hyperfuse.models"))) / "weights" / f"{network}.safetensors"
    return path if path.is_file() else None


def with_bands_of(weights: Path, pair: ScenePair) -> ScenePair:
    """The pair with those bands alone that weights were trained for; the others are marked as not good.

    Parameters
    ----------
    weights : Path
        Weight file. Of universal weights, and of a card that tells no band centers, the pair is given back as it is.
    pair : ScenePair

    Raises
    ------
    InputRejected
        If a band that the weights want is not in its image.
    """
    card = read_card(weights)
    scenes = []
    for role, scene, centers in (("HSI", pair.hsi, card.center_nm), ("MSI", pair.msi, card.msi_center_nm)):
        if not centers:
            scenes.append(scene)
            continue
        good = np.zeros(len(scene.bands), bool)
        good[_matching(centers, scene.bands, weights, f"{role} {scene.name}")] = True
        if n_left := int((scene.bands.good & ~good).sum()):
            log.info("%s: %d bands left out, which %s was not trained on", scene.name, n_left, weights.name)
        scenes.append(replace(scene, bands=replace(scene.bands, good=good)))
    if not card.center_nm and card.space == "native":
        log.warning(
            "%s: its card tells no band centers, so its %d HSI and %d MSI bands are taken for those of this pair by their "
            "number alone", weights, card.hsi_bands, card.msi_bands,
        )  # fmt: skip
    return replace(pair, hsi=scenes[0], msi=scenes[1])


def require_bands(weights: Path, card: WeightCard, bands: tuple[Bands, Bands] | None) -> None:
    """Refuse weights for images whose bands, of the right number, lie elsewhere.

    Parameters
    ----------
    weights : Path
    card : WeightCard
        Of the weights.
    bands : pair of Bands or None
        Those of HSI and MSI, all of them used; None if they are not known.

    Raises
    ------
    InputRejected
        With the first band that is missing, or in another place of the order.
    """
    if bands is None:
        return
    for role, own, centers in zip(("HSI", "MSI"), bands, (card.center_nm, card.msi_center_nm), strict=True):
        if centers and not np.array_equal(_matching(centers, own, weights, role), np.arange(len(own))):
            raise InputRejected(
                f"{weights}: its {role} bands come in another order than those of this image; sort them by wavelength"
            )


def _matching(centers: Sequence[float], bands: Bands, weights: Path, image: str) -> NDArray[np.intp]:
    """Positions of the good bands nearest to some centers, each within half its width of it and none taken twice."""
    good = np.flatnonzero(bands.good)
    nm, fwhm = bands.center_nm[good], bands.fwhm_nm[good]
    # A band whose width nobody tells is taken to be as wide as its neighbors are far.
    spacing = np.gradient(nm) if len(nm) > 1 else np.full(len(nm), 10.0)
    half = np.where(np.isfinite(fwhm), fwhm, np.maximum(spacing, 1.0)) / 2
    apart = np.abs(nm[None, :] - np.asarray(centers, float)[:, None])  # (wanted, good)
    nearest = apart.argmin(axis=1)
    missed = np.flatnonzero(apart.min(axis=1) > half[nearest])
    if len(missed):
        k = missed[0]
        raise InputRejected(
            f"{weights}: was trained on a band at {centers[k]:.1f} nm, and the nearest good one of {image} lies at "
            f"{nm[nearest[k]]:.1f} nm, more than half its width away ({len(missed)} of {len(centers)} bands are missing); choose "
            "weights that fit the sensor, or a method that needs none"
        )
    if len(set(nearest.tolist())) < len(nearest):
        raise InputRejected(
            f"{weights}: was trained on {len(centers)} bands, of which several fall on one band of {image}; choose weights that "
            "fit the sensor"
        )
    return np.asarray(good[nearest], np.intp)


def checked_card(weights: Path, network: str, observed: Observed) -> WeightCard:
    """The card of a weight file, if it is for this network and such pairs.

    Raises
    ------
    InputRejected
        If the file cannot be read, or is for another network, other bands or another ratio.
    """
    card = read_card(weights)
    if card.space == "universal":
        if card.network == network:
            return card
        raise InputRejected(
            f"{weights}: trained for {card.network}, expected {network}; choose the weights or the network that fits"
        )
    wanted = (network, observed.hsi_bands, observed.msi_bands, observed.ratio)
    found = (card.network, card.hsi_bands, card.msi_bands, card.ratio)
    if wanted != found:
        raise InputRejected(
            f"{weights}: trained for {found[0]} with {found[1]} HSI and {found[2]} MSI bands at ratio {found[3]}, expected "
            f"{wanted[0]} with {wanted[1]} and {wanted[2]} at ratio {wanted[3]}; choose weights or bands that fit"
        )
    return card


def require_fitting(weights: Path, card: WeightCard, observed: Observed) -> None:
    """Load all tensors of a weight file into its network once, before any time is spent on a scene.

    Parameters
    ----------
    weights : Path
    card : WeightCard
        As `checked_card` gives it.
    observed : Observed
        The pair.

    Raises
    ------
    InputRejected
        If a tensor is missing, unknown, of another shape or not finite, or if the card has options that the network has not.
    """
    chosen = method(card.network)
    try:
        tensors = load_weights(weights)
        spec = chosen.specify(observed, **card.options)
        if spec.base is None:
            chosen.build(spec, None, tensors)
        else:  # the whole method wants sums of a scene, the part that has weights does not
            universal.build_core(spec, tensors)
    except (ValueError, TypeError, LookupError, RuntimeError) as error:
        told = " ".join(str(error).split())[:300]
        raise InputRejected(
            f"{weights}: does not fit {card.network} ({told}); fetch the file again, or choose the network it was trained for"
        ) from error


def import_weights(checkpoint: Path, *, network: str, ratio: int, license_id: str, output: Path) -> WeightCard:
    """Convert a checkpoint that a network's authors published.

    Parameters
    ----------
    checkpoint : Path
        A file of `torch.save`; read with `weights_only=True`, so that it cannot run code.
    network : str
        Method name; its module must know the published names.
    ratio : int
        Ratio that it was trained for, which shapes do not tell.
    license_id : str
        SPDX identifier for the card.
    output : Path
        safetensors file; must not exist.

    Returns
    -------
    WeightCard

    Raises
    ------
    InputRejected
        If the file is no such checkpoint, or does not fit the network; nothing is written then.
    """
    if output.exists():
        raise InputRejected(f"{output}: exists; choose another name")
    chosen = method(network)
    convert = getattr(chosen.module, "from_released", None)
    if convert is None:
        raise InputRejected(f"{network}: no checkpoint of it was ever published in a form that is known here")
    state = _read(checkpoint, network)
    try:
        released = convert(state)
        _require_variant(network, released.options)
        observed = Observed(
            hsi_bands=released.hsi_bands, msi_bands=released.msi_bands, ratio=ratio, psf_sigma_px=ratio / 2
        )
        # Built once with the converted tensors: strict, so that nothing is missing and nothing is left over.
        spec = chosen.specify(observed, **released.options)
        chosen.build(spec, None, released.tensors)
    except (ValueError, KeyError) as error:
        raise InputRejected(
            f"{checkpoint}: does not fit {network} ({error}); name the network it was trained for"
        ) from error
    card = WeightCard(
        network=network,
        hsi_bands=released.hsi_bands,
        msi_bands=released.msi_bands,
        ratio=ratio,
        options=dict(spec.options),
        source=f"converted from {checkpoint.name}",
        license=license_id,
    )
    return save_weights(output, released.tensors, card)


def save_weights(path: Path, tensors: Mapping[str, torch.Tensor], card: WeightCard) -> WeightCard:
    """Write a weight file with its card, whole or not at all.

    Returns
    -------
    WeightCard
        The card with both digests.
    """
    plain = {name: tensor.detach().contiguous() for name, tensor in tensors.items()}
    # The tensors' bytes do not depend on the metadata, so their digest can be taken first and stored with it.
    blob = save(plain)
    header = 8 + int.from_bytes(blob[:8], "little")
    card = replace(card, data_sha256=hashlib.sha256(memoryview(blob)[header:]).hexdigest())
    write_tensors(path, plain, card.header())
    return read_card(path)


def write_tensors(path: Path, tensors: Mapping[str, torch.Tensor], header: Mapping[str, str] | None = None) -> None:
    """Write a safetensors file, whole or not at all, that survives a crash once it is seen.

    It is open to whoever may read new files here: `safetensors.torch.save_file` makes files that their owner alone can read,
    which is no use to a group, nor to workers that run as somebody else.
    """
    plain = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    temporary = path.with_name(f".{path.name}.partial")
    try:
        with temporary.open("wb") as file:
            file.write(save(plain, metadata=None if header is None else dict(header)))
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def is_published(network: str) -> bool:
    """Whether the authors of a network published weights that can be imported."""
    module = method(network).module
    variant = getattr(module, "VARIANTS", {}).get(network.partition("-")[2], {})
    # S3RNet as its paper draws it has more convolutions than what was released.
    return hasattr(module, "from_released") and variant.get("head_convs", 1) == 1


def _require_variant(network: str, found: Mapping[str, Any]) -> None:
    """Refuse a checkpoint whose layers are those of another network of the module.

    Raises
    ------
    ValueError
        Naming the network that it is of.
    """
    if not is_published(network):
        raise ValueError(f"no checkpoint of {network} was ever published")
    base, _, variant = network.partition("-")
    variants: Mapping[str, Mapping[str, Any]] = getattr(method(network).module, "VARIANTS", {})
    asked, layers = variants.get(variant, {}), ("layers", "grouped")
    alike = [name for name, other in variants.items() if all(other[key] == found[key] for key in layers)]
    # The released student stores its first stream, which is not run: then its layers say one thing and its groups another.
    stored = [*([0] if found.get("dead_branch") else found["layers"][:1]), *found["layers"][1:]]
    alike += [
        name for name, other in variants.items() if other["layers"] == stored and other["grouped"] == found["grouped"]
    ]
    if alike and variant not in alike:
        raise ValueError(f"its layers are those of {base}-{alike[0]}")
    if not alike and asked and asked["grouped"] != found["grouped"]:
        raise ValueError(f"its convolutions are {'' if found['grouped'] else 'not '}grouped, unlike those of {network}")


def _read(checkpoint: Path, network: str) -> dict[str, torch.Tensor]:
    """Tensors of a checkpoint by name; of one that holds student and teacher, those of the network's own part."""
    try:
        loaded: Any = torch.load(checkpoint, map_location="cpu", weights_only=True)
    except Exception as error:
        raise InputRejected(
            f"{checkpoint}: not a checkpoint of plain tensors ({str(error).splitlines()[0]}); nothing of it was executed"
        ) from error
    role = "student" if "student" in network else "teacher"
    for _ in range(_MOST_NESTS):
        nest = _nest(loaded, role, checkpoint)
        if nest is None:
            break
        log.info("%s: its part %s is taken", checkpoint, nest)
        loaded = loaded[nest]
    if isinstance(loaded, dict):
        # What a profiler left: counters, no weights.
        loaded = {name: value for name, value in loaded.items() if str(name).rpartition(".")[2] not in _PROFILED}
    if not isinstance(loaded, dict) or not all(isinstance(value, torch.Tensor) for value in loaded.values()):
        raise InputRejected(f"{checkpoint}: holds no mapping of names to tensors; give the authors' checkpoint itself")
    if bad := [name for name, value in loaded.items() if not torch.isfinite(value).all()]:
        raise InputRejected(f"{checkpoint}: {bad[0]} holds values that are not finite; the file is damaged")
    return _of_role({_unwrapped(str(name)): value for name, value in loaded.items()}, role, checkpoint)


def _nest(loaded: Any, role: str, checkpoint: Path) -> Any:
    """Key of the part that holds the network of a role, None where there are no parts.

    Raises
    ------
    InputRejected
        If it holds the network of the other role alone.
    """
    parts = [key for key, value in loaded.items() if isinstance(value, dict)] if isinstance(loaded, dict) else []
    by_role = {each: [key for key in parts if str(key).lower().startswith(each)] for each in _ROLES}
    if by_role[role]:
        return by_role[role][0]
    if any(by_role.values()):
        raise InputRejected(_of_other_role(checkpoint, role))
    return next((nest for nest in _NESTS if nest in parts), None)


def _of_role(state: dict[str, torch.Tensor], role: str, checkpoint: Path) -> dict[str, torch.Tensor]:
    """The network of a role out of a module that holds both; any other state as it is.

    Raises
    ------
    InputRejected
        If it holds the network of the other role alone.
    """
    if not state or not all(name.partition(".")[0] in _ROLES for name in state):
        return state
    own = {name.removeprefix(f"{role}."): value for name, value in state.items() if name.startswith(f"{role}.")}
    if not own:
        raise InputRejected(_of_other_role(checkpoint, role))
    return own


def _of_other_role(checkpoint: Path, role: str) -> str:
    other = next(each for each in _ROLES if each != role)
    return f"{checkpoint}: holds a {other} and no {role}; name a network that is a {other}"


def _unwrapped(name: str) -> str:
    for wrapper in _WRAPPERS:
        name = name.replace(wrapper, "")
    return name


def keep_weights(job: Job) -> None:
    """Copy the weights into the job's folder, which then is all that a worker on another machine needs.

    Raises
    ------
    InputRejected
        If the file has changed since the job began.
    """
    weights = job.config.weights or shipped_weights(job.config.method)
    if weights is None or job.record.weights is None:
        return
    kept = job.folder / WEIGHTS
    if not _holds(kept, job.record.weights["sha256"]):
        temporary = kept.with_suffix(".partial")
        shutil.copyfile(weights, temporary)
        temporary.replace(kept)
    if not _holds(kept, job.record.weights["sha256"]):
        kept.unlink()
        raise InputRejected(f"{weights}: has changed while this job began; run it again")


def _holds(kept: Path, sha256: str) -> bool:
    """Whether a copy of weights is there and whole."""
    try:
        return kept.is_file() and read_card(kept).sha256 == sha256
    except InputRejected:
        return False
