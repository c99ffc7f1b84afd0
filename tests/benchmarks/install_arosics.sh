#!/bin/sh
# AROSICS for the registration benchmark. Its GDAL bindings have no wheel: they are built against Debian's GDAL, which needs
# apt, root and a compiler. The benchmark runs without; nothing else of the project needs any of this.
#   tests/benchmarks/install_arosics.sh [PYTHON]
set -eu
python=${1:-.venv/bin/python}
apt-get install --yes --no-install-recommends g++ libgdal-dev python3-dev
version=$(gdal-config --version)
"$python" -m pip install 'setuptools<81' wheel
# Without isolation, so that the array interface is built for the numpy that is there.
"$python" -m pip install --no-build-isolation --no-cache-dir "gdal[numpy]==$version.*"
"$python" -m pip install arosics
"$python" -c 'from osgeo import gdal_array; import arosics; print("AROSICS", arosics.__version__)'
