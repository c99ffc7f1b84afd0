#!/bin/sh
# AROSICS for the registration benchmark. Its GDAL bindings have no wheel: they are built against Debian's GDAL, which needs
# apt, root and a compiler, and takes minutes. The benchmark runs without; nothing else of the project needs any of this.
#   tests/benchmarks/install_arosics.sh [PYTHON]
set -eu
python=${1:-.venv/bin/python}
apt-get install --yes --no-install-recommends g++ libgdal-dev python3-dev
version=$(gdal-config --version)
constraints=$(mktemp)
trap 'rm -f "$constraints"' EXIT
# The newest bindings and geoarray want a newer GDAL than Debian has; the older geoarray wants setuptools before 72.
printf 'gdal==%s\nsetuptools<72\n' "$version" > "$constraints"
"$python" -m pip install --ignore-installed 'setuptools<72' wheel
# Without isolation, so that the array interface is built for the numpy that is there.
"$python" -m pip install --no-build-isolation --no-cache-dir "gdal[numpy]==$version"
PIP_CONSTRAINT=$constraints "$python" -m pip install arosics
"$python" -c 'from osgeo import gdal_array; import arosics; print("AROSICS", arosics.__version__)'
