"""S3RNet shares its graph with CSAKD."""

from tests.models.reference_csakd import plain

__all__ = ["plain"]
