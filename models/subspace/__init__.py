"""Parts of `map_subspace` and of the universal networks: the spectral subspace, guides, regression and kriging in it."""
