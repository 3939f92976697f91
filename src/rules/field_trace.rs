//! Defines how the mapping of one field is described: where its value came from, and why another one was not used.

use crate::base::jsonpath::JsonPath;
use crate::base::model::Field;

/// Why a field could not be mapped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FailureReason {
    /// A required field is missing.
    Missing,
    /// The value does not have the field's type.
    WrongType,
    /// The rule's `values` do not contain the provider's word.
    UnknownValue,
    /// No request could name a session with this id.
    NotAddressable,
}

impl FailureReason {
    /// Returns the metric's `reason` label.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            FailureReason::Missing => "missing",
            FailureReason::WrongType => "wrong_type",
            FailureReason::UnknownValue => "unknown_value",
            FailureReason::NotAddressable => "not_addressable",
        }
    }
}

/// Where a field's value came from, or why it has none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FieldSource<'m> {
    /// The value at this path.
    Path(&'m JsonPath),
    /// The rule's constant.
    Constant,
    /// The rule's default.
    Default,
    /// The provider's file has no rule for the field.
    NoRule,
    /// The rule's paths have no value.
    Nothing,
    /// The rule's paths have only values that cannot be used.
    Unusable(FailureReason),
}

/// How a field was mapped. For people: `weir map`, `weir explain`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FieldTrace<'m> {
    /// The field.
    pub field: Field,
    /// Where its value came from.
    pub source: FieldSource<'m>,
    /// The paths that were tried, in order, with the result of each. Paths after the one with a usable value are not
    /// tried.
    pub tried: Vec<(&'m JsonPath, PathResult)>,
    /// The values that the rule itself contains.
    pub rule: Option<RuleValues<'m>>,
}

/// The result of one path of a rule. A type is a JSON type, such as `string`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PathResult {
    /// No value, or `null`, which counts as no value.
    Nothing {
        /// Whether the value is `null`.
        null: bool,
    },
    /// A value of this type, which was used.
    Used(&'static str),
    /// A value of this type, which could not be used.
    Unusable(&'static str, FailureReason),
}

/// The values that a rule contains besides its paths, as in the provider's file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RuleValues<'m> {
    /// The constant value of the field.
    pub constant: Option<&'m str>,
    /// The provider's words, each with the unified word.
    pub values: &'m [(String, String)],
    /// The value if no path has a usable one.
    pub default: Option<&'m str>,
}
