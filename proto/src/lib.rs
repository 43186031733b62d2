//! The gRPC face of Addenda: messages, clients and server traits generated from
//! `proto/addenda/v1/*.proto`. Owns the wire contract; holds no logic.
//!
//! Compatibility: fields are only ever added; a number is never used twice.

/// Package `addenda.v1`, the first version of the wire contract.
#[expect(
    missing_docs,
    unused_qualifications,
    clippy::large_enum_variant,
    clippy::allow_attributes,
    clippy::allow_attributes_without_reason,
    reason = "generated code: field comments come from the .proto files, the rest is the generator's"
)]
pub mod addenda {
    /// Messages, clients (`*_client`) and server traits (`*_server`).
    pub mod v1 {
        tonic::include_proto!("addenda.v1");
    }
}

/// Every .proto file of the contract as an encoded `FileDescriptorSet`, for server reflection.
pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/addenda.v1.bin"));
