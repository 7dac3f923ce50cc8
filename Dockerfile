# Both images from one source: `make images`, or docker build --target operator|trainer --build-arg BASE_IMAGE=...
# The base needs Python 3.11 to 3.13 as python3 and glibc. Where a registry or a CA is needed that the base does not
# know, it comes as build secrets (dev/images/registry.py) and leaves no trace in a layer.
ARG BASE_IMAGE=python:3.12-slim-bookworm

FROM ${BASE_IMAGE} AS build
# Debian's own python3 cannot make environments without this package; the final stages never have it.
RUN python3 -c 'import ensurepip' 2>/dev/null || \
    { apt-get update -qq && apt-get install -y -qq --no-install-recommends python3-venv; }
COPY requirements/bootstrap.txt dev/images/install.sh /build/
RUN --mount=type=secret,id=registry --mount=type=secret,id=ca sh /build/install.sh bootstrap

FROM build AS operator-packages
COPY requirements/operator.txt /build/
RUN --mount=type=secret,id=registry --mount=type=secret,id=ca sh /build/install.sh packages operator

FROM build AS trainer-packages
COPY requirements/trainer.txt /build/
RUN --mount=type=secret,id=registry --mount=type=secret,id=ca sh /build/install.sh packages trainer

# The project is a layer of its own: a change of code moves a megabyte and not the packages below it.
FROM build AS project
COPY pyproject.toml README.md LICENSE /src/
COPY operator /src/operator
COPY trainer /src/trainer
RUN sh /build/install.sh project

FROM ${BASE_IMAGE} AS runtime
# A name for the uid: libraries that ask who they are fail without one. /var/lib/finetune is where pods mount volumes.
RUN echo 'finetune:x:10001:10001::/tmp:/usr/sbin/nologin' >> /etc/passwd && \
    echo 'finetune:x:10001:' >> /etc/group && \
    install -d -o 10001 -g 10001 /var/lib/finetune /var/lib/finetune/work /var/lib/finetune/cache /var/lib/finetune/claims
# The root is read-only in a pod: nothing may be written beside the code, and HOME must be writable.
ENV PATH=/opt/app/bin:/opt/finetune/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
    HOME=/tmp \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1
USER 10001:10001
WORKDIR /tmp

FROM runtime AS operator
COPY --from=operator-packages /opt/finetune /opt/finetune
COPY --from=project /opt/app /opt/app
ENTRYPOINT ["python", "-m", "finetune_operator"]
ARG VERSION=0.0.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="finetune-operator" \
      org.opencontainers.image.description="Operator for FineTuneJobs" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"

FROM runtime AS trainer
# Triton compiles what calls its kernels when they are first used: a C compiler and Python's headers, in this image alone.
USER root
RUN apt-get update -qq && apt-get install -y -qq --no-install-recommends gcc libc6-dev && \
    { python3 -c 'import os, sys, sysconfig; sys.exit(not os.path.exists(sysconfig.get_path("include") + "/Python.h"))' || \
      apt-get install -y -qq --no-install-recommends python3-dev; } && rm -rf /var/lib/apt/lists/*
USER 10001:10001
ENV HF_HOME=/var/lib/finetune/work/.huggingface \
    XDG_CACHE_HOME=/var/lib/finetune/work/.cache
COPY --from=trainer-packages /opt/finetune /opt/finetune
COPY --from=project /opt/app /opt/app
ENTRYPOINT ["python", "-m", "finetune_trainer"]
ARG VERSION=0.0.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="finetune-trainer" \
      org.opencontainers.image.description="Trainer that FineTuneJobs run" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
