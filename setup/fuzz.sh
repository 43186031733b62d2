#!/bin/sh
# Fuzzes every decoder, guided by coverage: so many seconds each (300 unless another number is given), all targets or
# those whose name contains the second word, of all crates or those of the third. libFuzzer comes with bolero and is compiled with the C++ compiler; the
# compiler is the stable one.
#
# What it finds that breaks a target lies in __fuzz__/<target>/crashes beside the decoder, and `cargo test` tries it
# first from then on. What only reaches new code is kept under the target directory.
set -eu
cd "$(dirname "$0")/.."

seconds=${1:-300}
only=${2:-}
work=${CARGO_TARGET_DIR:-$PWD/target}/fuzz
log=$(mktemp)
said=$(mktemp)
trap 'rm -f "$log" "$said"' EXIT

host=$(rustc -vV | sed -n 's/^host: //p')
export CARGO_TARGET_DIR="$work"
export BOLERO_FUZZER=libfuzzer
export RUSTFLAGS="--cfg fuzzing --cfg fuzzing_libfuzzer -Cpasses=sancov-module \
-Cllvm-args=-sanitizer-coverage-level=4 -Cllvm-args=-sanitizer-coverage-inline-8bit-counters \
-Cllvm-args=-sanitizer-coverage-pc-table -Cllvm-args=-sanitizer-coverage-trace-compares"

failed=0
for crate in ${3:-addenda-cache addenda-editor addenda-model addenda}; do
    # Naming the host keeps the flags from build scripts.
    cargo test --profile fuzz --locked --target "$host" -p "$crate" --lib --no-run 2>&1 | tee "$log" >&2
    binary=$(sed -n 's/.*Executable .*(\(.*\))$/\1/p' "$log")
    [ -x "$binary" ] || exit 1
    # Each target says where it lies and what it is called.
    CARGO_BOLERO_SELECT=all "$binary" fuzz:: --nocapture --test-threads 1 2> /dev/null |
        sed -n 's/.*"work_dir":"\([^"]*\)".*"test_name":"\([^"]*\)".*/\1 \2/p' > "$log"
    while read -r folder test; do
        name=$(basename "$folder")
        case $name in *"$only"*) ;; *) continue ;; esac
        mkdir -p "$work/corpus/$name" "$folder/crashes"
        echo "fuzz: $crate $name for $seconds s"
        export BOLERO_LIBFUZZER_ARGS="$work/corpus/$name $folder/corpus -artifact_prefix=$folder/crashes/ \
-max_total_time=$seconds -max_len=16384 -timeout=20 -rss_limit_mb=4096 -print_final_stats=1 -verbosity=0"
        if BOLERO_TEST_NAME=$test BOLERO_LIBTEST_HARNESS=1 \
            "$binary" "$test" --exact --nocapture --quiet --test-threads 1 < /dev/null > "$said" 2>&1; then
            sed -n "s/^stat::number_of_executed_units: */fuzz: $name tried /p" "$said"
        else
            failed=$((failed + 1))
            tail -n 60 "$said"
            echo "fuzz: $name FAILED; the input lies in $folder/crashes"
        fi
        rmdir "$folder/crashes" 2> /dev/null || true
    done < "$log"
done
echo "fuzz: $failed targets failed"
[ "$failed" -eq 0 ]
