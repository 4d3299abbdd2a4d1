#!/usr/bin/env bash
# Installs what the tests of the hospital path use (an archive to talk to, a validator, a browser), where that is possible: a
# Debian or Ubuntu of one's own with root. Never fails: without these programs the tests that need them are skipped.
set -u

declare -A packages=([Orthanc]=orthanc [storescu]=dcmtk [dciodvfy]=dicom3tools [chromium]=chromium)
missing=()
for program in "${!packages[@]}"; do
    command -v "$program" >/dev/null 2>&1 || [[ -x "/usr/sbin/$program" ]] || missing+=("${packages[$program]}")
done
compgen -G "/usr/share/orthanc/plugins/libOrthancDicomWeb.so" >/dev/null || missing+=(orthanc-dicomweb)
[[ ${#missing[@]} -gt 0 ]] || exit 0

if ! command -v apt-get >/dev/null 2>&1 || [[ "$(id -u)" -ne 0 ]]; then
    echo "afire: ${missing[*]} not installed and cannot be here; the tests that need them are skipped" >&2
    exit 0
fi
export DEBIAN_FRONTEND=noninteractive
log="$(mktemp)"
# packages start services after installation, which a test machine has no use for
policy=/usr/sbin/policy-rc.d
trap 'rm -f "$log"' EXIT
if [[ ! -e "$policy" ]]; then
    trap 'rm -f "$log" "$policy"' EXIT
    printf '#!/bin/sh\nexit 101\n' >"$policy" && chmod 755 "$policy"
fi
install() { timeout 300 apt-get install -y -qq --no-install-recommends "$@" >>"$log" 2>&1; }
failed=()
install "${missing[@]}" || { timeout 120 apt-get update -qq >>"$log" 2>&1; install "${missing[@]}"; } ||
    for package in "${missing[@]}"; do install "$package" || failed+=("$package"); done # one that is absent stops all
[[ ${#failed[@]} -eq 0 ]] || {
    echo "afire: ${failed[*]} could not be installed; the tests that need them are skipped:" >&2
    tail -n 3 "$log" >&2
}
exit 0
