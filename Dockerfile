# docker build -t tailcut .                                  slim: bench, generate, gate, report; no torch
# docker build -t tailcut:compress --target compress .       with torch: measure, compress, export, run
# docker build --build-arg WITH_DEEPSPARSE=1 …               adds DeepSparse (evaluation only; do not pass the image on)
#
# Python 3.11 is the newest that DeepSparse has wheels for. Every RUN is one script of scripts/docker, so that
# the same lines run and are tested without Docker.
# The build stage has a C++ compiler for the kernels; what it compiles runs on the same Debian below.
FROM python:3.11.14-bookworm AS build
WORKDIR /src
COPY pyproject.toml setup.py README.md LICENSE ./
COPY src ./src
COPY compress ./compress
COPY export ./export
COPY kernels ./kernels
COPY bench ./bench
COPY scripts/docker ./scripts/docker
RUN sh scripts/docker/build.sh

FROM python:3.11.14-slim-bookworm AS base
ARG WITH_DEEPSPARSE=0
ENV PATH=/opt/tailcut/bin:$PATH \
    HOME=/home/tailcut \
    TAILCUT_ENGINES=/opt/engines \
    PYTHONUNBUFFERED=1
WORKDIR /src
COPY constraints.txt ./
COPY scripts/docker ./scripts/docker
COPY --from=build /wheels /wheels
RUN sh scripts/docker/home.sh
RUN sh scripts/docker/runtime.sh
RUN sh scripts/docker/deepsparse.sh

FROM base AS compress
RUN sh scripts/docker/compress.sh
WORKDIR /work
USER 10001:10001
ENTRYPOINT ["tailcut"]
CMD ["--help"]

FROM base AS runtime
WORKDIR /work
USER 10001:10001
ENTRYPOINT ["tailcut"]
CMD ["--help"]
