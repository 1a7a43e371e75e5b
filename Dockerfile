# Two flavours of one file: FLAVOUR=cuda (with the CUDA and cuDNN wheels) and FLAVOUR=service (CPU).
ARG PYTHON_IMAGE=python:3.13-slim

FROM ${PYTHON_IMAGE} AS build
ARG FLAVOUR=cuda
WORKDIR /src
# In the order of how seldom they change: locked packages, then this project.
COPY requirements/ requirements/
RUN python -m venv /opt/build \
    && /opt/build/bin/pip install --no-cache-dir --require-hashes -r requirements/build.txt
RUN python -m venv /opt/leukoscope \
    && /opt/leukoscope/bin/pip install --no-cache-dir --require-hashes -r requirements/${FLAVOUR}.txt
COPY pyproject.toml README.md LICENSE ./
COPY app/ app/
COPY training/ training/
RUN /opt/build/bin/pip wheel --no-deps --no-build-isolation --wheel-dir /tmp/wheel . \
    && /opt/leukoscope/bin/pip install --no-cache-dir --no-index --no-deps /tmp/wheel/*.whl \
    && /opt/leukoscope/bin/pip uninstall --yes pip

FROM ${PYTHON_IMAGE}
LABEL org.opencontainers.image.title="Leukoscope" \
      org.opencontainers.image.description="Tells leukemic blasts (ALL) from normal cells (HEM) in microscope pictures" \
      org.opencontainers.image.licenses="Apache-2.0"
COPY --from=build /opt/leukoscope /opt/leukoscope
WORKDIR /srv/leukoscope
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
ENTRYPOINT ["leukoscope"]
CMD ["serve"]
