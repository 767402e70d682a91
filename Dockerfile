# The demo in a container, on the CPU: `docker build -t tokenrlhf .` and `docker run --rm tokenrlhf`.
# On Linux, PyPI's torch is the build for NVIDIA GPUs, some gigabytes. TORCH_INDEX is the address of
# an index with PyTorch's CPU builds: --build-arg TORCH_INDEX=… with the one that README names.
# Python is the version that constraints.txt was made for.
ARG PYTHON=3.11
FROM python:${PYTHON}-slim AS wheel
WORKDIR /source
COPY pyproject.toml README.md LICENSE ./
COPY tokenenv tokenenv
COPY agents agents
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /wheel .

FROM python:${PYTHON}-slim
ARG TORCH_INDEX=
COPY constraints.txt /tmp/constraints.txt
COPY --from=wheel /wheel /tmp/wheel
RUN pip install --no-cache-dir -c /tmp/constraints.txt ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} torch \
    && pip install --no-cache-dir -c /tmp/constraints.txt /tmp/wheel/*.whl \
    && rm -r /tmp/wheel /tmp/constraints.txt \
    && useradd --create-home tokenrlhf
USER tokenrlhf
WORKDIR /home/tokenrlhf
# Arguments after the image's name take the place of the demo: `docker run --rm tokenrlhf tokenrlhf verify`.
CMD ["tokenrlhf", "train", "--eval-responses", "256"]
