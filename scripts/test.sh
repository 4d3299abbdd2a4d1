#!/usr/bin/env bash
# Everything that has to pass before a commit: environment, style, types, tests.
#   scripts/test.sh [options of pytest]
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=scripts/environment.sh
source scripts/environment.sh "dicom,pacs,export,dev"
ruff check .
ruff format --check .
mypy
lint-imports
# three workers with one thread each (torch would otherwise start a thread per core in each of them): some tests wait;
# each takes a part in order, which makes the fixtures of a file once, and then from what the others have left
OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}" pytest -n 3 --dist worksteal "$@"
