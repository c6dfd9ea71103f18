//! Generates the protocol's code from `proto/`, with a compiler in Rust, so that no system protoc is needed.

use std::error::Error;

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=proto");
    let files = protox::compile(["vmcp/session/v1/coherence.proto"], ["proto"])?;
    tonic_prost_build::configure().bytes(".").codec_path("crate::proto::codec::BoundedCodec").compile_fds(files)?;
    Ok(())
}
