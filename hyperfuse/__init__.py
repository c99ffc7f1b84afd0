"""HyperFuse: low-resolution hyperspectral and high-resolution multispectral scenes in, georeferenced products out."""
