#!/bin/sh
# Compares Addenda with its peers on the model of the demo: `compare.sh path/to/addenda [flags of compare.py]`.
# The peers go into benches/peers/.libs, once; llama.cpp is compiled for minutes there.
set -eu
addenda=$1
shift
here=$(cd "$(dirname "$0")" && pwd)
gguf=$("$addenda" --json model fetch smollm2-135m | sed -n 's/.*"path":"\([^"]*\)".*/\1/p' | tail -n 1)
install=
[ -d "$here/.libs/llama_cpp" ] && [ -d "$here/.libs/transformers" ] || install=--install
exec python3 "$here/compare.py" --bench "$addenda-bench" --gguf "$gguf" --libs "$here/.libs" $install \
    --out "$here/../results/latest.json" "$@"
