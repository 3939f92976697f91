//! The unified session: its fields, their order and types, and how they are written.
//!
//! A room of its own because everyone speaks of it: the mapping fills it, freshness reads its state
//! and times, the views are its JSON. It must not know any provider, nor where values come from.

use bytes::Bytes;
use http::HeaderValue;
use serde_json::Value;
use std::sync::Arc;
use std::time::Duration;

/// A moment: milliseconds since the Unix epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Time(pub i64);

impl Time {
    /// This moment plus a duration.
    #[must_use]
    pub fn plus(self, duration: Duration) -> Time {
        Time(self.0.saturating_add(i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)))
    }

    /// How long after `earlier` this is; zero if it is not.
    #[must_use]
    pub fn since(self, earlier: Time) -> Duration {
        Duration::from_millis(u64::try_from(self.0.saturating_sub(earlier.0)).unwrap_or(0))
    }

    /// RFC 3339 in UTC, with milliseconds.
    #[must_use]
    pub fn rfc3339(self) -> String {
        jiff::Timestamp::from_millisecond(self.0).map_or_else(|_| String::new(), |t| format!("{t:.3}"))
    }
}

/// Reads an RFC 3339 time with a zone and gives it in UTC with `Z`, fractional digits as sent.
/// `None` for anything else (a time without a zone names no moment).
#[must_use]
pub fn parse_time(text: &str) -> Option<(String, Time)> {
    const SHAPE: &[u8; 19] = b"dddd-dd-ddTdd:dd:dd";
    let upper = text.to_ascii_uppercase();
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
    // Beyond nanoseconds nothing is compared.
    let stamp: Option<jiff::Timestamp> = match fraction.get(..9) {
        Some(compared) => format!("{head}{point}{compared}{zone}").parse().ok(),
        None => upper.parse().ok(),
    };
    match (stamp, zone) {
        (Some(stamp), "Z") => Some((upper, Time(stamp.as_millisecond()))),
        (Some(stamp), _) => {
            let utc = format!("{stamp:.0}");
            let utc = utc.strip_suffix('Z').unwrap_or(&utc);
            Some((format!("{utc}{point}{fraction}Z"), Time(stamp.as_millisecond())))
        }
        // A usual way to say never, and just beyond what the library can hold.
        (None, "Z") if head.starts_with("9999-12-3") => {
            let day = head.replacen("9999", "9996", 1);
            let valid: Result<jiff::Timestamp, _> = format!("{day}Z").parse();
            valid.ok().map(|_| (upper, Time(253_402_300_799_000)))
        }
        _ => None,
    }
}

/// What a session is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Status {
    /// Made, not started.
    Pending,
    /// Running, or able to.
    Active,
    /// Over; no longer changes once settled.
    Ended,
    /// Past its expiry.
    Expired,
    /// Switched off.
    Disabled,
    /// The provider does not say, or says something unheard of.
    Unknown,
}

impl Status {
    /// All of them, in the order of the documentation.
    pub const ALL: [Status; 6] =
        [Status::Pending, Status::Active, Status::Ended, Status::Expired, Status::Disabled, Status::Unknown];

    /// The word in JSON, in config and in the `status` filter.
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

    /// The status of this name.
    #[must_use]
    pub fn parse(text: &str) -> Option<Status> {
        Self::ALL.into_iter().find(|status| status.as_str() == text)
    }
}

/// The words of `modality`.
pub const MODALITIES: [&str; 4] = ["text", "voice", "video", "unknown"];

/// What may stand in a field.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// An identifier: a non-empty string, or an integer written as one.
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
    /// A JSON object, untouched.
    Object,
}

/// A leaf of the unified session that a provider's file may map.
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

/// Every leaf in the order of the JSON: field, object it stands in (if any), member name, kind.
pub const FIELDS: [(Field, Option<&str>, &str, Kind); 20] = [
    (Field::ProviderSessionId, None, "provider_session_id", Kind::Id),
    (Field::AgentId, Some("agent"), "id", Kind::Id),
    (Field::AgentName, Some("agent"), "name", Kind::Text),
    (Field::AgentVersion, Some("agent"), "version", Kind::Text),
    (Field::AgentAvatarUrl, Some("agent"), "avatar_url", Kind::Text),
    (Field::Modality, None, "modality", Kind::Modality),
    (Field::Title, None, "title", Kind::Text),
    (Field::Description, None, "description", Kind::Text),
    (Field::Status, None, "status", Kind::Status),
    (Field::CreatedAt, None, "created_at", Kind::Time),
    (Field::UpdatedAt, None, "updated_at", Kind::Time),
    (Field::StartedAt, None, "started_at", Kind::Time),
    (Field::EndedAt, None, "ended_at", Kind::Time),
    (Field::ExpiresAt, None, "expires_at", Kind::Time),
    (Field::DurationSeconds, None, "duration_seconds", Kind::Number),
    (Field::MessageCount, None, "message_count", Kind::Count),
    (Field::ConnectionUrl, Some("connection"), "url", Kind::Text),
    (Field::ConnectionName, Some("connection"), "name", Kind::Text),
    (Field::ConnectionToken, Some("connection"), "token", Kind::Text),
    (Field::Metadata, None, "metadata", Kind::Object),
];

impl Field {
    /// The dotted name, as in config, metrics and problems: `agent.id`.
    #[must_use]
    pub fn name(self) -> String {
        let (_, group, member, _) = FIELDS[self as usize];
        group.map_or_else(|| member.to_owned(), |group| format!("{group}.{member}"))
    }

    /// What may stand in it.
    #[must_use]
    pub fn kind(self) -> Kind {
        FIELDS[self as usize].3
    }
}

/// One session, mapped. Values are JSON already; what freshness and lists need is typed beside them.
#[derive(Clone)]
pub struct Session {
    /// `provider:agent:session` or `provider:session`.
    pub id: String,
    /// The provider's configured name.
    pub provider: Arc<str>,
    /// Leaf values, indexed by [`Field`]; `Null` for what the provider does not say.
    pub values: [Value; FIELDS.len()],
    /// The status, with expiry taken into account.
    pub status: Status,
    /// When it was made, if known.
    pub created_at: Option<Time>,
    /// When it ended, if known.
    pub ended_at: Option<Time>,
    /// When it expires, if known.
    pub expires_at: Option<Time>,
}

impl std::fmt::Debug for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Its values may be secret, or somebody's metadata.
        write!(f, "Session({} {:?})", self.provider, self.status)
    }
}

/// What a view shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Show {
    /// Members marked secret are in it.
    pub secrets: bool,
    /// In which form.
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
    /// Writes the session as JSON. Fields in `secret` are left out unless `show.secrets`;
    /// `connection.token` always counts as one. `metadata` and `native` are already cut by the same rule.
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
            // Names of ours need no escapes.
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

/// One rendering of an answer.
pub struct View {
    /// The sessions' JSON, one after the other, with commas between: any that follow each other are an array's inside.
    pub body: Bytes,
    /// Where each session stands in `body`.
    pub items: Vec<Item>,
    /// A strong entity tag of `body`.
    pub etag: HeaderValue,
}

impl std::fmt::Debug for View {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "View({} items, {} bytes)", self.items.len(), self.body.len())
    }
}

/// One session of a view.
#[derive(Debug, Clone)]
pub struct Item {
    /// Where it begins.
    pub start: usize,
    /// Where it ends.
    pub end: usize,
    /// Its state, for filters.
    pub status: Status,
    /// When it was made, for filters and for merging.
    pub created_at: Option<Time>,
}

/// Appends a value as JSON. Writing to a `Vec` cannot fail, and neither can the types we write.
pub fn write_json<T: serde::Serialize + ?Sized>(out: &mut Vec<u8>, value: &T) {
    let written = serde_json::to_writer(&mut *out, value);
    debug_assert!(written.is_ok(), "a value that JSON cannot say");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_stand_where_their_number_says() {
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
    fn a_session_without_anything_still_has_every_field() {
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
