"""Takes the CPU half of libtorch out of wheels: WORK/wheels/*.whl into WORK/libtorch.

Called by setup.sh as `unpack_libtorch.py WORK VERSION`. The wheels are read as archives and
removed one by one; nothing in them is run. The result is a folder as torch-sys wants it:
include/, lib/ and build-version.
"""

import glob, os, re, shutil, sys, zipfile

work, version = sys.argv[1:]
libraries = {"libtorch_cpu.so", "libc10.so", "libgomp.so.1", "libcudart.so.13", "libcupti.so.13"}
out = os.path.join(work, "libtorch")

for wheel in glob.glob(os.path.join(work, "wheels", "*.whl")):
    with zipfile.ZipFile(wheel) as archive:
        for member in archive.infolist():
            folder, name = os.path.split(member.filename)
            if member.filename.startswith("torch/include/") and name:
                target = member.filename[len("torch/"):]
            elif name in libraries and re.fullmatch(r"torch/lib|nvidia/[^/]+/lib", folder):
                target = os.path.join("lib", name)
                libraries.discard(name)
            else:
                continue
            path = os.path.join(out, target)
            os.makedirs(os.path.dirname(path), exist_ok=True)
            with archive.open(member) as source, open(path, "wb") as sink:
                shutil.copyfileobj(source, sink, 1 << 20)
    os.remove(wheel)
if libraries:
    sys.exit("error: the packages hold no " + ", ".join(sorted(libraries)))

# The linker asks for -ltorch; nothing but the CPU library is behind it.
os.symlink("libtorch_cpu.so", os.path.join(out, "lib", "libtorch.so"))
with open(os.path.join(out, "build-version"), "w") as file:
    file.write(version + "\n")
