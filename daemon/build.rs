//! Lets the binary find libtorch where it was linked, without LD_LIBRARY_PATH.
//! DT_RPATH rather than DT_RUNPATH: libtorch's own dependencies lie in the same folder.

fn main() {
    println!("cargo::rerun-if-env-changed=LIBTORCH");
    if let Ok(libtorch) = std::env::var("LIBTORCH") {
        println!("cargo::rustc-link-arg=-Wl,--disable-new-dtags,-rpath,{libtorch}/lib");
    }
}
