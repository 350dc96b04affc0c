# The command line in a container, for a CPU or a GPU; docs/docker.md says how it is built and run.
#   docker build -t syn4seg .                            CPU
#   docker build -t syn4seg:gpu --build-arg TORCH=cu130 .   NVIDIA GPU
ARG PYTHON=3.12

FROM python:${PYTHON}-slim AS wheel
WORKDIR /source
COPY pyproject.toml README.md LICENSE ./
COPY syn4seg syn4seg
COPY actors actors
COPY tune tune
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /wheels .

FROM python:${PYTHON}-slim
# A folder of PyTorch's package index: cpu, or cu130, cu126... for the CUDA of the machine's driver.
ARG TORCH=cpu
# Extras of this package with a comma between: serve,s3
ARG EXTRAS=photos
ENV PYTHONUNBUFFERED=1 RAY_USAGE_STATS_ENABLED=0
RUN useradd --create-home --uid 1000 syn4seg && install -d -o syn4seg /data
RUN pip install --no-cache-dir torch torchvision --index-url "https://download.pytorch.org/whl/${TORCH}"
COPY --from=wheel /wheels /wheels
RUN pip install --no-cache-dir "$(ls /wheels/*.whl)[${EXTRAS}]" && syn4seg --version
USER syn4seg
WORKDIR /data
ENTRYPOINT ["syn4seg"]
CMD ["--help"]
