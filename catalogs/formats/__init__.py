"""Files as operators write them: packages, rasters, arrays, HDF5, MATLAB, XML; what they declare, lazily read."""
