"""Checks that the crates' arrows point one way.

daemon -> editor -> model, daemon -> cache, daemon -> proto, and disk below editor and cache; the tests and benches
may look at everything and nobody looks at them; any crate's tests may use addenda-fuzz, which knows none. Beyond the
workspace's own crates: the store sees no
tensors, the model sees neither the store's database nor the wire, and proto holds no logic.
"""

import json
import pathlib
import re
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent

# The workspace's crates, and which of their own kind each may depend on.
OWN = {
    "addenda-proto": set(),
    "addenda-disk": set(),
    "addenda-model": set(),
    "addenda-cache": {"addenda-disk"},
    "addenda-editor": {"addenda-model", "addenda-disk"},
    "addenda": {"addenda-proto", "addenda-model", "addenda-cache", "addenda-editor"},
    "addenda-fuzz": set(),
    "addenda-tests": {"addenda-proto", "addenda-disk", "addenda-model", "addenda-cache", "addenda-editor", "addenda"},
    "addenda-benches": {"addenda-proto", "addenda-disk", "addenda-model", "addenda-cache", "addenda-editor", "addenda"},
}

TENSORS = {"tch", "torch-sys", "tokenizers", "safetensors"}
STORE = {"sled"}
WIRE = {"tonic", "tonic-prost", "tonic-health", "tonic-reflection", "prost", "prost-types", "axum", "hyper"}

# What the outside world offers and a crate must not take.
FORBIDDEN = {
    "addenda-proto": TENSORS | STORE,
    "addenda-disk": TENSORS | STORE | WIRE,
    "addenda-model": STORE | WIRE,
    "addenda-editor": STORE | WIRE,
    "addenda-cache": TENSORS | WIRE,
    "addenda": STORE,
}


def dependency_faults(packages):
    for package in packages:
        name = package["name"]
        if name not in OWN:
            yield f"{name} has no place in setup/arrows.py: say there what it may depend on"
            continue
        for dependency in package["dependencies"]:
            other = dependency["name"]
            if other == "addenda-fuzz" and dependency["kind"] == "dev":
                continue
            if other.startswith("addenda") and other not in OWN[name]:
                yield f"{name} must not depend on {other}"
            if other in FORBIDDEN.get(name, ()):
                yield f"{name} must not depend on {other}"


def proto_faults(source):
    """Proto is messages and services; what is computed from them belongs to its users."""
    for path in sorted(source.rglob("*.rs")):
        for number, line in enumerate(path.read_text().splitlines(), 1):
            if re.match(r"\s*(pub(\(.*\))? +)?((async|unsafe|const) +)*(fn|impl|trait|struct|enum)\b", line):
                yield f"{path.relative_to(ROOT)}:{number}: proto holds no logic of its own: {line.strip()}"


def main():
    metadata = json.loads(subprocess.run(
        ["cargo", "metadata", "--no-deps", "--format-version", "1", "--locked"],
        cwd=ROOT, check=True, stdout=subprocess.PIPE).stdout)
    faults = [*dependency_faults(metadata["packages"]), *proto_faults(ROOT / "proto" / "src")]
    for fault in faults:
        print(f"arrows: {fault}", file=sys.stderr)
    if faults:
        sys.exit(1)
    print(f"arrows: {len(metadata['packages'])} crates point one way")


if __name__ == "__main__":
    main()
