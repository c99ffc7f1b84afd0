"""What exists and how to open it: bands, scenes, pairs, sensors."""
