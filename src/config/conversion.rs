//! Decodes how a provider's value becomes a value of a unified field: `unit`, `format`, `as` and `count` of a rule.

use super::decode::{self, DecodeContext, Fields};
use super::faults::Located;
use super::tree::Node;
use crate::base::model::{Field, FieldType};

/// How a provider's value becomes a value of the field.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Conversion {
    /// It has the type of the field already. A time is RFC 3339.
    #[default]
    None,
    /// A number, or a number as text: the time since 1970-01-01T00:00:00Z, in this unit.
    Epoch(Unit),
    /// A text: the time in the form of RFC 2822, section 3.3.
    Rfc2822,
    /// A number, or a number as text: a duration in this unit.
    Duration(Unit),
    /// A text: a duration in the form of ISO 8601, such as `PT1M30S`.
    IsoDuration,
    /// A number, `true` or `false`, which becomes a text.
    Text,
    /// A text, which becomes a number.
    Number,
    /// An array, whose elements are counted.
    Count,
}

/// A unit of time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)] // the names describe the variants
pub enum Unit {
    Nanosecond,
    Microsecond,
    Millisecond,
    Second,
    Minute,
    Hour,
}

impl Unit {
    /// Returns the length in nanoseconds.
    #[must_use]
    pub fn nanoseconds(self) -> i128 {
        match self {
            Unit::Nanosecond => 1,
            Unit::Microsecond => 1_000,
            Unit::Millisecond => 1_000_000,
            Unit::Second => 1_000_000_000,
            Unit::Minute => 60 * 1_000_000_000,
            Unit::Hour => 3600 * 1_000_000_000,
        }
    }
}

/// The units of a time since 1970, and with those after them, of a duration.
const UNITS: [(&str, Unit); 6] = [
    ("s", Unit::Second),
    ("ms", Unit::Millisecond),
    ("us", Unit::Microsecond),
    ("ns", Unit::Nanosecond),
    ("m", Unit::Minute),
    ("h", Unit::Hour),
];

/// Reads the keys of a rule that say how its value is converted, and the paths under `count`.
pub(super) fn decode(
    field: Field,
    fields: &mut Fields<'_>,
    cx: &mut DecodeContext<'_>,
) -> (Conversion, Option<Vec<Located<String>>>) {
    let kind = field.field_type();
    let only = |key: &str, what: &str, node: &Node, cx: &mut DecodeContext<'_>| {
        cx.faults.add(&node.location, format!("{key} is for {what}; {} is none, so leave it out", field.name()));
        None::<Conversion>
    };
    let unit = fields.optional("unit", cx, |node, cx| match kind {
        FieldType::Time => decode::one_of(node, cx, "unit", &UNITS[..4]).map(Conversion::Epoch),
        FieldType::Number => decode::one_of(node, cx, "unit", &UNITS).map(Conversion::Duration),
        _ => only("unit", "times and durations", node, cx),
    });
    let format = fields.optional("format", cx, |node, cx| match kind {
        FieldType::Time => {
            let words = [("rfc3339", Conversion::None), ("rfc2822", Conversion::Rfc2822)];
            decode::one_of(node, cx, "format", &words)
        }
        FieldType::Number => decode::one_of(node, cx, "format", &[("iso8601", Conversion::IsoDuration)]),
        _ => only("format", "times and durations", node, cx),
    });
    let type_name = fields.optional("as", cx, |node, cx| match kind {
        FieldType::Text | FieldType::Id => decode::one_of(node, cx, "as", &[("text", Conversion::Text)]),
        FieldType::Number | FieldType::Count => decode::one_of(node, cx, "as", &[("number", Conversion::Number)]),
        _ => only("as", "texts and numbers", node, cx),
    });
    let count = fields.optional("count", cx, |node, cx| match kind {
        FieldType::Number | FieldType::Count => decode::list(node, cx, decode::at_text),
        _ => {
            only("count", "message_count and other numbers", node, cx);
            None
        }
    });
    let keys = ["unit", "format", "as", "count"].map(|key| fields.is_written(key).then_some(key));
    let keys: Vec<&str> = keys.into_iter().flatten().collect();
    if keys.len() > 1 {
        cx.faults.add(fields.location(), format!("a rule can have one of {}, not several", keys.join(", ")));
    }
    let counts = count.as_ref().map(|_| Conversion::Count);
    (unit.or(format).or(type_name).or(counts).unwrap_or_default(), count)
}
