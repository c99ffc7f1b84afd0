# One image for every role: the command line, the Prefect server and worker, the Dask scheduler and workers.
# Versions are those that pyproject.toml allows. TORCH_INDEX chooses the build of PyTorch: cpu, or cu126 for NVIDIA.
FROM python:3.11-slim-bookworm AS build
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
WORKDIR /src
RUN python -m venv /opt/hyperfuse
COPY pyproject.toml README.md LICENSE ./
COPY catalogs catalogs
COPY models models
COPY pipeline pipeline
COPY flows flows
COPY hyperfuse hyperfuse
# PyTorch alone comes from its index, all else from the default one: with two indexes at once the higher version wins,
# whoever put it there.
RUN /opt/hyperfuse/bin/pip install --no-cache-dir --no-deps --index-url "${TORCH_INDEX}" "torch>=2.11,<2.14" \
    && /opt/hyperfuse/bin/pip install --no-cache-dir ".[train]"

FROM python:3.11-slim-bookworm
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
