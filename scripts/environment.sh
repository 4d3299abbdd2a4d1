#!/usr/bin/env bash
# Makes (once) and activates the Python environment of this repository.
#   source scripts/environment.sh [EXTRAS]     EXTRAS of pyproject.toml, default "dicom,pacs,export,dev"
# AFIRE_VENV         where the environment lives, default .venv in the repository
# AFIRE_TORCH_INDEX  package index to take torch from, for a build other than the default one
# AFIRE_LOCKED=1     install the files of requirements.lock alone and check their hashes (Linux x86-64, Python 3.11; not torch)
# Versions are those of constraints.txt.
# Sourcing runs this same file as a command of its own, so that a failure never closes the caller's shell.

afire_root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
afire_venv="${AFIRE_VENV:-$afire_root/.venv}"

if [[ "${BASH_SOURCE[0]}" != "$0" ]]; then
    AFIRE_VENV="$afire_venv" bash "${BASH_SOURCE[0]}" "${1:-dicom,pacs,export,dev}" || return 1
    # shellcheck disable=SC1091  # exists only after the line above
    source "$afire_venv/bin/activate" || return 1
    unset afire_root afire_venv
    return 0
fi

set -euo pipefail

extras="${1:-dicom,pacs,export,dev}"
python="$afire_venv/bin/python"
stamp="$afire_venv/.afire-stamp"

find_python() {
    local candidate
    for candidate in python3.11 python3.12 python3.13 python3; do
        if command -v "$candidate" >/dev/null 2>&1 &&
            "$candidate" -c 'import sys; raise SystemExit(sys.version_info < (3, 11))' 2>/dev/null; then
            echo "$candidate"
            return 0
        fi
    done
    echo "afire: Python 3.11 or newer is needed; found: $(python3 --version 2>&1 || true). Install it and run this again." >&2
    return 1
}

# what the environment was made from: if it changes, pip has to look again
fingerprint() {
    "$python" - "$afire_root" "$extras" "${AFIRE_TORCH_INDEX:-}" "${AFIRE_LOCKED:-}" <<'PYTHON'
import hashlib
import pathlib
import sys

names = ("pyproject.toml", "constraints.txt", *(["requirements.lock"] if sys.argv[4] else []))
content = [(pathlib.Path(sys.argv[1]) / name).read_bytes() for name in names]
print(hashlib.sha256(b"".join(content) + "\n".join([sys.version, *sys.argv[2:]]).encode()).hexdigest())
PYTHON
}

torch_pin() { grep "^torch==" "$afire_root/constraints.txt"; }

advise_on_gpu() {
    command -v nvidia-smi >/dev/null 2>&1 && nvidia-smi -L >/dev/null 2>&1 || return 0
    "$python" - <<'PYTHON' || return 0
import importlib.util
import pathlib
import re

spec = importlib.util.find_spec("torch")
version = pathlib.Path(spec.origin).with_name("version.py").read_text()
raise SystemExit(re.search(r"^cuda\b.*=\s*None", version, re.M) is None)
PYTHON
    echo "afire: this machine has an NVIDIA GPU but torch was built without CUDA; remove $afire_venv and run this again" \
        "with AFIRE_TORCH_INDEX set to the index that PyTorch's installation page names for your CUDA version." >&2
}

# an environment whose making was interrupted has a python, but nothing to activate it by
if [[ ! -x "$python" || ! -f "$afire_venv/bin/activate" ]]; then
    base="$(find_python)"
    echo "afire: making the environment $afire_venv ($("$base" --version))"
    "$base" -m venv "$afire_venv" || {
        echo "afire: $base cannot make environments (on Debian and Ubuntu: install the package python3-venv)." >&2
        exit 1
    }
fi
"$python" -c 'import sys; raise SystemExit(sys.version_info < (3, 11))' || {
    echo "afire: $afire_venv holds $("$python" --version), 3.11 or newer is needed; remove it or set AFIRE_VENV." >&2
    exit 1
}

wanted="$(fingerprint)"
if [[ ! -f "$stamp" || "$(cat "$stamp")" != "$wanted" ]]; then
    echo "afire: installing (a few minutes and about 2 GB the first time)"
    export PIP_DISABLE_PIP_VERSION_CHECK=1
    rm -f "$stamp" # until all is installed, it is no environment of any version
    # with the lock, everything but torch and its own packages comes with a hash
    no_deps=()
    if [[ -n "${AFIRE_LOCKED:-}" ]]; then
        [[ "$extras" == *label* ]] || no_deps=(--no-deps) # MONAI Label's packages are not in the lock
        "$python" -m pip install --quiet --no-deps --require-hashes -r "$afire_root/requirements.lock"
    fi
    # before the others and alone: what comes after must find this machine's build and not choose another one
    if [[ -n "${AFIRE_TORCH_INDEX:-}" ]]; then
        "$python" -m pip install --quiet --index-url "$AFIRE_TORCH_INDEX" "$(torch_pin)"
    else
        "$python" -m pip install --quiet "$(torch_pin)"
    fi
    "$python" -m pip install --quiet "${no_deps[@]}" -c "$afire_root/constraints.txt" -e "${afire_root}[$extras]"
    echo "$wanted" >"$stamp"
fi
advise_on_gpu
