# docker build -t afire .                                         CPU
# docker build -t afire --build-arg TORCH_INDEX=URL .             GPU: the index that PyTorch's installation page names for your CUDA
# docker run --rm -v "$PWD:/data" -w /data --user "$(id -u):$(id -g)" [--gpus all] afire check mine.json
FROM python:3.11-slim
ARG TORCH_INDEX=""
ENV AFIRE_VENV=/opt/afire PATH=/opt/afire/bin:$PATH AFIRE_TORCH_INDEX=$TORCH_INDEX HOME=/tmp PYTHONDONTWRITEBYTECODE=1
WORKDIR /src
COPY . .
RUN bash scripts/environment.sh dicom,export
ENTRYPOINT ["afire"]
