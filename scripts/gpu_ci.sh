#!/usr/bin/env bash
# What only a Hopper GPU can tell: numerics, training in FP8, speed. Runs every part, then says which failed.
#
#     scripts/gpu_ci.sh [--cpu] [OUT]        OUT, a new folder, is gpu_ci_out unless it is given
#
# PYTHON names the interpreter (scripts/gpu_setup.sh makes one); nothing is downloaded. --cpu goes through the
# same parts in small on a machine without a GPU: it checks this script, not the kernels.
set -uo pipefail

on_cpu=false
if [[ ${1:-} == --cpu ]]; then
    on_cpu=true
    shift
fi
if [[ $# -gt 1 || ${1:-} == -* ]]; then
    sed -n '2,7s/^# \{0,1\}//p' "$0" >&2
    exit 2
fi
if ! python=$(command -v "${PYTHON:-python}"); then
    echo "error: there is no interpreter ${PYTHON:-python}; PYTHON names one" >&2
    exit 2
fi
python=$(cd "$(dirname "$python")" && pwd)/$(basename "$python")
out=${1:-gpu_ci_out}
if [[ -n $(ls -A "$out" 2>/dev/null) ]]; then
    echo "error: $out is not empty; give a new folder" >&2
    exit 2
fi
mkdir -p "$out/logs" "$out/results" || exit 2
out=$(cd "$out" && pwd)
cd "$(dirname "$0")/.." || exit 2

export PYTHONPATH="$PWD:$PWD/kernels${PYTHONPATH:+:$PYTHONPATH}"
export HF_HUB_OFFLINE=1 WANDB_MODE=offline TRITON_INTERPRET=0
export XDG_CACHE_HOME="$out/cache"
unset CI # where there is a GPU, tests of the interpreter skip

if $on_cpu; then
    models=(tiny) steps=8 bound=0.05 rounds=1 need=()
    settings=(device=cpu data.tokenizer=byte model.vocab_size=384 model.n_layers=2
        data.sequence_length=64 data.batch_size=4)
else
    models=(tiny small) steps=200 bound=0.005 rounds=7 need=(--need-hopper)
    settings=(device=cuda)
fi

summary=()
failed=0

# part NAME COMMAND ...: run it with its output in a log of that name, and note how it ended.
part() {
    local name=$1 begin=$SECONDS code
    shift
    printf '%s ...\n' "$name"
    "$@" >"$out/logs/$name.log" 2>&1
    code=$?
    if [[ $code -ne 0 ]]; then
        failed=$((failed + 1))
        tail -n 20 "$out/logs/$name.log"
    fi
    summary+=("$(printf '%-28s%-12s%6d s' "$name" "$([[ $code -eq 0 ]] && echo passed || echo "FAILED ($code)")" \
        $((SECONDS - begin)))")
}

left_out() {
    summary+=("$(printf '%-28s%s' "$1" "left out: $2")")
}

# to FILE COMMAND ...: the command's output into a file of the results, the rest into the log.
to() {
    local file=$1
    shift
    "$@" >"$out/results/$file"
}

# train NAME SETTING ...: a run of the same text, order and start whatever its arithmetic. Results have what it
# wrote, however it ended.
train() {
    local name=$1 code
    shift
    "$python" train.py "${settings[@]}" trainer.max_steps=$steps trainer.log_every=1 trainer.eval_every=$steps \
        trainer.eval_sequences=8 trainer.sample_every=0 trainer.save_every=$steps logger=none seed=0 \
        "run_dir=$out/runs/$name" "$@"
    code=$?
    for file in summary.json ledger.jsonl metrics.jsonl environment.json events.jsonl; do
        [[ ! -e $out/runs/$name/$file ]] || cp "$out/runs/$name/$file" "$out/results/$name.$file" || code=1
    done
    return $code
}

part environment to environment.json "$python" scripts/gpu_checks.py environment "${need[@]}"
part gpu_tests "$python" -m pytest -m gpu -rs tests/kernels tests/precision
if $on_cpu; then
    part resources to resources.txt "$python" -m deepseek_mini_kernels.compile quantize_activation
else
    part kernel_tests "$python" -m pytest -rs tests/kernels
    part resources to resources.txt "$python" -m deepseek_mini_kernels.compile
fi

for model in "${models[@]}"; do
    part "train_${model}_bf16" train "${model}_bf16" "model=$model" precision=bf16
    runs=()
    for backend in $("$python" scripts/gpu_checks.py backends); do
        name=${model}_fp8_$backend
        part "train_$name" train "$name" "model=$model" precision=fp8 "precision.backend=$backend"
        runs+=("$out/runs/$name")
    done
    part "losses_$model" to "losses_$model.txt" \
        "$python" scripts/gpu_checks.py losses "$out/runs/${model}_bf16" "${runs[@]}" --within $bound
    cat "$out/results/losses_$model.txt"
done

if $on_cpu; then
    left_out bench_kernels "kernels are timed on a Hopper GPU"
else
    part bench_kernels to kernels.json "$python" scripts/benchmark.py kernels --json
    part roofline to roofline.md "$python" -m deepseek_mini_kernels.roofline "$out/results/kernels.json"
    part bench_layers "$python" scripts/benchmark.py layers --shape v3_671b --profile "$out/results/layers_v3_671b.json"
fi
part bench_training to training.json "$python" scripts/benchmark.py training model=tiny "${settings[@]}" --rounds $rounds --json

printf '%s\n' "" "${summary[@]}" "" "$failed of ${#summary[@]} parts failed; logs and results are in $out" |
    tee "$out/results/summary.txt"
[[ $failed -eq 0 ]]
