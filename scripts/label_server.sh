#!/usr/bin/env bash
# A MONAI Label server for radiographs on this machine (docs/label.md). Makes its environment the first time.
#   scripts/label_server.sh start STUDIES --model FOLDER[,FOLDER] [options]   prints the address when it answers
#   scripts/label_server.sh stop [--work FOLDER]                              ends it and a training that is under way
#   scripts/label_server.sh status [--work FOLDER]                            says the address, too
# STUDIES  a folder of PNG, JPEG or DICOM files, or the root of DICOMweb services (http://localhost:8042/dicom-web)
# --model FOLDER      model folders with commas between them, as for `afire predict`
# --work FOLDER       where trained models, log and cache are kept; default ~/.local/share/afire-label (XDG_DATA_HOME)
# --port N            default 8000
# --foreground        stay, and end with the server: for a container
# --no-token          let every user of this machine in; else only whoever has the address that is printed
# --classes a,b       of a segmenter to be trained, where no model has one; --findings a,b of a classifier likewise
# --modalities CR,DX  of images (default of DICOMweb)
# --png16-max N, --window-index N   how images are read; unless given, as in the models' training
# --also-show SEG,OT  modalities of DICOMweb that a viewer may see besides
# --to-archive false  keep saved masks here; else they also go to the DICOMweb archive as DICOM segmentations
# --candidates N      images without label that a strategy looks at in one call (default 48)
# --ca FILE           authorities that the archive's certificate is checked with, instead of the built-in ones
# --tls-cert FILE, --tls-key FILE   your certificate and its key, for an archive that asks for them
# AFIRE_DICOMWEB_USER and AFIRE_DICOMWEB_PASSWORD, AFIRE_DICOMWEB_TOKEN or AFIRE_DICOMWEB_TOKEN_FILE: who you are to it
set -euo pipefail

root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
usage() { sed -n '2,/^set /{/^set /d; s/^# \{0,1\}//; p}' "${BASH_SOURCE[0]}" >&2; }
fail() {
    echo "afire: $*" >&2
    exit 2
}

command="${1:-}"
[[ "$command" =~ ^(start|stop|status)$ ]] || {
    usage
    exit 2
}
shift
token="" foreground="" studies="" work="${XDG_DATA_HOME:-$HOME/.local/share}/afire-label" port=8000
conf=()
if [[ "$command" == start ]]; then
    [[ $# -gt 0 && "$1" != --* ]] || fail "start: name a folder of radiographs or the root of DICOMweb services"
    studies="$1"
    shift
fi
while [[ $# -gt 0 ]]; do
    case "$1" in
        --no-token | --foreground)
            [[ "$1" == --foreground ]] && foreground=yes || token=none
            shift
            continue
            ;;
    esac
    [[ $# -gt 1 ]] || fail "$1 needs a value"
    key="${1#--}" key="${key//-/_}"
    case "$1" in
        --work) work="$2" ;;
        --port) port="$2" ;;
        --model) conf+=(--conf models "$2") ;;
        --classes | --findings | --modalities | --candidates | --png16-max | --window-index | --also-show | --to-archive)
            conf+=(--conf "$key" "$2")
            ;;
        --ca | --tls-cert | --tls-key)
            [[ -f "$2" ]] || fail "$1 $2: no such file"
            conf+=(--conf "$key" "$(realpath "$2")")
            ;;
        *) fail "unknown option $1 (scripts/label_server.sh alone lists them)" ;;
    esac
    shift 2
done
pid_file="$work/server.pid"

# a number may have gone to another process since; signals go to the whole group, as training runs in a process of its own
running() { [[ -f "$pid_file" && "$(ps -ww -o args= -p "$(cat "$pid_file")" 2>/dev/null)" == *afire_monai.label.start* ]]; }

stop() {
    running || {
        rm -f "$pid_file"
        echo "not running"
        return 0
    }
    local group tries
    group="$(cat "$pid_file")"
    kill -TERM -- "-$group" 2>/dev/null || true
    for ((tries = 0; tries < 100; tries++)); do
        kill -0 -- "-$group" 2>/dev/null || break
        sleep 0.1
    done
    kill -KILL -- "-$group" 2>/dev/null || true
    rm -f "$pid_file"
    echo "stopped"
}

case "$command" in
    stop)
        stop
        exit 0
        ;;
    status)
        if running; then echo "running: $(cat "$work/address")"; else echo "not running"; fi
        exit 0
        ;;
esac

mkdir -p "$work/app"
exec 8>"$work/start.lock" # held until this ends: the first start takes minutes, in which nothing runs yet
flock -n 8 || fail "another start is under way in $work; wait for it, or give another --work"
running && fail "a server runs here already: $(cat "$work/address"); stop it first, or give another --work"
[[ "$port" =~ ^[0-9]+$ ]] || fail "--port $port: a number is expected"
if (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null; then
    fail "port $port is in use; give another --port"
fi
if [[ ! "$studies" =~ ^https?:// ]]; then
    [[ -d "$studies" ]] || fail "$studies: no such folder"
    studies="$(cd "$studies" && pwd)"
fi
venv="$(bash "$root/scripts/label_environment.sh" 8>&-)"
chmod 700 "$work"
work="$(cd "$work" && pwd)"
pid_file="$work/server.pid"
cp "$root/afire_monai/label/main.py" "$work/app/main.py"
# as MONAI Label was started, models may be named relative to where you are
for ((i = 0; i < ${#conf[@]}; i++)); do
    [[ "${conf[i]}" == models ]] || continue
    folders=()
    IFS=, read -ra names <<<"${conf[i + 1]}"
    for name in "${names[@]}"; do
        [[ -d "$name" ]] || fail "--model $name: no such folder"
        folders+=("$(cd "$name" && pwd)")
    done
    conf[i + 1]="$(IFS=, && echo "${folders[*]}")"
done

export PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}"
export PATH="$venv/bin:$PATH"
export MONAI_LABEL_AUTO_UPDATE_SCORING=false # it would start a process at each next sample
export MONAI_LABEL_TRACKING_ENABLED=false
export MONAI_LABEL_SESSION_PATH="$work/sessions"
unset MLFLOW_TRACKING_URI
export NO_PROXY="127.0.0.1,localhost${NO_PROXY:+,$NO_PROXY}"
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-$(nproc)}"
[[ -z "${AFIRE_DICOMWEB_TOKEN_FILE:-}" ]] || AFIRE_DICOMWEB_TOKEN_FILE="$(realpath "$AFIRE_DICOMWEB_TOKEN_FILE")"
umask 077
unset AFIRE_LABEL_TOKEN AFIRE_LABEL_NO_TOKEN
rm -f "$work/authorization"
page="http://127.0.0.1:$port" query=""
if [[ "$token" == none ]]; then
    export AFIRE_LABEL_NO_TOKEN=1
else
    AFIRE_LABEL_TOKEN="$("$venv/bin/python" -c 'import secrets; print(secrets.token_urlsafe(32))')"
    export AFIRE_LABEL_TOKEN
    query="?token=$AFIRE_LABEL_TOKEN"
    echo "Authorization: Bearer $AFIRE_LABEL_TOKEN" >"$work/authorization" # for curl -H @FILE: others see arguments
fi

"$venv/bin/python" -m afire_monai.label.messages "$work/logging.json" "$work/server.log"
cd "$work"
setsid "$venv/bin/python" -m afire_monai.label.start start_server --app "$work/app" --studies "$studies" \
    --host 127.0.0.1 --port "$port" --uvicorn_app afire_monai.label.server:app --log_config "$work/logging.json" \
    --conf work "$work" "${conf[@]}" >"$work/console.log" 2>&1 8>&- &
echo $! >"$pid_file"
trap 'stop; exit 130' INT TERM # until it answers, nobody knows its address
echo "$page/$query" >"$work/address"

for ((tries = 0; tries < 300; tries++)); do
    kill -0 "$(cat "$pid_file")" 2>/dev/null || {
        tail -n 5 "$work/console.log" >&2
        rm -f "$pid_file"
        fail "the server ended by itself; all it said is in $work/console.log"
    }
    if "$venv/bin/python" - "$port" <<'PYTHON' 2>/dev/null; then break; fi
import os
import sys
import urllib.request

opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
headers = {"Authorization": f"Bearer {os.environ.get('AFIRE_LABEL_TOKEN', '')}"}
request = urllib.request.Request(f"http://127.0.0.1:{sys.argv[1]}/info/", headers=headers)
opener.open(request, timeout=30).read()
PYTHON
    sleep 0.3
done
((tries < 300)) || {
    stop >/dev/null
    fail "the server does not answer; all it said is in $work/console.log"
}
trap - INT TERM
exec 8>&- # with --foreground this stays
echo "$page/$query"
echo "Page to work in: $page/work/$query"
[[ ! "$studies" =~ ^https?:// ]] || echo "OHIF: $page/ohif/$query"
if [[ "$token" == none ]]; then
    echo "warning: --no-token: every user of this machine can see the pictures, and save labels" >&2
else
    echo "Whoever has this address sees the patients' pictures. Scripts: curl -H @$work/authorization $page/info/"
fi
if [[ -n "$foreground" ]]; then
    trap 'stop; exit 0' TERM INT
    wait "$(cat "$pid_file")" || fail "the server ended by itself; all it said is in $work/console.log"
fi
