//! The build script of every crate that links libtorch: lets its binaries and tests find
//! libtorch where it was linked from, without LD_LIBRARY_PATH.
//!
//! DT_RPATH rather than DT_RUNPATH: it also serves libtorch's own dependencies, which lie in the
//! same folder.

use std::path::Path;

fn main() {
    println!("cargo::rerun-if-changed=../setup/rpath.rs");
    println!("cargo::rerun-if-env-changed=LIBTORCH");
    if let Ok(libtorch) = std::env::var("LIBTORCH") {
        println!("cargo::rustc-link-arg=-Wl,--disable-new-dtags,-rpath,{libtorch}/lib");
        // Nothing calls into the CUDA half by name, so the linker would drop it; loaded at start,
        // it registers itself with libtorch.
        let cuda = Path::new(&libtorch).join("lib/libtorch_cuda.so");
        if cuda.exists() {
            let cuda = cuda.display();
            println!("cargo::rustc-link-arg=-Wl,--no-as-needed,{cuda},--as-needed");
        }
    }
}
