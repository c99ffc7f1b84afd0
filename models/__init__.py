"""Fusion methods: torch and numpy only; importing this package loads no torch."""

from hyperfuse.models.spec import (
    FirstPass,
    FusionModel,
    Method,
    MethodCard,
    ModelSpec,
    Observed,
    TwoRateModel,
    TwoRateSpec,
    available,
    method,
)

__all__ = [
    "FirstPass",
    "FusionModel",
    "Method",
    "MethodCard",
    "ModelSpec",
    "Observed",
    "TwoRateModel",
    "TwoRateSpec",
    "available",
    "method",
]
