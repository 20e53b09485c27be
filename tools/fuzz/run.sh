#!/usr/bin/env bash
# Builds the fuzzer and runs it for some seconds with each format, four at a time. What they find worth keeping
# stays in build/fuzz/corpus; inputs that break a reader land in build/fuzz/found, and fail the run.
#   tools/fuzz/run.sh SECONDS [FORMAT …]
set -euo pipefail
cd "$(dirname "$0")/../.."
readonly seconds="${1:?how many seconds each}" build=build/fuzz
shift
formats=("$@")
((${#formats[@]})) || formats=(dkv hf mlx-lm llama-slot llama-state lmcache vllm)

cmake --preset fuzz --log-level=WARNING
cmake --build "$build" --target dkv_reader_fuzz | tail -n 1
mkdir -p "$build/found"

run_one() {
    local format="$1" seconds="$2" build="$3" log corpus
    log="$build/$format.log" corpus="$build/corpus/$format"
    # A short run starts anew: to read what long ones found takes longer than it.
    ((seconds >= 30)) || { corpus="$build/short/$format" && rm -rf "$corpus"; }
    mkdir -p "$corpus"
    if DKV_FUZZ_FORMAT="$format" "$build/bin/dkv_reader_fuzz" -max_total_time="$seconds" -timeout=10 -rss_limit_mb=512 \
        -malloc_limit_mb=64 -max_len=8192 -dict=tools/fuzz/names.dict -print_final_stats=1 \
        -artifact_prefix="$build/found/$format-" "$corpus" "tools/fuzz/seeds/$format" \
        >"$log" 2>&1; then
        echo "fuzz: $format: $(sed -n 's/^stat::number_of_executed_units: *//p' "$log") inputs in ${seconds} s, nothing found"
    else
        echo "fuzz: $format: FOUND"
        tail -n 40 "$log"
        return 1
    fi
}
export -f run_one
printf '%s\n' "${formats[@]}" | xargs -P 4 -I '{}' bash -c 'run_one "$@"' run_one '{}' "$seconds" "$build"
