//! Compiles the wire contract with protox, so that no machine needs protoc.

use std::error::Error;
use std::path::PathBuf;

use prost::Message;

const FILES: [&str; 6] = [
    "addenda/v1/adapters.proto",
    "addenda/v1/admin.proto",
    "addenda/v1/generation.proto",
    "addenda/v1/jobs.proto",
    "addenda/v1/knowledge.proto",
    "addenda/v1/packets.proto",
];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=addenda");
    let files = protox::compile(FILES, ["."])?;
    let out = PathBuf::from(std::env::var_os("OUT_DIR").ok_or("cargo did not set OUT_DIR")?);
    std::fs::write(out.join("addenda.v1.bin"), files.encode_to_vec())?;
    tonic_prost_build::configure().compile_fds(files)?;
    Ok(())
}
