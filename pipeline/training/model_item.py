"""The card of a weight file as a STAC item with the machine learning model extension (MLM), for catalogs of models.

Nothing is in the item that the weight file does not say: the item can be made anew from it at any time.

References
----------
Charette-Migneault et al. (2024), Machine learning model specification for cataloging spatio-temporal models, 3rd ACM
SIGSPATIAL GeoSearch, doi:10.1145/3681769.3698586; extension version 1.5, https://github.com/stac-extensions/mlm.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from hyperfuse.catalogs.references.responses import SETS
from hyperfuse.catalogs.stac.build import cite_as, doi_of, item_record
from hyperfuse.catalogs.weight_cards import WeightCard, read_card
from hyperfuse.models import method

TASK = "super-resolution"
_ANY_TIME = {"datetime": None, "start_datetime": "1900-01-01T00:00:00Z", "end_datetime": "9999-12-31T23:59:59Z"}
_SETTINGS = ("simulation", "variations", "samples", "losses", "distill")
_NUMBERS = ("steps", "rate", "seed", "precision", "teacher", "best_step")


def model_item(path: Path, *, href: str | None = None) -> dict[str, Any]:
    """A weight file as a STAC item.

    Parameters
    ----------
    path : Path
        safetensors file with its card.
    href : str, optional
        Address of the file as the item gives it; its absolute file address unless given.

    Returns
    -------
    dict
        JSON; without a geometry, because a network belongs to no place.

    Raises
    ------
    InputRejected
        If it is no weight file with a card, or damaged.
    LookupError
        If its network is not known here.
    """
    card = read_card(path)
    about = method(card.network).card
    hsi, msi = _hsi_bands(card), _msi_bands(card)
    with safe_open(path, framework="pt") as file:
        n_parameters = sum(math.prod(file.get_slice(name).get_shape()) for name in file.keys())  # noqa: SIM118
    properties: dict[str, Any] = {
        **_ANY_TIME,
        "title": f"{card.network}: {about.title}",
        "description": _description(card),
        "license": card.license,
        "mlm:name": card.network,
        "mlm:architecture": about.title,
        "mlm:tasks": [TASK],
        "mlm:framework": "PyTorch",
        "mlm:framework_version": torch.__version__,
        "mlm:total_parameters": n_parameters,
        "mlm:accelerator": None,
        "mlm:input": [_input("hsi", card.hsi_bands, hsi, card), _input("msi", card.msi_bands, msi, card)],
        "mlm:output": [_output(card, hsi)],
        "mlm:hyperparameters": _hyperparameters(card),
        "sci:citation": about.paper,
        "hrhsi:ratio": card.ratio or card.ratios,
        "hrhsi:space": card.space,
    }
    if card.training:
        # A training here begins with random weights; of a file that was imported nobody told how.
        properties |= {"mlm:pretrained": False, "mlm:pretrained_source": None, "hrhsi:training": card.training}
    if bands := [*hsi, *msi]:
        properties["bands"] = bands
    if doi := doi_of(about.paper):
        properties["sci:doi"] = doi
    return item_record(
        f"{card.network}-{card.sha256[:12]}",
        None,
        properties,
        links=cite_as(about.paper),
        assets={
            "weights": {
                "href": href or path.absolute().as_uri(),
                "title": f"weights of {card.network}",
                "type": "application/octet-stream; framework=pytorch; format=safetensors",
                "roles": ["mlm:model", "mlm:weights"],
                "mlm:artifact_type": "safetensors.torch.save_file",
                "file:size": path.stat().st_size,
                "file:checksum": f"1220{card.sha256}",  # multihash: SHA-256, 32 bytes
                # The extension looks for bands in the properties, the core lets them stand there only if an asset has some.
                **({"bands": [{"name": band["name"]} for band in bands]} if bands else {}),
            }
        },
    )


def _hsi_bands(card: WeightCard) -> list[dict[str, Any]]:
    """Bands of the HSI by wavelength, which only trainings here tell."""
    centers = card.center_nm
    return [_band(f"{nm:g} nm", nm) for nm in centers] if len(centers) == card.hsi_bands else []


def _msi_bands(card: WeightCard) -> list[dict[str, Any]]:
    """Bands of the simulated MSI, as far as all of its set were seen."""
    known = SETS.get(card.training.get("simulation", {}).get("msi", ""))
    if known is None or len(known.responses) != card.msi_bands:
        return []
    return [_band(band.name, band.center_nm, band.fwhm_nm) for band in known.responses]


def _band(name: str, center_nm: float, fwhm_nm: float | None = None) -> dict[str, Any]:
    width = {} if fwhm_nm is None else {"eo:full_width_half_max": float(f"{fwhm_nm / 1000:.6g}")}
    return {"name": name, "eo:center_wavelength": float(f"{center_nm / 1000:.6g}"), **width}


def _structure(n_bands: int, bands: list[dict[str, Any]]) -> tuple[dict[str, Any], list[str]]:
    """Shape and axes of an array, and its bands' names; -1 is any number."""
    axes = ["batch", "bands" if bands else "channel", "height", "width"]
    shape = [-1, n_bands or -1, -1, -1]
    return {"shape": shape, "dim_order": axes, "data_type": "float32"}, [band["name"] for band in bands]


def _input(name: str, n_bands: int, bands: list[dict[str, Any]], card: WeightCard) -> dict[str, Any]:
    structure, names = _structure(n_bands, bands)
    size = f"{card.ratio} times the height and width of hsi" if card.ratio else "a whole multiple of hsi in size"
    told = {
        "hsi": "hyperspectral image of low resolution",
        "msi": f"multispectral image of high resolution, on the grid of the result: {size}",
    }
    scaling = card.training.get("scaling")
    return {
        "name": name,
        "description": told[name],
        "bands": names,
        "input": structure,
        "value_scaling": None
        if scaling is None
        else [{"type": "processing", "format": "text", "expression": str(scaling)}],
        "resize_type": None,
        "pre_processing_function": None,
    }


def _output(card: WeightCard, hsi: list[dict[str, Any]]) -> dict[str, Any]:
    structure, names = _structure(card.hsi_bands, hsi)
    return {
        "name": "fused",
        "description": "the bands of hsi on the pixels of msi, in the unit of hsi",
        "tasks": [TASK],
        "bands": names,
        "result": structure,
        "post_processing_function": None,
    }


def _hyperparameters(card: WeightCard) -> dict[str, Any]:
    """Options of the architecture, and settings of the training."""
    training = card.training
    told = {"ratio": card.ratio, "components": card.components} if card.space == "universal" else {"ratio": card.ratio}
    told |= {f"option.{key}": value for key, value in card.options.items()}
    for part in _SETTINGS:
        told |= {f"{part}.{key}": value for key, value in (training.get(part) or {}).items()}
    return told | {key: training[key] for key in _NUMBERS if training.get(key) is not None}


def _description(card: WeightCard) -> str:
    served = (
        f"any sensors, learnt at ratios {', '.join(map(str, card.ratios))}"
        if card.space == "universal"
        else f"{card.hsi_bands} HSI and {card.msi_bands} MSI bands at ratio {card.ratio}"
    )
    scores = card.training.get("scores") or {}
    shown = [
        f"{title} {scores[key]:.{digits}f} {unit}"
        for key, title, digits, unit in (("psnr_db", "PSNR", 2, "dB"), ("sam_deg", "SAM", 3, "degrees"))
        if scores.get(key) is not None
    ]
    held_out = f" On scenes that it did not learn from: {', '.join(shown)}." if shown else ""
    return f"Weights of {card.network} for {served}; {card.source or 'of unknown origin'}.{held_out}"
