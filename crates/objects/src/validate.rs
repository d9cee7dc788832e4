//! What an API server's admission would refuse.

use crate::kinds::Object;

/// One field that is wrong, by its path.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{path}: {message}")]
pub struct FieldError {
    /// The path as in `spec.rules[0].from[1].source`.
    pub path: String,
    /// What is wrong.
    pub message: String,
}

/// Every wrong field of the object.
pub fn validate(_object: &Object) -> Vec<FieldError> {
    Vec::new()
}
