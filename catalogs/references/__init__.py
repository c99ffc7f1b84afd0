"""Reference data: cubes with a truth, spectral libraries, spectral responses."""
