#!/usr/bin/env bash
# What the locked environment is made of, and what is known against it.
#   scripts/supply_chain.sh [FOLDER]     default: supply_chain
# Writes FOLDER/sbom.cdx.json (CycloneDX 1.6, each package with the SHA-256 of requirements.lock, checked against the
# published schema) and FOLDER/advisories.json (pip-audit). torch is not in the lock; its version is that of constraints.txt.
# Exit status: 0 nothing is known, 1 something is, 2 the list of packages does not agree with the lock, 3 no advisory database could be reached, so nothing was checked.
set -euo pipefail

root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
out="${1:-supply_chain}"
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
mkdir -p "$out"
"${PYTHON:-python3}" -m venv "$work/tools"
"$work/tools/bin/pip" install --quiet --disable-pip-version-check "pip-audit==2.10.1" "cyclonedx-bom[validation]==7.5.0" 2>/dev/null || {
    echo "advisories: NOT CHECKED, the tools for it cannot be installed here" >&2
    exit 3
}

"$work/tools/bin/cyclonedx-py" requirements "$root/requirements.lock" --pyproject "$root/pyproject.toml" \
    --output-reproducible --validate --output-file "$out/sbom.cdx.json" 2>"$work/sbom.txt" || {
    cat "$work/sbom.txt" >&2
    exit 2
}
"$work/tools/bin/python" - "$out/sbom.cdx.json" "$root/requirements.lock" <<'PYTHON'
import json
import sys

parts = json.load(open(sys.argv[1], encoding="utf-8"))["components"]
locked = sum("==" in line for line in open(sys.argv[2], encoding="utf-8"))
hashed = sum(bool(hash) for part in parts for reference in part["externalReferences"] for hash in reference.get("hashes", []))
print(f"sbom:       {len(parts)} packages, {hashed} with their SHA-256, of {locked} in requirements.lock")
sys.exit(2 * (len(parts) != locked or hashed < locked))
PYTHON

{
    cat "$root/requirements.lock"
    grep '^torch==' "$root/constraints.txt" || true
} | sed 's/ --hash=.*//; s/ *#.*//; s/+cpu$//' >"$work/all.txt"
# pip-audit counts a package that the database does not answer for as skipped, and calls that a success
checked() { [[ -s "$1" ]] && "$work/tools/bin/python" -c '
import json, sys
sys.exit(all("skip_reason" in one for one in json.load(open(sys.argv[1]))["dependencies"]))' "$1"; }
for service in pypi osv; do
    rm -f "$out/advisories.json"
    "$work/tools/bin/pip-audit" --requirement "$work/all.txt" --no-deps --disable-pip --progress-spinner off \
        --timeout 15 --vulnerability-service "$service" --format json --output "$out/advisories.json" \
        2>"$work/audit.txt" || true
    ! checked "$out/advisories.json" || break
done
checked "$out/advisories.json" || {
    rm -f "$out/advisories.json"
    echo "advisories: NOT CHECKED, neither PyPI's nor OSV's database of advisories answers here" >&2
    exit 3
}
"$work/tools/bin/python" - "$out/advisories.json" <<'PYTHON'
import json
import sys

packages = json.load(open(sys.argv[1], encoding="utf-8"))["dependencies"]
known = [(package["name"], package["version"], bug) for package in packages for bug in package.get("vulns", [])]
skipped = [package["name"] for package in packages if "skip_reason" in package]
print(f"advisories: {len(packages) - len(skipped)} packages checked, {len(known)} advisories" + (f"; not checked: {skipped}" if skipped else ""))
for name, version, bug in known:
    print(f"  {name} {version}: {bug['id']}, mended in {', '.join(bug['fix_versions']) or 'no version yet'}")
sys.exit(bool(known))
PYTHON
