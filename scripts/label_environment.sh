#!/usr/bin/env bash
# Makes (once) the environment that MONAI Label needs, apart from this repository's own, and prints where it is.
#   scripts/label_environment.sh
# AFIRE_LABEL_VENV   where it lives; default: below ~/.cache (XDG_CACHE_HOME), named after what is in it
set -euo pipefail

root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
monailabel="monailabel==0.8.5"

# the requirements alone, so that other changes of the file do not cost a new environment
key="$({
    sed -n '/^dependencies = \[/,/^\]/p; /^dicom = \[/,/^\]/p; /^label = \[/,/^\]/p' "$root/pyproject.toml"
    cat "$root/constraints.txt"
    echo "$monailabel"
} | sha256sum | cut -c1-12)"
export AFIRE_VENV="${AFIRE_LABEL_VENV:-${XDG_CACHE_HOME:-$HOME/.cache}/afire-monai/label-$key}"
mkdir -p "$(dirname "$AFIRE_VENV")"

[[ -e "$AFIRE_VENV.lock" ]] || : >"$AFIRE_VENV.lock"
(
    flock 9 # two that start at once would disturb each other
    bash "$root/scripts/environment.sh" label >&2
    python="$AFIRE_VENV/bin/python"
    if ! "$python" -m pip show --quiet "${monailabel%%==*}" 2>/dev/null; then
        # MONAI Label imports this package, which does not go with pydicom 3, and this app has no use for it
        touch "$("$python" -c 'import site; print(site.getsitepackages()[0])')/pydicom_seg.py"
        # last, as it is looked for above; with its dependencies it would replace torch and pydicom
        "$python" -m pip install --quiet --disable-pip-version-check --no-deps "$monailabel"
    fi
) 9<"$AFIRE_VENV.lock" # only read: who uses an environment need not be who made it

# environments of other versions, 4 GB each, that nobody is making or running
if [[ -z "${AFIRE_LABEL_VENV:-}" ]]; then
    for lock in "$(dirname "$AFIRE_VENV")"/label-*.lock; do
        other="${lock%.lock}"
        [[ "$other" == "$AFIRE_VENV" ]] || grep -qsF "$other/" /proc/[0-9]*/cmdline ||
            (flock -n 9 && rm -rf "$other" "$lock") 9<"$lock" || true
    done
fi
echo "$AFIRE_VENV"
