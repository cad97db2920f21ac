//! The forms in which a record can be sent.

mod ecs;
mod ocsf;

use serde::Deserialize;
use serde_json::Value;

use super::fields::text;
use crate::event::json;

/// A form.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// The record as it is, in JSON: the only form whose chain can be verified.
    #[default]
    Native,
    /// The line for people.
    Text,
    /// Open Cybersecurity Schema Framework.
    Ocsf,
    /// Elastic Common Schema.
    Ecs,
}

impl Format {
    /// Writes a record, which came as this line. The result has no newline.
    #[must_use]
    pub fn write(self, line: &str, event: &Value, host: &str) -> String {
        match self {
            Self::Native => line.to_owned(),
            Self::Text => text(event).to_owned(),
            Self::Ocsf => written(&ocsf::of(event, host)),
            Self::Ecs => written(&ecs::of(event, host)),
        }
    }
}

/// Values that were read as JSON can be written as such.
fn written(value: &Value) -> String {
    json::line(value).unwrap_or_else(|_| value.to_string())
}

/// Removes members that are null, at every depth, and what has no members.
fn without_nulls(value: Value) -> Value {
    match value {
        Value::Object(members) => {
            let members = members.into_iter().map(|(name, value)| (name, without_nulls(value)));
            let is_kept = |value: &Value| {
                !value.is_null() && value.as_object().is_none_or(|members| !members.is_empty())
            };
            Value::Object(members.filter(|(_, value)| is_kept(value)).collect())
        }
        Value::Array(values) => Value::Array(values.into_iter().map(without_nulls).collect()),
        other => other,
    }
}

#[cfg(test)]
mod tests;

#[cfg(test)]
mod schemas;
