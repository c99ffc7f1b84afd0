"""Dead letters: why a scene of an archive has no current product, one small JSON file each, beside the products.

A letter counts only for the recipe it was written for. With other inputs, settings, weights or code the scene is new
again, so nobody has to tidy up after a repair; and losing the whole folder loses no more than the count of attempts.
"""

from __future__ import annotations

import json
import shlex
from datetime import datetime
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from hyperfuse.catalogs.formats.files import write_atomic
from hyperfuse.pipeline.archive.settings import DEAD_LETTERS, folder_name
from hyperfuse.pipeline.config import RunConfig

Verdict = Literal["refused", "failed", "quarantined"]


class DeadLetter(BaseModel):
    """What is known of a scene that ended without a product."""

    model_config = ConfigDict(frozen=True)

    scene: str
    """Identifier in the catalogue."""
    state: Verdict
    """`refused`: pointless to try again as it is. `failed`: the next night tries again. `quarantined`: only a person does."""
    reason: str
    """Reason code: that of the error's class, `no_partner`, `cloudy`, `outdated`, `killed` or `bug`."""
    message: str
    """One sentence to whoever must act: which file, what was found, what was expected, what to do."""
    files: tuple[str, ...] = ()
    """Inputs at fault; both of the pair where the message names neither."""
    observed: float | None = None
    """Figure that decided, where one figure did ..."""
    allowed: float | None = None
    """... and its limit."""
    attempts: int = 0
    """Nights that tried this recipe."""
    first: datetime
    """UTC, of the first attempt."""
    last: datetime
    """UTC, of the last one."""
    recipe: str | None
    """Digest of inputs, settings, weights and code; None where no pair was found."""
    replay: str
    """Command that tries again."""
    log: tuple[str, ...] = ()
    """Last lines that the run wrote, for ends that nobody expected."""


class DeadLetters:
    """The letters of one archive."""

    def __init__(self, products: Path) -> None:
        self.folder = products / DEAD_LETTERS
        # Listed once: most scenes of an archive have none, and are asked for one by one.
        self._names = {path.stem for path in self.folder.glob("*.json")} if self.folder.is_dir() else set()

    def __contains__(self, scene: str) -> bool:
        """Whether there is a letter on a scene."""
        return folder_name(scene) in self._names

    def scenes(self) -> list[str]:
        """Identifiers of all scenes on which there are letters that can be read, sorted."""
        letters = (self._read(name) for name in self._names)
        return sorted(letter.scene for letter in letters if letter is not None)

    def read(self, scene: str) -> DeadLetter | None:
        """The letter on a scene; a torn or foreign file counts as none."""
        return self._read(folder_name(scene)) if scene in self else None

    def write(self, letter: DeadLetter, config: RunConfig | None = None) -> None:
        """File a letter; with a configuration, the command that replays it names a file that holds it."""
        name = folder_name(letter.scene)
        kept = self._replay(name)
        kept.parent.mkdir(parents=True, exist_ok=True)
        if config is not None:
            write_atomic(kept, json.dumps(config.model_dump(mode="json"), indent=1), private=True)
            letter = letter.model_copy(update={"replay": f"hyperfuse fuse --config {shlex.quote(str(kept))}"})
        write_atomic(self.folder / f"{name}.json", letter.model_dump_json(indent=1))
        self._names.add(name)

    def remove(self, scene: str) -> None:
        """Forget the letter on a scene, if there is one."""
        if scene not in self:
            return
        name = folder_name(scene)
        for path in (self.folder / f"{name}.json", self._replay(name)):
            path.unlink(missing_ok=True)
        self._names.discard(name)

    def _read(self, name: str) -> DeadLetter | None:
        try:
            return DeadLetter.model_validate_json((self.folder / f"{name}.json").read_bytes())
        except (OSError, ValidationError):
            return None

    def _replay(self, name: str) -> Path:
        return self.folder / "replay" / f"{name}.json"
