//! Defines the unified session: its fields, their order and types, and its JSON form.
//!
//! This module knows no provider and no mapping rules.

use crate::base::content_coding::EncodedForms;
use bytes::Bytes;
use http::HeaderValue;
use serde_json::Value;
use std::sync::Arc;
use std::time::Duration;

/// A point in time: milliseconds since the Unix epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Time(pub i64);

impl Time {
    /// Returns this time plus a duration.
    #[must_use]
    pub fn plus(self, duration: Duration) -> Time {
        Time(self.0.saturating_add(i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)))
    }

    /// Returns the time a duration before this one.
    #[must_use]
    pub(crate) fn minus(self, duration: Duration) -> Time {
        Time(self.0.saturating_sub(i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)))
    }

    /// Returns the duration from `earlier` to this time. Zero if `earlier` is later.
    #[must_use]
    pub fn since(self, earlier: Time) -> Duration {
        Duration::from_millis(u64::try_from(self.0.saturating_sub(earlier.0)).unwrap_or(0))
    }

    /// Returns the time as RFC 3339 in UTC, with milliseconds.
    #[must_use]
    pub fn rfc3339(self) -> String {
        jiff::Timestamp::from_millisecond(self.0).map_or_else(|_| String::new(), |t| format!("{t:.3}"))
    }
}

/// Parses an RFC 3339 time with a time zone. Returns it in UTC with `Z` and the fractional digits as sent.
/// `None` for anything else, such as a time without a time zone.
#[must_use]
pub(crate) fn parse_time(text: &str) -> Option<(String, Time)> {
    const SHAPE: &[u8; 19] = b"dddd-dd-ddTdd:dd:dd";
    let mut upper = text.to_ascii_uppercase();
    // RFC 3339, section 5.6, allows a space between date and time.
    if upper.as_bytes().get(10) == Some(&b' ') {
        upper.replace_range(10..11, "T");
    }
    let (head, rest) = upper.split_at_checked(19)?;
    let fits = |(byte, shape): (u8, &u8)| if *shape == b'd' { byte.is_ascii_digit() } else { byte == *shape };
    if !head.bytes().zip(SHAPE).all(fits) {
        return None;
    }
    let fraction = rest.strip_prefix('.').map_or("", |rest| {
        let end = rest.bytes().take_while(u8::is_ascii_digit).count();
        &rest[..end]
    });
    let point = if fraction.is_empty() { "" } else { "." };
    let zone = rest.strip_prefix(point)?.strip_prefix(fraction)?;
    let offset = |zone: &[u8]| matches!(zone, [b'+' | b'-', a, b, b':', c, d] if [a, b, c, d].iter().all(|x| x.is_ascii_digit()));
    if (rest.starts_with('.') && fraction.is_empty()) || (zone != "Z" && !offset(zone.as_bytes())) {
        return None;
    }
    // The library takes at most nanoseconds.
    let stamp: Option<jiff::Timestamp> = match fraction.get(..9) {
        Some(nanoseconds) => format!("{head}{point}{nanoseconds}{zone}").parse().ok(),
        None => upper.parse().ok(),
    };
    match (stamp, zone) {
        (Some(stamp), "Z") => Some((upper, Time(stamp.as_millisecond()))),
        (Some(stamp), _) => {
            let utc = format!("{stamp:.0}");
            let utc = utc.strip_suffix('Z').unwrap_or(&utc);
            Some((format!("{utc}{point}{fraction}Z"), Time(stamp.as_millisecond())))
        }
        // Providers write the end of year 9999 for "never". It is just outside the library's range.
        (None, "Z") if head.starts_with("9999-12-3") => {
            let day = head.replacen("9999", "9996", 1);
            let valid: Result<jiff::Timestamp, _> = format!("{day}Z").parse();
            valid.ok().map(|_| (upper, Time(253_402_300_799_000)))
        }
        _ => None,
    }
}

/// The state of a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Status {
    /// Created, not started yet.
    Pending,
    /// Running, or ready to continue.
    Active,
    /// Over. Late details may still change until the session is settled (`freshness.settle`).
    Ended,
    /// Its `expires_at` has passed.
    Expired,
    /// Switched off at the provider.
    Disabled,
    /// The provider gives no status, or one that its file does not map.
    Unknown,
}

impl Status {
    /// All statuses, in the order of the documentation.
    pub const ALL: [Status; 6] =
        [Status::Pending, Status::Active, Status::Ended, Status::Expired, Status::Disabled, Status::Unknown];

    /// Returns the word in JSON, in the configuration and in the `status` filter.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Status::Pending => "pending",
            Status::Active => "active",
            Status::Ended => "ended",
            Status::Expired => "expired",
            Status::Disabled => "disabled",
            Status::Unknown => "unknown",
        }
    }

    /// Returns the status for a word.
    #[must_use]
    pub fn parse(text: &str) -> Option<Status> {
        Self::ALL.into_iter().find(|status| status.as_str() == text)
    }
}

/// The values of `modality`.
pub(crate) const MODALITIES: [&str; 4] = ["text", "voice", "video", "unknown"];

/// The type of a field's value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FieldType {
    /// An identifier: a non-empty string. An integer becomes a string.
    Id,
    /// A string.
    Text,
    /// A [`Status`] word.
    Status,
    /// One of [`MODALITIES`].
    Modality,
    /// An RFC 3339 time.
    Time,
    /// A number that is not negative, as sent.
    Number,
    /// A whole number that is not negative.
    Count,
    /// A JSON object, unchanged.
    Object,
}

/// A field of the unified session that a provider's file can map.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(usize)]
#[allow(missing_docs)] // the names are those of the JSON
pub enum Field {
    ProviderSessionId,
    AgentId,
    AgentName,
    AgentVersion,
    AgentAvatarUrl,
    Modality,
    Title,
    Description,
    Status,
    CreatedAt,
    UpdatedAt,
    StartedAt,
    EndedAt,
    ExpiresAt,
    DurationSeconds,
    MessageCount,
    ConnectionUrl,
    ConnectionName,
    ConnectionToken,
    Metadata,
}

/// All fields in the order of the JSON: field, parent object (if any), member name, type.
pub(crate) const FIELDS: [(Field, Option<&str>, &str, FieldType); 20] = [
    (Field::ProviderSessionId, None, "provider_session_id", FieldType::Id),
    (Field::AgentId, Some("agent"), "id", FieldType::Id),
    (Field::AgentName, Some("agent"), "name", FieldType::Text),
    (Field::AgentVersion, Some("agent"), "version", FieldType::Text),
    (Field::AgentAvatarUrl, Some("agent"), "avatar_url", FieldType::Text),
    (Field::Modality, None, "modality", FieldType::Modality),
    (Field::Title, None, "title", FieldType::Text),
    (Field::Description, None, "description", FieldType::Text),
    (Field::Status, None, "status", FieldType::Status),
    (Field::CreatedAt, None, "created_at", FieldType::Time),
    (Field::UpdatedAt, None, "updated_at", FieldType::Time),
    (Field::StartedAt, None, "started_at", FieldType::Time),
    (Field::EndedAt, None, "ended_at", FieldType::Time),
    (Field::ExpiresAt, None, "expires_at", FieldType::Time),
    (Field::DurationSeconds, None, "duration_seconds", FieldType::Number),
    (Field::MessageCount, None, "message_count", FieldType::Count),
    (Field::ConnectionUrl, Some("connection"), "url", FieldType::Text),
    (Field::ConnectionName, Some("connection"), "name", FieldType::Text),
    (Field::ConnectionToken, Some("connection"), "token", FieldType::Text),
    (Field::Metadata, None, "metadata", FieldType::Object),
];

impl Field {
    /// Returns the dotted name, as in the configuration, metrics and problems: `agent.id`.
    #[must_use]
    pub fn name(self) -> String {
        let (_, group, member, _) = FIELDS[self as usize];
        group.map_or_else(|| member.to_owned(), |group| format!("{group}.{member}"))
    }

    /// Returns the type of the field's value.
    #[must_use]
    pub fn field_type(self) -> FieldType {
        FIELDS[self as usize].3
    }
}

/// A mapped session. The values are JSON; those that freshness and lists need are also stored with their types.
#[derive(Clone)]
pub struct Session {
    /// `provider:agent:session` or `provider:session`.
    pub id: String,
    /// The provider's configured name.
    pub provider: Arc<str>,
    /// Field values, indexed by [`Field`]. `Null` for a field that the provider does not give.
    pub values: [Value; FIELDS.len()],
    /// The status; `Expired` for an active session whose expiry has passed.
    pub status: Status,
    /// When the session was created, if known.
    pub created_at: Option<Time>,
    /// When the session ended, if known.
    pub ended_at: Option<Time>,
    /// When the session expires, if known.
    pub expires_at: Option<Time>,
}

impl std::fmt::Debug for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Values can be secrets or personal data: they may not be printed.
        write!(f, "Session({} {:?})", self.provider, self.status)
    }
}

/// The form of a view, and whether it contains secrets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Show {
    /// Whether the view contains the members that are marked as secret.
    pub secrets: bool,
    /// The form.
    pub form: Form,
}

/// The form of a view.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Form {
    /// Unified sessions.
    #[default]
    Unified,
    /// Unified sessions, each with the provider's own object as `native`.
    WithNative,
    /// The provider's body.
    Native,
}

impl Session {
    /// Writes the session as JSON. Without `show.secrets`, the fields in `secret` and `connection.token` are left out.
    /// The caller has already removed secret members from `metadata` and `native`.
    pub fn write(
        &self,
        out: &mut Vec<u8>,
        show: Show,
        secret: &[Field],
        metadata: Option<&Value>,
        native: Option<&Value>,
    ) {
        out.extend_from_slice(b"{\"id\":");
        write_json(out, &self.id);
        out.extend_from_slice(b",\"provider\":");
        write_json(out, &*self.provider);
        let mut open: Option<&str> = None;
        for (field, group, member, _) in FIELDS {
            if !show.secrets && (field == Field::ConnectionToken || secret.contains(&field)) {
                continue;
            }
            let first = group != open && group.is_some();
            if group != open {
                if open.is_some() {
                    out.push(b'}');
                }
                if let Some(name) = group {
                    out.extend_from_slice(b",\"");
                    out.extend_from_slice(name.as_bytes());
                    out.extend_from_slice(b"\":{");
                }
                open = group;
            }
            if !first {
                out.push(b',');
            }
            // The names in `FIELDS` need no escapes.
            out.push(b'"');
            out.extend_from_slice(member.as_bytes());
            out.extend_from_slice(b"\":");
            match &self.values[field as usize] {
                _ if field == Field::Metadata => match metadata {
                    Some(metadata) => write_json(out, metadata),
                    None => out.extend_from_slice(b"{}"),
                },
                value => write_json(out, value),
            }
        }
        if let Some(native) = native.filter(|_| show.form == Form::WithNative) {
            out.extend_from_slice(b",\"native\":");
            write_json(out, native);
        }
        out.push(b'}');
    }
}

/// The body of a cache entry in one form.
pub struct View {
    /// The JSON of the sessions, separated by commas. So the bytes of adjacent sessions are valid inside an array.
    pub body: Bytes,
    /// The position of each session in `body`.
    pub items: Vec<Item>,
    /// The strong entity tag of `body`.
    pub etag: HeaderValue,
    /// The compressed forms of `body`.
    pub encoded: EncodedForms,
}

impl std::fmt::Debug for View {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "View({} items, {} bytes)", self.items.len(), self.body.len())
    }
}

/// One session of a view.
#[derive(Debug, Clone)]
pub struct Item {
    /// The position of its first byte.
    pub start: usize,
    /// The position after its last byte.
    pub end: usize,
    /// The status, for filters.
    pub status: Status,
    /// When the session was created, for filters and for merging.
    pub created_at: Option<Time>,
}

/// Appends a value as JSON. Neither writing to a `Vec` nor serializing the types of this crate can fail.
pub(crate) fn write_json<T: serde::Serialize + ?Sized>(out: &mut Vec<u8>, value: &T) {
    let written = serde_json::to_writer(&mut *out, value);
    debug_assert!(written.is_ok(), "the value is not valid as JSON");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_in_the_order_of_their_numbers() {
        for (index, row) in FIELDS.iter().enumerate() {
            assert_eq!(row.0 as usize, index);
        }
        assert_eq!(Field::AgentAvatarUrl.name(), "agent.avatar_url");
    }

    #[test]
    fn times_keep_their_digits_and_become_utc() {
        let utc = |text| parse_time(text).map(|(text, _)| text);
        assert_eq!(utc("2024-10-01T22:04:24.962583055Z").as_deref(), Some("2024-10-01T22:04:24.962583055Z"));
        assert_eq!(utc("2024-10-01T22:04:24Z").as_deref(), Some("2024-10-01T22:04:24Z"));
        assert_eq!(utc("2024-10-01 22:04:24.5+02:00").as_deref(), Some("2024-10-01T20:04:24.5Z"));
        assert_eq!(utc("2024-10-01T22:04:24.500+02:00").as_deref(), Some("2024-10-01T20:04:24.500Z"));
        assert_eq!(utc("2024-10-01T22:04:24+02:00").as_deref(), Some("2024-10-01T20:04:24Z"));
        assert_eq!(utc("2024-10-01t22:04:24.10z").as_deref(), Some("2024-10-01T22:04:24.10Z"));
        assert_eq!(utc("2024-10-01T22:04:24.0123456789Z").as_deref(), Some("2024-10-01T22:04:24.0123456789Z"));
        assert_eq!(utc("9999-12-31T23:59:59Z").as_deref(), Some("9999-12-31T23:59:59Z"));
        assert_eq!(utc("2024-10-01T00:30:00.75+01:00").as_deref(), Some("2024-09-30T23:30:00.75Z"));
        for wrong in [
            "2024-10-01T22:04:24,962Z",
            "2024-10-01T220424.00Z",
            "9999-12-32T00:00:00Z",
            "2024-10-01T22:04:24.Z",
            "2024-10-01T22:04:24",
            "2024-10-01",
            "yesterday",
            "",
            "2024-13-01T00:00:00Z",
            "1727820264",
        ] {
            assert_eq!(utc(wrong), None, "{wrong}");
        }
        assert_eq!(parse_time("1970-01-01T00:00:01.5Z").map(|(_, at)| at), Some(Time(1500)));
    }

    #[test]
    fn an_empty_session_has_every_field() {
        let session = Session {
            id: "p:s".into(),
            provider: "p".into(),
            values: std::array::from_fn(|_| Value::Null),
            status: Status::Unknown,
            created_at: None,
            ended_at: None,
            expires_at: None,
        };
        let mut out = Vec::new();
        session.write(&mut out, Show::default(), &[], None, None);
        assert_eq!(
            String::from_utf8_lossy(&out),
            concat!(
                r#"{"id":"p:s","provider":"p","provider_session_id":null,"#,
                r#""agent":{"id":null,"name":null,"version":null,"avatar_url":null},"#,
                r#""modality":null,"title":null,"description":null,"status":null,"created_at":null,"#,
                r#""updated_at":null,"started_at":null,"ended_at":null,"expires_at":null,"#,
                r#""duration_seconds":null,"message_count":null,"connection":{"url":null,"name":null},"metadata":{}}"#
            )
        );
    }
}
