# The CPU flavor: JupyterLab, torch and the labs on a slim Debian, for any host.
# `make build` builds it. The steps that other flavors share are in docker/steps/.
ARG BASE_IMAGE=debian:bookworm-slim

# What the lab runs on: the distribution's Python, a C++ compiler for torch.compile, tini.
FROM ${BASE_IMAGE} AS os
RUN --mount=type=bind,source=docker/steps,target=/steps /steps/install-os-packages.sh

# The Python environment, made apart: only what is left of it at the end is copied on.
FROM os AS python
COPY docker/steps/install-python-packages.sh /usr/local/bin/
COPY docker/locks/torch-cpu.txt /locks/
# This step alone knows PyTorch's index: one that does not answer costs seconds of retries for
# every package that might come from it.
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
RUN --mount=type=cache,target=/root/.cache/pip \
    install-python-packages.sh /locks/torch-cpu.txt --index-url "${TORCH_INDEX}" --retries 1
COPY docker/locks/lab.txt /locks/
RUN --mount=type=cache,target=/root/.cache/pip install-python-packages.sh /locks/lab.txt
RUN --mount=type=bind,source=docker/steps,target=/steps /steps/trim-python-packages.sh

# labkit as a wheel, with the labs it carries.
FROM python AS wheel
COPY pyproject.toml README.md /src/
COPY labkit /src/labkit
COPY labs /src/labs
RUN /opt/lab/bin/pip wheel --no-deps --no-build-isolation --no-index --quiet -w /dist /src

FROM os AS lab
COPY --from=python /opt/lab /opt/lab
COPY docker/jupyter /etc/labkit/jupyter
RUN --mount=type=bind,source=docker/steps,target=/steps /steps/prepare-writable-folders.sh
ENV PATH=/opt/lab/bin:/usr/local/bin:/usr/bin:/bin:/cache/packages/bin \
    HOME=/cache/home \
    USER=lab \
    LANG=C.UTF-8 \
    SHELL=/bin/bash \
    PIP_PREFIX=/cache/packages \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PYTHONUNBUFFERED=1 \
    XDG_CACHE_HOME=/cache \
    TORCHINDUCTOR_CACHE_DIR=/cache/torchinductor \
    JUPYTER_CONFIG_PATH=/etc/labkit/jupyter \
    LABKIT_STATE=/cache/labkit \
    LABKIT_WORKSPACE=/work \
    LABKIT_IN_CONTAINER=1
# Last of the installs, so that a change to labkit or a lab rebuilds seconds of work.
RUN --mount=type=bind,from=wheel,source=/dist,target=/dist \
    /opt/lab/bin/pip install --prefix /opt/lab --no-deps --no-index --no-cache-dir --quiet /dist/*.whl
# A name for the user that Compose runs as may be missing; any uid works.
USER 1000:1000
WORKDIR /work
VOLUME ["/cache"]
EXPOSE 8888
HEALTHCHECK --interval=15s --timeout=5s --start-period=60s \
    CMD ["/opt/lab/bin/python", "/etc/labkit/jupyter/healthcheck.py"]
# -s: also reaps where the engine's own init is process 1.
ENTRYPOINT ["/usr/bin/tini", "-s", "--"]
CMD ["labkit", "serve"]
ARG VERSION=unknown
ARG REVISION=unknown
ARG INPUTS=unknown
LABEL org.opencontainers.image.title="labkit" \
      org.opencontainers.image.description="A GPU lab for PyTorch: JupyterLab, torch and labs that prove what they teach" \
      org.opencontainers.image.licenses="MIT" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      io.labkit.flavor="cpu" \
      io.labkit.torch="2.13.0+cpu" \
      io.labkit.inputs="${INPUTS}"

# The lab with the tests, their tools and the browser they drive.
FROM lab AS test
USER 0:0
RUN apt-get update -qq \
    && apt-get install -y --no-install-recommends chromium chromium-driver fonts-dejavu-core make shellcheck \
    && rm -rf /var/lib/apt/lists/* /var/cache/apt/*
COPY docker/steps/install-python-packages.sh /usr/local/bin/
COPY docker/locks/test.txt /locks/
RUN --mount=type=cache,target=/root/.cache/pip \
    PIP_PREFIX=/opt/lab install-python-packages.sh /locks/test.txt
# The root file system is read-only when the tests run: their tools' caches go to memory.
ENV PYTEST_ADDOPTS="-p no:cacheprovider" \
    HYPOTHESIS_STORAGE_DIRECTORY=/tmp/hypothesis \
    MYPY_CACHE_DIR=/tmp/mypy \
    RUFF_CACHE_DIR=/tmp/ruff
COPY . /src
USER 1000:1000
WORKDIR /src
HEALTHCHECK NONE
CMD ["python", "-m", "pytest"]
