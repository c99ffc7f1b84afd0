"""Scenes on servers: fetched once into a cache, checked, and opened from there as any file is."""
