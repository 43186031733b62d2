#!/bin/sh
# Readies a machine for building Addenda: checks the tools, finds or fetches libtorch, and tells
# cargo where it lies. Needs no root, may be run at any time and by several at once, and changes
# nothing when nothing is missing. Every failure is one sentence that says what to do.
#
#   LIBTORCH            a libtorch 2.11.0 or PyTorch 2.11.0 folder: used as it is, nothing is fetched
#   ADDENDA_CACHE_DIR   where libtorch and models are kept (default: ~/.cache/addenda)
set -eu

exec 3>&1 # pip's progress, while its complaints are caught
version=2.11.0
root=$(cd "$(dirname "$0")/.." && pwd)
wheels_list=$root/setup/libtorch-$version.txt
cargo_config=$root/.cargo/config.toml
config_mark='# Written by setup/setup.sh; delete this line to keep the script from changing the file.'

# Megabytes: two copies of the largest wheel while pip moves it, or one and what is unpacked.
fetch_mb=1300
build_mb=4000

die() {
    printf '\nsetup: %s\n' "$*" >&2
    exit 1
}

say() {
    printf 'setup: %s\n' "$*"
}

# --- tools ---------------------------------------------------------------------------------

# True when dotted version $1 is at least $2, by major and minor number.
at_least() {
    awk -v have="$1" -v want="$2" 'BEGIN {
        split(have, h, "."); split(want, w, ".");
        exit !(h[1] + 0 > w[1] + 0 || (h[1] + 0 == w[1] + 0 && h[2] + 0 >= w[2] + 0))
    }'
}

check_tools() {
    for tool in cargo rustc; do
        command -v "$tool" >/dev/null 2>&1 ||
            die "$tool is not on the PATH: install Rust with rustup (or run '. ~/.cargo/env' if it was installed just now), then try again."
    done
    wanted=$(sed -n 's/^rust-version *= *"\(.*\)"/\1/p' "$root/Cargo.toml")
    found=$(rustc --version | awk '{ print $2 }')
    at_least "$found" "$wanted" ||
        die "Rust $wanted or newer is needed and this is $found: run 'rustup update stable', then try again."
    for tool in cc c++ make; do
        command -v "$tool" >/dev/null 2>&1 ||
            die "$tool is missing: install a C++ compiler and make ('apt install build-essential' on Debian and Ubuntu), then try again."
    done
}

check_pip() {
    command -v python3 >/dev/null 2>&1 ||
        die "python3 is missing, and libtorch is fetched with its pip: 'apt install python3 python3-pip', or set LIBTORCH to a libtorch $version folder."
    python3 -m pip --version >/dev/null 2>&1 ||
        die "python3 has no pip, and libtorch is fetched with it: 'apt install python3-pip', or set LIBTORCH to a libtorch $version folder."
}

# The folder $1, or the nearest one above it that exists: what df can be asked about.
existing_part() {
    dir=$1
    while [ ! -d "$dir" ]; do dir=$(dirname "$dir"); done
    printf '%s\n' "$dir"
}

# $1: folder, $2: megabytes that must be free there, $3: what for.
check_space() {
    free=$(df -Pk "$(existing_part "$1")" | awk 'NR == 2 { print int($4 / 1024) }')
    [ "$free" -ge "$2" ] ||
        die "$3 needs $2 MB of free disk under $1 and there are $free MB: free some, or set $4 to a folder on another disk."
}

# --- libtorch ------------------------------------------------------------------------------

# Prints why $1 can't be built against; prints nothing when it can.
libtorch_fault() {
    if [ ! -e "$1/lib/libtorch_cpu.so" ] && [ ! -e "$1/lib/libtorch.so" ]; then
        echo "it holds neither lib/libtorch_cpu.so nor lib/libtorch.so"
    elif [ ! -e "$1/include/torch/csrc/api/include/torch/torch.h" ]; then
        echo "it holds no C++ headers under include/"
    else
        has=$(libtorch_version "$1")
        case $has in
        '' | "$version" | "$version"+*) ;;
        *) echo "it is version $has and $version is needed" ;;
        esac
    fi
}

# The version that a libtorch folder (build-version) or a PyTorch folder (version.py) tells.
libtorch_version() {
    if [ -f "$1/build-version" ]; then
        head -n 1 "$1/build-version"
    elif [ -f "$1/version.py" ]; then
        sed -n "s/^__version__ *= *['\"]\(.*\)['\"].*/\1/p" "$1/version.py" | head -n 1
    fi
}

# $1: what a failed pip or python3 said. Ends the script with the sentence that fits.
explain() {
    said() { printf '%s\n' "$1" | grep -qiE "$2"; }
    if said "$1" 'no space left'; then
        die "The disk that holds $cache is full: free $fetch_mb MB, or set ADDENDA_CACHE_DIR to a folder on another disk, then try again."
    elif said "$1" 'do not match the hashes'; then
        die "A fetched package has another digest than $wheels_list lists: a mirror or proxy changed it; use another one, or set LIBTORCH to a libtorch $version folder."
    elif said "$1" 'connect|resolve|timed out|retrying|proxy|ssl'; then
        die "Python's package index can't be reached: check the network and pip's proxy settings and try again, or set LIBTORCH to a libtorch $version folder."
    fi
    die "pip could not fetch a package: $(printf '%s\n' "$1" | tail -n 1)"
}

# Fetches the wheel of one package, whatever Python runs pip.
# $1: package, $2: version, $3: platform tag, $4: SHA-256.
fetch_wheel() {
    printf '%s==%s --hash=sha256:%s\n' "$1" "$2" "$4" >"$work/requirement.txt"
    # pip's own temporary files must not land on a small /tmp, nor stay in pip's cache.
    # What it complains of is kept in memory: a full disk could not hold it.
    said=$(TMPDIR=$work python3 -m pip download --disable-pip-version-check --no-input --no-cache-dir \
        --no-deps --only-binary :all: --require-hashes --requirement "$work/requirement.txt" \
        --python-version 3.11 --implementation cp --abi cp311 --platform "$3" \
        --dest "$work/wheels" 2>&1 >&3) || explain "$said"
}

# Takes the CPU half of libtorch out of the wheels in $work into $work/libtorch.
unpack_wheels() {
    said=$(python3 "$root/setup/unpack_libtorch.py" "$work" "$version" 2>&1) || explain "$said"
}

# Puts libtorch into the cache: complete or not at all.
fetch_libtorch() {
    [ "$(uname -s) $(uname -m)" = 'Linux x86_64' ] ||
        die "libtorch can be fetched for Linux on x86-64 only and this is $(uname -s) on $(uname -m): set LIBTORCH to a libtorch or PyTorch $version folder for this machine."
    check_pip
    mkdir -p "$cache" 2>/dev/null ||
        die "$cache can't be made: set ADDENDA_CACHE_DIR to a folder that you may write to."
    if command -v flock >/dev/null 2>&1; then
        exec 9>"$cache/setup.lock"
        flock -n 9 || { say "another set-up is running on $cache; waiting for it"; flock 9; }
        [ -n "$(libtorch_fault "$1")" ] || return 0
        # Whoever holds the lock may clear away what a killed set-up left.
        rm -rf "$cache"/libtorch.tmp.*
    fi
    check_space "$cache" "$fetch_mb" "Fetching libtorch" ADDENDA_CACHE_DIR
    work=$(mktemp -d "$cache/libtorch.tmp.XXXXXX")
    trap 'rm -rf "$work"' EXIT
    trap 'exit 130' INT TERM HUP
    mkdir "$work/wheels"
    say "fetching libtorch $version into $cache (540 MB, once for this machine)"
    grep -v '^#' "$wheels_list" | while read -r package release platform digest; do
        fetch_wheel "$package" "$release" "$platform" "$digest"
    done
    say "unpacking it"
    unpack_wheels
    # The rename is atomic: no one sees half a folder, and of two set-ups on a machine without
    # flock the first one wins. What lies there now and is of no use goes with $work.
    [ -z "$(libtorch_fault "$1")" ] || [ ! -e "$1" ] || mv "$1" "$work/unusable"
    mv -T "$work/libtorch" "$1" 2>/dev/null || [ -z "$(libtorch_fault "$1")" ] ||
        die "$1 can't be written: remove it and try again."
}

# Prints nothing; sets $libtorch to the folder to build against.
find_libtorch() {
    if [ -n "${LIBTORCH:-}" ]; then
        fault=$(libtorch_fault "$LIBTORCH")
        [ -z "$fault" ] ||
            die "LIBTORCH=$LIBTORCH can't be used: $fault. Point it at a libtorch or PyTorch $version folder, or unset it to have one fetched."
        libtorch=$(cd "$LIBTORCH" && pwd)
        return
    fi
    # What an earlier set-up chose stays, so that nothing is built anew.
    libtorch=$(configured_libtorch)
    if [ -z "$libtorch" ] || [ -n "$(libtorch_fault "$libtorch")" ]; then
        libtorch=$cache/libtorch-$version
        [ -z "$(libtorch_fault "$libtorch")" ] || fetch_libtorch "$libtorch"
    fi
}

# --- cargo ---------------------------------------------------------------------------------

configured_libtorch() {
    [ ! -f "$cargo_config" ] || sed -n 's/^LIBTORCH *= *"\(.*\)"$/\1/p' "$cargo_config"
}

# Tells cargo where libtorch lies, so that plain cargo works too. An unchanged file is left
# alone: its new time stamp would have torch-sys built anew.
write_cargo_config() {
    [ "$(configured_libtorch)" != "$libtorch" ] || return 0
    case $libtorch in
    *[\"\\]*) die "$libtorch has a quote or a backslash in its path: move libtorch to a plainer path." ;;
    esac
    if [ -f "$cargo_config" ] && ! grep -qxF "$config_mark" "$cargo_config"; then
        die "$cargo_config is your own: add the line 'LIBTORCH = \"$libtorch\"' under its [env]."
    fi
    mkdir -p "$root/.cargo"
    cat >"$cargo_config.new" <<TOML
$config_mark
[env]
LIBTORCH = "$libtorch"
# Idle OpenMP threads that spin take the cores from those that compute.
OMP_WAIT_POLICY = "passive"
GOMP_SPINCOUNT = "0"
TOML
    mv "$cargo_config.new" "$cargo_config"
    say "libtorch is $libtorch"
}

cache=${ADDENDA_CACHE_DIR:-${XDG_CACHE_HOME:-${HOME:?is not set}/.cache}/addenda}
target=${CARGO_TARGET_DIR:-$root/target}

check_tools
[ -d "$target/release" ] || check_space "$target" "$build_mb" "The build" CARGO_TARGET_DIR
find_libtorch
write_cargo_config
