"""What the pair told of itself, and what a product can reach on it: causes and limits, both in the units of the scene's noise."""
