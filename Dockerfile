# One image for every role: the command line, the Prefect server and worker, the Dask scheduler and workers.
# Versions are those of requirements/image.txt, which pip holds to their digests; the release of PyTorch is pinned here.
# TORCH_INDEX chooses its build: cpu, or cu126 for NVIDIA.
# The base image is named by its tag, so that a build takes the security fixes of its day; who wants the same bytes each
# time gives its digest: --build-arg BASE=python@sha256:...
ARG BASE=python:3.11-slim-bookworm
FROM ${BASE} AS build
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
WORKDIR /src
RUN python -m venv /opt/hyperfuse
COPY requirements requirements
# PyTorch comes from an index of its own, all else from the default one, and no command knows both: with two indexes at once
# the higher version wins, whoever put it there. The build for CPUs finds all it needs installed; one for NVIDIA brings the
# libraries of CUDA from the same index.
RUN /opt/hyperfuse/bin/pip install --no-cache-dir --require-hashes --no-deps --requirement requirements/image.txt \
    && /opt/hyperfuse/bin/pip install --no-cache-dir --index-url "${TORCH_INDEX}" "torch==2.13.0"
COPY pyproject.toml README.md LICENSE ./
COPY catalogs catalogs
COPY models models
COPY pipeline pipeline
COPY flows flows
COPY hyperfuse hyperfuse
# Nothing is fetched here: setuptools, which builds the package, is in the list.
RUN /opt/hyperfuse/bin/pip install --no-cache-dir --no-deps --no-build-isolation ".[train]" \
    && /opt/hyperfuse/bin/pip check

FROM ${BASE}
# The GDAL of rasterio's wheel links against the system's libexpat; any version of the release will do.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends libexpat1 \
    && rm -rf /var/lib/apt/lists/* \
    && groupadd --gid 10001 hyperfuse \
    && useradd --uid 10001 --gid 10001 --create-home hyperfuse \
    # Data are mounted here, and the mount says who may write; without one nobody but the image's user may.
    && install --directory --mode=0755 --owner=10001 --group=10001 /data \
    # The state of Prefect belongs to whichever user of the host is given with --user; nobody removes another's files.
    && install --directory --mode=1777 /var/lib/prefect
COPY --from=build /opt/hyperfuse /opt/hyperfuse
# `prefect deploy --all` reads the deployments here; the flows themselves are installed.
COPY prefect.yaml /app/
WORKDIR /app
ENV PATH=/opt/hyperfuse/bin:$PATH \
    PREFECT_HOME=/var/lib/prefect \
    PREFECT_SERVER_ANALYTICS_ENABLED=false \
    DO_NOT_TRACK=1 \
    PYTHONUNBUFFERED=1
USER 10001:10001
ENTRYPOINT ["hyperfuse"]
CMD ["--help"]
