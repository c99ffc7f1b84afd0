"""An archive: a catalogue of scenes, a folder of products, and the settings that lead from one to the other.

The folder of an archive holds

    <scene>/             the product of each HSI scene, under the scene's identifier
    deadletter/          why the others have none: see `pipeline.archive.dead_letters`
    index.html           all of them at a glance
    catalog/             STAC catalogue of the products, where that of the scenes was made by others and is only read
    .archive/lock        held by the night that works here; the kernel releases it when the process dies

and nothing else decides what is to be done: states follow from the catalogue's items, the products' provenance and the
dead letters, whoever made them and whatever became of a scheduler's database.
"""

from __future__ import annotations

import copy
import hashlib
import re
from collections.abc import Mapping
from dataclasses import asdict
from datetime import datetime, time, timedelta
from functools import cached_property
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from hyperfuse.catalogs.addresses import refuse_secrets
from hyperfuse.catalogs.errors import UsageError
from hyperfuse.catalogs.pairing.ranking import PairingRules
from hyperfuse.catalogs.sensors import available
from hyperfuse.catalogs.stac.catalog import Catalog
from hyperfuse.catalogs.stac.fused_products import PRODUCTS
from hyperfuse.catalogs.stac.items import SceneItem
from hyperfuse.pipeline.archive.built_from import CHANGES, Change
from hyperfuse.pipeline.config import (
    RunConfig,
    SceneConfig,
    current_names,
    load_config,
    read_mapping,
    usage_error,
)

DEAD_LETTERS = "deadletter"
"""Folder of the dead letters, beside the products."""
_PLAIN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,119}")
OWN_CATALOG = "catalog"
"""Folder of the archive's own catalogue of products, beside them."""
_TAKEN = {DEAD_LETTERS, OWN_CATALOG, "index.html", "manifest", "provenance"}


class ArchiveConfig(BaseModel):
    """Everything that decides a night of an archive, checked whole before anything is opened."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)

    catalog: str = Field(min_length=1)
    """Folder of a static STAC catalogue, or URL of a STAC API."""
    output: Path
    """Folder of the products, one for each HSI scene; made if its parent exists."""
    roots: tuple[Path, ...] = ()
    """Folders besides the catalogue's own in which its scenes may lie."""
    settings: dict[str, Any] = {}
    """Settings of every fusion, as in `hyperfuse fuse --config`, dotted or nested, without hsi.uri, msi.uri and output."""
    sensors: dict[str, dict[str, Any]] = {}
    """Settings laid over these for the HSI scenes of one sensor (`enmap`), and over those for one pair of sensors
    (`enmap+sentinel2`): a network's weights fit one pair only."""
    rules: PairingRules = PairingRules()
    """What a partner must fulfil."""
    stale: tuple[Change, ...] = CHANGES
    """Changes that make a product stale. `code` is the code that decides samples; without it, an update of this software leaves
    products as they are."""
    max_scenes: int | None = Field(default=None, ge=0)
    """Scenes that a night starts at most."""
    until: str | None = None
    """Time of day HH:MM of this machine's clock, or ISO 8601 time, by which scenes must be expected to end to be started."""
    attempts: int = Field(default=3, ge=1, le=100)
    """Nights that try a scene whose disk, network, memory or device failed, before it is quarantined."""
    devices: tuple[str, ...] = Field(default=("auto",), min_length=1)
    """Devices that work at the same time, a scene each."""
    timeout_hours: float = Field(default=24.0, gt=0)
    """A scene that takes longer is stopped and counts as failed; its finished tiles stay."""

    @field_validator("*", mode="before")
    @classmethod
    def _no_secrets(cls, value: object) -> object:
        return refuse_secrets(value)

    @field_validator("until", mode="before")
    @classmethod
    def _is_a_time(cls, value: object) -> object:
        if isinstance(value, int) and not isinstance(value, bool):
            value = f"{value // 60:02d}:{value % 60:02d}"  # YAML 1.1 reads 22:30 as a number of base 60
        if isinstance(value, str):
            _parsed(value)
        return value

    @cached_property
    def folder(self) -> Path:
        """The folder of the products, absolute."""
        return self.output.absolute()

    def deadline(self, now: datetime) -> datetime | None:
        """When the night must have ended, if that was asked for; `now` is aware, and so is the answer."""
        if self.until is None:
            return None
        end = _parsed(self.until)
        if isinstance(end, datetime):
            return end.astimezone(now.tzinfo)
        local = now.astimezone()
        today = datetime.combine(local.date(), end).astimezone()
        return today if today > local else datetime.combine(local.date() + timedelta(days=1), end).astimezone()


class Recipes:
    """RunConfigs of the pairs of an archive; settings are checked once for each pair of sensors.

    Raises
    ------
    UsageError
        If a setting of any sensor is unknown or out of range.
    """

    def __init__(self, archive: ArchiveConfig) -> None:
        self._archive = archive
        self._bases: dict[tuple[str | None, str | None], RunConfig] = {}
        for key in archive.sensors:
            if unknown := [name for name in key.split("+") if name not in available()]:
                raise UsageError(
                    f"sensors.{key}: there is no sensor {unknown[0]!r}; choose from {', '.join(available())}"
                )
            hsi, _, msi = key.partition("+")
            self._base(hsi, msi or None)
        self._base(None, None)

    def config(self, hsi: SceneItem, msi: SceneItem, *, replace: bool = False) -> RunConfig:
        """The fusion of a pair.

        Raises
        ------
        UsageError
            If the catalogue's item of a scene says what no reader can use.
        """
        base = self._base(hsi.sensor, msi.sensor)
        publish = base.publish.model_copy(update={"replace": replace})
        return base.model_copy(
            update={
                "hsi": _scene(hsi, base.hsi),
                "msi": _scene(msi, base.msi),
                "output": self._archive.folder / folder_name(hsi.id),
                "publish": publish,
                "weights": None if base.weights is None else base.weights.absolute(),
            }
        )

    def _base(self, hsi: str | None, msi: str | None) -> RunConfig:
        if (hsi, msi) not in self._bases:
            layers = (
                self._archive.settings,
                *(self._archive.sensors.get(key, {}) for key in (hsi or "", f"{hsi}+{msi}")),
            )
            merged: dict[str, Any] = {}
            for layer in layers:
                merged |= current_names(_dotted(layer))
            # Addresses that no file has: those of the scenes take their place.
            placeholders = {"hsi.uri": "hsi", "msi.uri": "msi", "output": str(self._archive.folder / "scene")}
            self._bases[hsi, msi] = load_config(None, copy.deepcopy(merged) | placeholders)
        return self._bases[hsi, msi]


def load_archive(path: Path | None, settings: dict[str, Any]) -> ArchiveConfig:
    """An ArchiveConfig from a file, with single fields laid over it.

    Parameters
    ----------
    path : Path or None
        YAML, TOML or JSON.
    settings : dict
        Fields; `settings` and `rules` are laid over those of the file one by one, the others take their place.

    Raises
    ------
    UsageError
        If the file cannot be read, a key is unknown, or a value is out of range; the message names the key.
    """
    record = read_mapping(path) if path is not None else {}
    merged = {
        "settings": current_names(_dotted(_group(record, "settings")))
        | current_names(_dotted(settings.get("settings", {}))),
        "rules": _group(record, "rules") | settings.get("rules", {}),
    }
    try:
        archive = ArchiveConfig.model_validate(record | settings | merged)
    except ValidationError as error:
        raise usage_error(error) from error
    Recipes(archive)
    return archive


def open_catalog(archive: ArchiveConfig) -> Catalog:
    """The catalogue of an archive; besides its scenes, it may lead to the products."""
    return Catalog.open(archive.catalog, roots=(*archive.roots, archive.folder))


def product_catalog(archive: ArchiveConfig) -> Catalog:
    """The catalogue that products are added to: that of the scenes if it is ours, else one of the archive's own."""
    catalog = open_catalog(archive)
    return catalog if catalog.takes(PRODUCTS) else Catalog.open(archive.folder / OWN_CATALOG, roots=[archive.folder])


def folder_name(scene: str) -> str:
    """Name of a scene's product folder: its identifier, if that is a plain file name of its own."""
    if _PLAIN.fullmatch(scene) and scene not in _TAKEN:
        return scene
    plain = re.sub(r"[^A-Za-z0-9._+-]", "_", scene)[:100].lstrip("._+-") or "scene"
    return f"{plain}-{hashlib.sha256(scene.encode()).hexdigest()[:8]}"


def _scene(item: SceneItem, base: SceneConfig) -> SceneConfig:
    """What the catalogue says of a scene, with the user's settings over it."""
    told = {key: value for key, value in asdict(item.source()).items() if value is not None}
    asked = base.model_dump(exclude={"uri"}, exclude_none=True)
    try:
        return SceneConfig.model_validate(told | asked)
    except ValidationError as error:
        raise usage_error(error) from error


def _group(record: Mapping[str, Any], key: str) -> dict[str, Any]:
    found = record.get(key) or {}
    if not isinstance(found, dict):
        raise UsageError(f"setting {key}: expected a group of settings, found {found!r}")
    return found


def _dotted(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings with dotted keys, so that layers can be laid over each other one by one."""
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        if isinstance(value, Mapping):
            flat |= _dotted(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _parsed(until: str) -> time | datetime:
    try:
        return time.fromisoformat(until)
    except ValueError:
        pass
    try:
        return datetime.fromisoformat(until).astimezone()
    except ValueError as error:
        raise ValueError("expected a time of day such as 06:00, or a time such as 2026-11-22T06:00") from error
