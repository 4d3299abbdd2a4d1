#!/usr/bin/env bash
# From a fresh checkout to a first result on phantom radiographs: environment, then `afire demo`.
#   scripts/quickstart.sh [options of `afire demo`]
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=scripts/environment.sh
source scripts/environment.sh "dicom,pacs,export,dev"
exec afire demo --output demo "$@"
