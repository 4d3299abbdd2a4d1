#!/usr/bin/env bash
# Tests of the MONAI Label app with real servers: MONAI Label's own environment (made once, kept in ~/.cache), and
# Orthanc (scripts/clinical_tools.sh) and Chromium where they are installed.
#   scripts/label_test.sh [options of pytest]
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash scripts/label_environment.sh >/dev/null
# shellcheck source=scripts/environment.sh
source scripts/environment.sh "dicom,pacs,export,dev"
AFIRE_LABEL_TEST=1 OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}" pytest -n 2 --dist loadfile \
    tests/label/test_server.py tests/label/test_work_page.py tests/label/test_work_page_trouble.py "$@"
