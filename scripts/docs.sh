#!/usr/bin/env bash
# Builds the documentation into site/ (or the folder given) and stops at a link that leads nowhere. No network is needed.
#   scripts/docs.sh [FOLDER]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=scripts/environment.sh
source scripts/environment.sh "dicom,pacs,export,dev"
NO_MKDOCS_2_WARNING=1 python -m mkdocs build --strict --quiet --site-dir "${1:-site}"
echo "written: ${1:-site}/index.html"
