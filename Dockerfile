# ssamba for CPUs, as a user without rights:
#
#     docker build --tag ssamba .
#     docker run --rm --volume "$PWD:/data" --user "$(id -u):$(id -g)" ssamba embed recording.wav --out embeddings.npz
#
# The package index serves torch with CUDA, gigabytes that a CPU has no use for. The CPU build comes from PyTorch's own index:
#
#     docker build --build-arg TORCH_INDEX=<address of the CPU index, from PyTorch's installation page> --tag ssamba .

FROM python:3.12-slim-bookworm AS build
ARG TORCH_INDEX=""
ENV PIP_EXTRA_INDEX_URL="${TORCH_INDEX}" PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /source
RUN python -m venv /opt/ssamba
COPY constraints.txt constraints-dev.txt ./
# Dependencies first: this layer stays when only the sources change.
COPY pyproject.toml ./
RUN python -c "import tomllib; print(*tomllib.load(open('pyproject.toml', 'rb'))['project']['dependencies'], sep='\n')" > needed.txt \
    && /opt/ssamba/bin/pip install --constraint constraints.txt --constraint constraints-dev.txt --requirement needed.txt
COPY . .
RUN /opt/ssamba/bin/pip install --constraint constraints.txt --constraint constraints-dev.txt . \
    && /opt/ssamba/bin/pip check

FROM python:3.12-slim-bookworm
COPY --from=build /opt/ssamba /opt/ssamba
# Compiled kernels and recordings' lengths go to /cache, which any user may fill, in its own folders.
RUN useradd --uid 10001 --no-create-home --shell /usr/sbin/nologin ssamba \
    && install --directory --mode=1777 /cache \
    && install --directory --owner=ssamba --group=ssamba /data
ENV PATH="/opt/ssamba/bin:${PATH}" XDG_CACHE_HOME=/cache NUMBA_CACHE_DIR=/cache/numba PYTHONDONTWRITEBYTECODE=1
USER 10001
WORKDIR /data
ENTRYPOINT ["ssamba"]
CMD ["--help"]
