#!/usr/bin/env bash
# All that a GPU has to show, in a number of minutes, without network: correctness, speed, a pre-training, figures.
#   scripts/gpu_campaign.sh --pack FILE --out FOLDER --minutes M [--device cpu] [--config FILE …] [--set key=value …]
# AFIRE_PYTHON  the Python to use, default `python3`: 3.11 or newer with PyTorch 2.11 or newer, SciPy, scikit-image,
#               scikit-learn, Pillow, PyYAML, einops, tqdm and safetensors
# AFIRE_WHEELS  folder with wheels of what that Python lacks (monai, pytorch-ignite, fire, termcolor, nibabel, pydicom);
#               they are unpacked beside it, nothing is installed
# `benchmarks/campaign.py --help` says what is done; what comes out lies in FOLDER and is small.
set -euo pipefail

root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
python="${AFIRE_PYTHON:-python3}"
export PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}"
if [[ -n "${AFIRE_WHEELS:-}" ]]; then
    site="$(mktemp -d)"
    trap 'rm -rf "$site"' EXIT
    for wheel in "$AFIRE_WHEELS"/*.whl; do
        "$python" -m zipfile -e "$wheel" "$site"
    done
    export PYTHONPATH="$PYTHONPATH:$site"
fi
export PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
"$python" "$root/benchmarks/campaign.py" "$@"
