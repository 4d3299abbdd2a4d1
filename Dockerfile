# docker build -t afire .                                         CPU
# docker build -t afire --build-arg TORCH_INDEX=URL .             GPU: the index that PyTorch's installation page names for your CUDA
# docker run --rm -v "$PWD:/data" -w /data --user "$(id -u):$(id -g)" [--gpus all] afire check mine.json
# docker build -t afire --build-arg EXTRAS=pacs,export .          with afire node
# docker build -t afire-label --target label .                    the label server; examples/service/compose.yaml runs both
FROM python:3.11-slim AS source
WORKDIR /src
COPY . .

FROM source AS label
RUN apt-get update && apt-get install -y --no-install-recommends procps && rm -rf /var/lib/apt/lists/*
ENV AFIRE_LABEL_VENV=/opt/afire-label HOME=/tmp PYTHONDONTWRITEBYTECODE=1
RUN bash scripts/label_environment.sh
ENTRYPOINT ["bash", "scripts/label_server.sh"]

FROM source
ARG TORCH_INDEX=""
ARG EXTRAS="dicom,export"
ENV AFIRE_VENV=/opt/afire PATH=/opt/afire/bin:$PATH AFIRE_TORCH_INDEX=$TORCH_INDEX HOME=/tmp PYTHONDONTWRITEBYTECODE=1
RUN bash scripts/environment.sh "$EXTRAS"
ENTRYPOINT ["afire"]
