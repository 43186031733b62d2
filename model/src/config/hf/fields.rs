//! Typed access to a JSON object that names what is wrong.

use serde_json::{Map, Value};

use crate::config::config;
use crate::error::Result;

/// An object of `config.json` with typed access that names what is wrong.
pub(super) struct Fields<'a>(pub(super) &'a Map<String, Value>);

impl<'a> Fields<'a> {
    /// The value, unless it is absent or null.
    pub(super) fn get(&self, name: &str) -> Option<&'a Value> {
        self.0.get(name).filter(|value| !value.is_null())
    }

    fn typed<T>(
        &self,
        name: &str,
        kind: &str,
        read: impl Fn(&'a Value) -> Option<T>,
    ) -> Result<Option<T>> {
        self.get(name)
            .map(|value| {
                read(value).ok_or_else(|| config(format!("`{name}` is {value}; it must be {kind}")))
            })
            .transpose()
    }

    pub(super) fn size(&self, name: &str) -> Result<Option<usize>> {
        self.typed(name, "a whole number", |value| {
            value
                .as_u64()
                .and_then(|number| usize::try_from(number).ok())
        })
    }

    pub(super) fn need(&self, name: &str) -> Result<usize> {
        self.size(name)?
            .ok_or_else(|| config(format!("config.json lacks `{name}`")))
    }

    pub(super) fn number(&self, name: &str) -> Result<Option<f64>> {
        self.typed(name, "a number", Value::as_f64)
    }

    pub(super) fn flag(&self, name: &str) -> Result<Option<bool>> {
        self.typed(name, "true or false", Value::as_bool)
    }

    pub(super) fn text(&self, name: &str) -> Result<Option<&'a str>> {
        self.typed(name, "a text", Value::as_str)
    }

    pub(super) fn object(&self, name: &str) -> Result<Option<Fields<'a>>> {
        self.typed(name, "an object", |value| value.as_object().map(Fields))
    }
}
