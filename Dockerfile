# offramp on a CPU: `docker build --tag offramp .`; docs/container.md says how to run it.
FROM python:3.11-slim AS build
WORKDIR /source
COPY pyproject.toml README.md LICENSE ./
COPY src src
# PyTorch's own index has builds without CUDA, a tenth of the size; everything else is from PyPI.
RUN python -m venv /opt/offramp \
    && /opt/offramp/bin/pip install --no-cache-dir --index-url https://download.pytorch.org/whl/cpu \
        'torch>=2.6,<3' 'torchvision>=0.21,<1' \
    && /opt/offramp/bin/pip install --no-cache-dir '.[report,onnx,openvino,serve]'

FROM python:3.11-slim
COPY --from=build /opt/offramp /opt/offramp
# The file system may be read-only: what is remembered and cached goes to /tmp, what is made to /work.
ENV PATH=/opt/offramp/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    HOME=/tmp \
    MPLCONFIGDIR=/tmp/matplotlib
USER 1000:1000
WORKDIR /work
# Of `offramp serve`; it listens on 127.0.0.1 unless told otherwise, see docs/container.md.
EXPOSE 8000
ENTRYPOINT ["offramp"]
CMD ["--help"]
