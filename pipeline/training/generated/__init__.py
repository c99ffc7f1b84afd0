"""Scenes generated from spatial structure and spectral libraries."""
