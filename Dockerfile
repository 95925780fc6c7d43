# Targets: prod (the default), dev (reloads when the source changes), test (runs the suite).
#
# BASE may name a digest, so that the same image is built again:
#   docker build --build-arg BASE=python:3.13-slim-bookworm@sha256:... .
ARG BASE=python:3.13-slim-bookworm

FROM ${BASE} AS build
RUN python3 -m venv /opt/httpnas
ENV PATH=/opt/httpnas/bin:$PATH \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_NO_CACHE_DIR=1
WORKDIR /src
COPY setup.py pyproject.toml README.md ./
COPY twisted twisted
COPY httpnas httpnas


FROM build AS dev
RUN pip install --quiet 'watchfiles>=1.0' .
# The source comes before what was installed, so that a change is seen, wherever it is mounted from.
ENV PYTHONPATH=/src \
    STORAGE_PATH=/mnt/storage \
    HTTPNAS_LISTEN='*:3000' \
    HTTPNAS_DURABILITY=none
EXPOSE 3000
ENTRYPOINT ["watchfiles", "twistd -n --pidfile= httpnas", "/src/httpnas"]


FROM build AS test
# What the commands in the documents need, in whatever version the base has.
# hadolint ignore=DL3008
RUN apt-get update -qq \
    && apt-get install -y -qq --no-install-recommends busybox curl openssl wget \
    && rm -rf /var/lib/apt/lists/*
# hadolint ignore=DL3013
RUN pip install --quiet '.[test]'
COPY . .
ENTRYPOINT ["python3", "-m", "pytest", "-p", "no:cacheprovider"]


FROM build AS install
COPY requirements.txt ./
# Nothing but what is in requirements.txt, byte for byte; `make lock` writes it anew. The other forms of
# Swagger UI, and what installs and tests packages, are not needed. Twisted keeps a list of its plugins,
# and Python what it has compiled: neither can be written later.
RUN pip install --quiet --require-hashes --requirement requirements.txt \
    && pip install --quiet --no-deps --no-build-isolation . \
    && find /opt/httpnas -path '*/flask_swagger_ui/dist/*' -type f \
        ! -name swagger-ui-bundle.js ! -name swagger-ui.css ! -name 'LICENSE*' -delete \
    && find /opt/httpnas -type d \( -name test -o -name tests \) -prune -exec rm -rf {} + \
    && twistd --help > /dev/null \
    && pip uninstall --quiet --yes setuptools pip \
    && python3 -m compileall -q /opt/httpnas


FROM ${BASE} AS prod
ARG BASE
ARG VERSION=0.1.0
LABEL org.opencontainers.image.title=httpnas \
      org.opencontainers.image.base.name=${BASE} \
      org.opencontainers.image.description="Network-attached storage over plain HTTP" \
      org.opencontainers.image.licenses=MIT \
      org.opencontainers.image.version=${VERSION}
# Any user may be told to run it, and has to be able to write there. Bases with Python have pip.
RUN mkdir -m 0777 /mnt/storage \
    && rm -rf /usr/local/bin/pip* /usr/local/lib/python3*/site-packages/pip*
COPY --from=install /opt/httpnas /opt/httpnas
ENV PATH=/opt/httpnas/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    STORAGE_PATH=/mnt/storage \
    HTTPNAS_LISTEN='*:3000'
USER 2000:2000
WORKDIR /
EXPOSE 3000
# -I: clients can put files into the working directory, and must not be imported.
HEALTHCHECK --interval=10s --timeout=6s --start-period=10s \
    CMD ["python3", "-I", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:3000/health', timeout=5)"]
ENTRYPOINT ["twistd", "-n", "--pidfile=", "httpnas"]
