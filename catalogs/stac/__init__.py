"""STAC catalogues: scenes and fused products, searched, gathered from folders, and trusted no further than needed."""
