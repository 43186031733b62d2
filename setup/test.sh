#!/bin/sh
# Runs the tests of the whole workspace and says how many ran. Arguments go to cargo test.
set -u
cd "$(dirname "$0")/.." || exit

log=$(mktemp)
trap 'rm -f "$log"' EXIT

# A pipe hides cargo's status, so it travels in the log's last line.
{ cargo test --release --workspace --locked "$@" 2>&1; echo "cargo test ended with $?"; } | tee "$log"
awk '
    /^test result:/        { passed += $4; failed += $6; ignored += $8 }
    /^cargo test ended/    { status = $NF }
    END {
        printf "\ntests: %d ran, %d passed, %d failed, %d ignored\n", passed + failed, passed, failed, ignored
        exit status != 0
    }' "$log"
