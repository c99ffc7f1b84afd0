"""The ways in which a scene can end without a product, each with the exit code of the command line.

Every message is one sentence to the person who must act: which file, what was found, what was expected, what to do.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class HyperFuseError(Exception):
    """Base of all expected ends; anything else that escapes is a bug.

    Parameters
    ----------
    message : str
        The sentence.
    observed, allowed : float, optional
        The figure that decided and its limit, where one figure did; for records, the sentence says them too.
    """

    exit_code = 1
    """Exit code of the command line."""
    reason = "bug"
    """Reason code in records written by machines for machines."""

    def __init__(self, message: str = "", *, observed: float | None = None, allowed: float | None = None) -> None:
        super().__init__(message)
        self.observed = observed
        self.allowed = allowed


class UsageError(HyperFuseError):
    """A setting is unknown or out of range."""

    exit_code = 2
    reason = "usage"


class InputRejected(HyperFuseError):
    """The input cannot be used as it is; trying again without changing it is pointless."""

    exit_code = 3
    reason = "input_rejected"


class MetadataMissing(InputRejected):
    """An image lacks metadata that its user can supply.

    Parameters
    ----------
    message : str
        The sentence, for the command of one image.
    lacks : str
        Its first part: the file, and what is not in it.
    settings : sequence of str
        All that supplies it, as `KEY=VALUE` with VALUE to be filled in; none where settings do not help.
    todo : str, optional
        What else is to be done.
    """

    def __init__(
        self,
        message: str = "",
        *,
        lacks: str = "",
        settings: tuple[str, ...] = (),
        todo: str = "",
        observed: float | None = None,
        allowed: float | None = None,
    ) -> None:
        super().__init__(message, observed=observed, allowed=allowed)
        self.lacks, self.settings, self.todo = lacks, settings, todo


class ExpectedSkip(HyperFuseError):
    """Nothing is wrong and there is nothing to do: the scenes do not meet, or the product exists."""

    exit_code = 4
    reason = "expected_skip"


class AlreadyPublished(ExpectedSkip):
    """The product is there, made of the same inputs with the same settings."""


class Busy(HyperFuseError):
    """Another run holds the same job."""

    exit_code = 5
    reason = "busy"


class OutOfResources(HyperFuseError):
    """Memory, disk or device do not suffice."""

    exit_code = 6
    reason = "resources"


class QualityRefused(HyperFuseError):
    """A quality gate refused the product."""

    exit_code = 7
    reason = "quality_refused"


class Poisoned(HyperFuseError):
    """Tiles kill the processes that fuse them; they are set aside, and there is no product."""

    exit_code = 8
    reason = "poison"


class Transient(HyperFuseError):
    """A disk or a network did not answer; the same run may succeed later, and goes on where this one stopped."""

    exit_code = 9
    reason = "transient"


@contextmanager
def singular_is_rejected() -> Iterator[None]:
    """Turn a solver's complaint about images that do not determine what is asked into a sentence about the images.

    Raises
    ------
    InputRejected
        In place of the `LinAlgError` of NumPy, SciPy and torch.
    """
    try:
        yield
    except (ValueError, RuntimeError) as error:
        # By name, because torch takes seconds to import: NumPy's is a ValueError, torch's a RuntimeError.
        if type(error).__name__.lstrip("_") != "LinAlgError":
            raise
        raise InputRejected(
            f"the images do not determine a system of equations ({error}): too few valid samples in their overlap, or samples "
            "that are all alike; look at both with `hyperfuse info`, check nodata, scale and footprint"
        ) from error
