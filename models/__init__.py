"""Fusion methods: torch and numpy only; importing this package loads no torch."""

from models._spec import FirstPass, FusionModel, MethodCard, ModelSpec, Observed, available, method

__all__ = ["FirstPass", "FusionModel", "MethodCard", "ModelSpec", "Observed", "available", "method"]
