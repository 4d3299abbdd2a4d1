#!/usr/bin/env bash
# Writes requirements.lock: every package of this environment but torch, with its version and the SHA-256 of its file for
# Linux x86-64 and Python 3.11. AFIRE_LOCKED=1 makes scripts/environment.sh install from it and refuse any other file.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=scripts/environment.sh
source scripts/environment.sh "dicom,pacs,export,dev"
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
pip freeze --exclude-editable | grep -v '^torch==' >"$work/versions.txt"
pip install --quiet --dry-run --ignore-installed --no-deps --report "$work/report.json" -r "$work/versions.txt"
python - "$work/report.json" <<'PYTHON' >"$work/requirements.lock"
import json
import sys

print("# Written by scripts/lock.sh. torch is not in it: its build depends on the machine (see scripts/environment.sh).")
found = json.load(open(sys.argv[1], encoding="utf-8"))["install"]
for package in sorted(found, key=lambda package: package["metadata"]["name"].lower()):
    about, file = package["metadata"], package["download_info"]["archive_info"]
    print(f"{about['name']}=={about['version']} --hash=sha256:{file['hashes']['sha256']}")
PYTHON
mv "$work/requirements.lock" requirements.lock
