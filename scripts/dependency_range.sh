#!/usr/bin/env bash
# Runs the quick tests with the lowest or the newest versions that pyproject.toml allows, in an environment of its own.
#   scripts/dependency_range.sh lowest|newest [options of pytest]
# AFIRE_RANGE_VENV   where the environment lives, default .venv-lowest or .venv-newest in the repository
# AFIRE_TORCH_INDEX  package index to take torch from; the default one may bring several gigabytes of CUDA
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
end="${1:-}"
[[ "$end" == lowest || "$end" == newest ]] || {
    echo "usage: scripts/dependency_range.sh lowest|newest [options of pytest]; got '$end'" >&2
    exit 2
}
shift
venv="${AFIRE_RANGE_VENV:-.venv-$end}"
[[ -x "$venv/bin/python" && -f "$venv/bin/activate" ]] || python3 -m venv "$venv"
"$venv/bin/python" - "$end" <<'PYTHON' >"$venv/wanted.txt"
import pathlib
import re
import sys
import tomllib

project = tomllib.loads(pathlib.Path("pyproject.toml").read_text(encoding="utf-8"))["project"]
for requirement in project["dependencies"] + project["optional-dependencies"]["dicom"]:
    print(re.sub(r">=([^,]+).*", r"==\1", requirement) if sys.argv[1] == "lowest" else requirement)
PYTHON
pip() { "$venv/bin/python" -m pip install --quiet --disable-pip-version-check "$@"; }
if [[ "$end" == newest || ! -f "$venv/installed.txt" ]] || ! cmp -s "$venv/wanted.txt" "$venv/installed.txt"; then
    rm -f "$venv/installed.txt"
    # torch first and alone, as in scripts/environment.sh
    grep '^torch' "$venv/wanted.txt" >"$venv/torch.txt"
    pip --upgrade ${AFIRE_TORCH_INDEX:+--index-url "$AFIRE_TORCH_INDEX"} -r "$venv/torch.txt"
    upgrade=()
    [[ "$end" == newest ]] && upgrade=(--upgrade)
    pip "${upgrade[@]}" -r "$venv/wanted.txt" pytest pytest-timeout pytest-xdist
    pip --no-deps -e .
    cp "$venv/wanted.txt" "$venv/installed.txt"
fi
"$venv/bin/python" -m pip list --format=freeze | grep -iE '^(torch|monai|numpy|scipy|pillow|pydicom|mlflow|scikit)' || true
OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}" "$venv/bin/python" -m pytest -n 2 -p no:cacheprovider \
    tests/core tests/radiographs tests/datalists tests/transforms tests/networks tests/losses tests/methods \
    tests/models tests/predictions tests/evaluation tests/dicom_results tests/training/test_trainer.py "$@"
