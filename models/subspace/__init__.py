"""subspace."""
