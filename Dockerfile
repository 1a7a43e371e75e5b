# Flavours of one file: FLAVOUR=cuda (with the CUDA and cuDNN wheels) and FLAVOUR=cpu; each with Ray: cuda-ray, cpu-ray.
# For a build that can be repeated byte by byte, name the base by its digest: PYTHON_IMAGE=python@sha256:…
ARG PYTHON_IMAGE=python:3.13-slim

FROM ${PYTHON_IMAGE} AS build
ARG FLAVOUR=cuda
WORKDIR /src
# In the order of how seldom they change: locked packages, then this project.
COPY requirements/ requirements/
RUN python -m venv /opt/build \
    && /opt/build/bin/pip install --no-cache-dir --require-hashes -r requirements/build.txt -r requirements/audit.txt
RUN python -m venv /opt/leukoscope \
    && /opt/leukoscope/bin/pip install --no-cache-dir --require-hashes -r requirements/image-${FLAVOUR}.txt
COPY pyproject.toml README.md LICENSE ./
COPY app/ app/
COPY training/ training/
# The training's modules come with the wheel and can't run here: their packages are not in this environment.
RUN /opt/build/bin/pip wheel --no-deps --no-build-isolation --wheel-dir /tmp/wheel . \
    && /opt/leukoscope/bin/pip install --no-cache-dir --no-index --no-deps /tmp/wheel/*.whl \
    && /opt/leukoscope/bin/pip uninstall --yes pip \
    && rm -r /opt/leukoscope/lib/python*/site-packages/training /opt/leukoscope/bin/leukoscope-train
# What is inside: a CycloneDX bill of materials, and the licences with their texts.
RUN mkdir /opt/doc \
    && /opt/build/bin/cyclonedx-py environment --pyproject pyproject.toml --output-reproducible \
        --output-file /opt/doc/sbom.cdx.json /opt/leukoscope/bin/python \
    && /opt/build/bin/pip-licenses --python /opt/leukoscope/bin/python --format plain-vertical \
        --with-license-file --no-license-path --output-file /opt/doc/LICENCES.txt

FROM ${PYTHON_IMAGE}
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="Leukoscope" \
      org.opencontainers.image.description="Tells leukemic blasts (ALL) from normal cells (HEM) in microscope pictures" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
# The one folder that a volume makes writable: for the audit log.
RUN install -d -m 0750 -o 10001 -g 10001 /var/lib/leukoscope
COPY --from=build /opt/leukoscope /opt/leukoscope
COPY --from=build /opt/doc /usr/share/doc/leukoscope
WORKDIR /srv/leukoscope
# Mount another folder here to serve other models.
COPY models/ models/
ENV PATH=/opt/leukoscope/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    ORT_DISABLE_TELEMETRY=1 \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility \
    LEUKOSCOPE_HOST=0.0.0.0
USER 10001:10001
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s --retries=3 \
    CMD ["python", "-c", "import os, urllib.request as r; r.urlopen(f\"http://127.0.0.1:{os.environ.get('LEUKOSCOPE_PORT', '8000')}/readyz\", timeout=4)"]
STOPSIGNAL SIGTERM
ENTRYPOINT ["leukoscope"]
CMD ["serve"]
