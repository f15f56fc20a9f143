//! Warnings to compare with. Only the crate can make a `Warning`, so they are compared as JSON, all
//! fields of it.

use criu_rpc::Warning;
use serde_json::Value;

/// An expected warning: `warning!(Lost { pid, what: "personality" })`.
macro_rules! warning {
    ($kind:ident { $($field:ident $(: $value:expr)?),* $(,)? }) => {
        serde_json::json!({
            "kind": stringify!($kind),
            $(stringify!($field): crate::warned::warning!(@ $field $($value)?)),*
        })
    };
    (@ $field:ident) => { $field };
    (@ $field:ident $value:expr) => { $value };
}
pub(crate) use warning;

fn json(warning: &Warning) -> Value {
    serde_json::to_value(warning).unwrap()
}

/// Asserts that these and no other warnings were given, in this order.
#[track_caller]
pub(crate) fn assert_warned(warnings: &[Warning], expected: &[Value], context: impl std::fmt::Debug) {
    assert_eq!(warnings.iter().map(json).collect::<Vec<_>>(), expected, "{context:?}");
}

/// Asserts that this warning was given, maybe among others.
#[track_caller]
pub(crate) fn assert_warned_of(warnings: &[Warning], expected: &Value) {
    assert!(warnings.iter().any(|warning| json(warning) == *expected), "{expected} is not in {warnings:?}");
}
