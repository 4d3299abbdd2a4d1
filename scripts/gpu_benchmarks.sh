#!/usr/bin/env bash
# Everything that a GPU has to show, in one go and without network: speed, correctness, memory, profile.
#   bash scripts/gpu_benchmarks.sh [OUT]        OUT: folder for the logs, default gpu_benchmarks
# Run it from the repository's root in the environment of scripts/environment.sh, with a CUDA build of torch.
set -uo pipefail

out="${1:-gpu_benchmarks}"
python="${AFIRE_PYTHON:-python}"
mkdir -p "$out"
"$python" - <<'PY' | tee "$out/machine.txt" || exit 1
import sys

import torch

if not torch.cuda.is_available():
    sys.exit("no CUDA GPU is visible to torch; this script is for a GPU machine")
print(torch.cuda.get_device_name(), f"{torch.cuda.get_device_properties(0).total_memory / 2**30:.0f} GiB")
print("torch", torch.__version__, "CUDA", torch.version.cuda)
PY

failed=0
run() { # run NAME command...
    local name="$1"
    shift
    echo "== $name: $*"
    if ! "$@" >"$out/$name.txt" 2>&1; then
        echo "   failed, see $out/$name.txt"
        failed=1
    fi
    tail -n 12 "$out/$name.txt" | sed 's/^/   /'
}

step=("$python" benchmarks/step.py --device cuda --precision bfloat16 --preset vit_b --size 224 --warmup 5 --repeats 20)
run step_256 "${step[@]}" --batch 256 --no-loop
run step_256_compiled "${step[@]}" --batch 256 --no-loop --compile
run step_64_loop "${step[@]}" --batch 64 --repeats 5
run step_shifted "${step[@]}" --batch 256 --shift 2 --no-loop --compile
run profile "${step[@]}" --batch 256 --profile
run lesion "$python" benchmarks/lesion.py --device cuda
run loader "$python" benchmarks/loader.py
run plan "$python" -m afire_monai plan --images 100000 --config preset_paper

# the quick start's training on the GPU, in float32, bfloat16 and compiled: losses must agree within rounding
configs="['bundle/configs/pretrain.yaml','bundle/configs/method_afire.yaml']"
for form in float32 bfloat16 compiled; do
    extra=(--precision float32)
    [[ $form == bfloat16 ]] && extra=(--precision bfloat16)
    [[ $form == compiled ]] && extra=(--precision float32 --compile true)
    run "train_$form" "$python" -m monai.bundle run --config_file "$configs" --epochs 5 --use_mlflow False \
        --output_dir "$out/train_$form" "${extra[@]}"
    [[ -f "$out/train_$form/log.csv" ]] && tail -n 1 "$out/train_$form/log.csv" | cut -d, -f1-5
done
run cpu_and_gpu "$python" benchmarks/devices.py
exit "$failed"
