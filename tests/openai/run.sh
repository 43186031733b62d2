#!/bin/sh
# Runs suite.py against the daemon at $1 with the official client, which pip brings into the user's
# cache directory once. Needs no activated environment.
set -eu
version=3.54.0
cache="${ADDENDA_CACHE_DIR:-${XDG_CACHE_HOME:-$HOME/.cache}/addenda}"
client="$cache/openai-$version"
if [ ! -d "$client" ]; then
    mkdir -p "$cache"
    new="$client.$$"
    trap 'rm -rf "$new"' EXIT
    python3 -m pip install --quiet --disable-pip-version-check --target "$new" "openai==$version" || {
        echo "the openai client could not be installed; is there a network and pip for python3?" >&2
        exit 1
    }
    # Whoever comes first wins; both installed the same.
    mv -T "$new" "$client" 2>/dev/null || true
fi
PYTHONPATH="$client" exec python3 "$(dirname "$0")/suite.py" "$1" "$2"
