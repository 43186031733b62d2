//! Messages of the wire as JSON.
//!
//! Owns the one form that `--json` prints: field names as in the .proto files, every field there,
//! numbers as numbers, enumerations by name, one object a line. Reflection does it, so a new field
//! cannot be forgotten here.

use prost::Message;
use prost_reflect::{DescriptorPool, DynamicMessage, SerializeOptions};
use serde_json::Value;

use super::console::Console;
use super::error::{Error, Result};

/// The wire contract's descriptors, to turn messages into JSON.
pub(crate) struct Descriptors(DescriptorPool);

impl Descriptors {
    /// Decodes the contract that this binary was built with.
    pub(crate) fn load() -> Result<Self> {
        DescriptorPool::decode(addenda_proto::FILE_DESCRIPTOR_SET)
            .map(Self)
            .map_err(|error| Error::Json(error.to_string()))
    }

    /// `message`, which is an `addenda.v1.{name}`, as a JSON object.
    pub(crate) fn value(&self, name: &str, message: &impl Message) -> Result<Value> {
        let descriptor = self
            .0
            .get_message_by_name(&format!("addenda.v1.{name}"))
            .ok_or_else(|| Error::Json(format!("there is no message {name}")))?;
        let bytes = message.encode_to_vec();
        let dynamic = DynamicMessage::decode(descriptor, bytes.as_slice())
            .map_err(|error| Error::Json(error.to_string()))?;
        let options = SerializeOptions::new()
            .stringify_64_bit_integers(false)
            .use_proto_field_name(true)
            .skip_default_fields(false);
        dynamic
            .serialize_with_options(serde_json::value::Serializer, &options)
            .map_err(|error| Error::Json(error.to_string()))
    }
}

impl Console {
    /// Prints one message as a line of JSON.
    pub(crate) fn message(&mut self, name: &str, message: &impl Message) -> Result<()> {
        let value = Descriptors::load()?.value(name, message)?;
        self.line(&value.to_string())
    }

    /// Prints messages as a line of JSON each.
    pub(crate) fn messages<M: Message>(&mut self, name: &str, messages: &[M]) -> Result<()> {
        let descriptors = Descriptors::load()?;
        for message in messages {
            let value = descriptors.value(name, message)?;
            self.line(&value.to_string())?;
        }
        Ok(())
    }
}
