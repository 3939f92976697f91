//! Parses and checks the query parameters of a request against those of its endpoint.
//!
//! Each error says which value would be right. Nothing here depends on a provider.

use crate::base::endpoints::{DEFAULT_LIMIT, Endpoint, MAX_LIMIT, ParameterLocation};
use crate::base::model::{Status, Time, parse_time};
use crate::base::typo::unknown;
use crate::rules::fields::{FieldSelection, UnknownField};
use crate::rules::query::{self, NotUtf8};

/// How a response represents sessions.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Representation {
    /// `include=native`: with the provider's own object.
    pub native: bool,
    /// `fields=`; `None` for all fields.
    pub fields: Option<FieldSelection>,
}

/// The filter of a list.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Filter {
    /// Only sessions with this status.
    pub status: Option<Status>,
    /// Only sessions created at this time or later.
    pub created_after: Option<Time>,
    /// Only sessions created before this time.
    pub created_before: Option<Time>,
}

impl Filter {
    /// Returns whether every session passes.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Returns whether a session passes. Without a creation time, it passes no time filter.
    #[must_use]
    pub fn matches(&self, status: Status, created_at: Option<Time>) -> bool {
        self.status.is_none_or(|expected| expected == status)
            && self.created_after.is_none_or(|after| created_at.is_some_and(|at| at >= after))
            && self.created_before.is_none_or(|before| created_at.is_some_and(|at| at < before))
    }
}

/// The parameters of a list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Page {
    /// The most sessions on the page, 1 to 100.
    pub limit: u32,
    /// Weir's page token, as sent.
    pub token: Option<String>,
    /// Which sessions the list has.
    pub filter: Filter,
    /// Only enabled, or only disabled, sessions.
    pub enabled: Option<bool>,
    /// Whether the request fails if a source fails.
    pub deny_partial: bool,
    /// How the response represents the sessions.
    pub shape: Representation,
}

/// What is wrong with a query.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum QueryError {
    /// The endpoint has no such parameter. The hint suggests a similar one.
    #[error("{hint}")]
    UnknownParameter { hint: String },
    /// A parameter that cannot be repeated is given twice.
    #[error("{name} is given twice; give it once")]
    GivenTwice { name: &'static str },
    /// A name or a value is not UTF-8.
    #[error("a query parameter is not UTF-8 when percent-decoded")]
    NotUtf8,
    /// `include=` has another value than `native`.
    #[error("include={value} is unknown; include=native adds the provider's own object")]
    Include { value: String },
    /// `fields=` has an unknown field.
    #[error(transparent)]
    Field(#[from] UnknownField),
    /// `limit=` is not a number in its range.
    #[error("limit must be a whole number from 1 to {MAX_LIMIT}")]
    Limit,
    /// `status=` is not a session status. The hint suggests a similar one.
    #[error("{hint}")]
    Status { hint: String },
    /// `enabled=` is not a boolean.
    #[error("enabled={value} is invalid; write true or false")]
    Enabled { value: String },
    /// A time is not in RFC 3339 format or has no time zone.
    #[error(
        "{name}={value} is not a valid time; write RFC 3339 with a time zone, for example 2024-01-15T00:00:00Z (write + as %2B)"
    )]
    Time { name: &'static str, value: String },
    /// `partial=` is not one of its values.
    #[error("partial={value} is invalid; write allow or deny")]
    Partial { value: String },
    /// `page_token=` has no value.
    #[error("page_token is empty; omit it for the first page")]
    EmptyPageToken,
}

/// The parameters of a query. Each is known, and only repeatable ones occur more than once.
#[derive(Debug)]
pub(crate) struct Parameters(Vec<(&'static str, String)>);

impl Parameters {
    /// Parses a query string.
    ///
    /// # Errors
    /// A parameter is unknown to the endpoint, not UTF-8, or given twice.
    pub(crate) fn parse(query: &str, endpoint: &'static Endpoint) -> Result<Self, QueryError> {
        let mut all: Vec<(&'static str, String)> = Vec::new();
        for pair in query::pairs(query) {
            let (name, value) = pair.map_err(|NotUtf8| QueryError::NotUtf8)?;
            let known = endpoint.parameter(&name);
            let known = known.ok_or_else(|| {
                let hint = unknown("parameter", &name, endpoint.query_parameters().map(|p| p.name));
                QueryError::UnknownParameter { hint }
            })?;
            if known.location == ParameterLocation::Query && all.iter().any(|(other, _)| *other == known.name) {
                return Err(QueryError::GivenTwice { name: known.name });
            }
            all.push((known.name, value.into_owned()));
        }
        Ok(Self(all))
    }

    /// Returns the first value of a parameter.
    #[must_use]
    pub(crate) fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(known, _)| *known == name).map(|(_, value)| value.as_str())
    }

    /// Returns all values of a parameter.
    pub(crate) fn all(&self, name: &'static str) -> impl Iterator<Item = &str> {
        self.0.iter().filter(move |(known, _)| *known == name).map(|(_, value)| value.as_str())
    }

    /// Returns how the response represents sessions.
    ///
    /// # Errors
    /// `include` has an unknown value, or `fields` an unknown name.
    pub(crate) fn representation(&self) -> Result<Representation, QueryError> {
        let native = match self.get("include") {
            None => false,
            Some("native") => true,
            Some(other) => return Err(QueryError::Include { value: other.to_owned() }),
        };
        let mut names = self.all("fields").flat_map(|value| value.split(',')).peekable();
        let fields = names.peek().is_some().then(|| FieldSelection::of(names)).transpose()?;
        Ok(Representation { native, fields })
    }

    /// Returns the parameters of a list.
    ///
    /// # Errors
    /// A value is invalid for its parameter.
    pub(crate) fn page(&self) -> Result<Page, QueryError> {
        let limit = self.get("limit").map_or(Some(DEFAULT_LIMIT), |text| {
            let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
            text.parse().ok().filter(|limit| digits && (1..=MAX_LIMIT).contains(limit))
        });
        let status = self.get("status").map(|text| {
            let hint = || unknown("status", text, Status::ALL.iter().map(|s| s.as_str()));
            Status::parse(text).ok_or_else(|| QueryError::Status { hint: hint() })
        });
        let enabled = self.get("enabled").map(|text| match text {
            "true" => Ok(true),
            "false" => Ok(false),
            _ => Err(QueryError::Enabled { value: text.to_owned() }),
        });
        let time = |name| {
            let read = |text: &str| {
                let time = parse_time(text).map(|(_, at)| at);
                time.ok_or_else(|| QueryError::Time { name, value: text.to_owned() })
            };
            self.get(name).map(read).transpose()
        };
        let deny_partial = match self.get("partial") {
            None | Some("allow") => false,
            Some("deny") => true,
            Some(other) => return Err(QueryError::Partial { value: other.to_owned() }),
        };
        let token = self.get("page_token").map(str::to_owned);
        if token.as_deref() == Some("") {
            return Err(QueryError::EmptyPageToken);
        }
        Ok(Page {
            limit: limit.ok_or(QueryError::Limit)?,
            token,
            filter: Filter {
                status: status.transpose()?,
                created_after: time("created_after")?,
                created_before: time("created_before")?,
            },
            enabled: enabled.transpose()?,
            deny_partial,
            shape: self.representation()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::endpoints::{ALL, SESSIONS};

    fn page(query: &str) -> Result<Page, String> {
        Parameters::parse(query, &SESSIONS).and_then(|p| p.page()).map_err(|error| error.to_string())
    }

    #[test]
    fn all_parameters_of_a_list_are_parsed() {
        let read = page("limit=25&status=active&created_after=2024-01-01T00:00:00Z&created_before=2024-01-01T01:00:00%2B01:00&partial=deny&fields=id&include=native&page_token=a%2Bb+c").unwrap();
        let midnight = Time(1_704_067_200_000);
        assert_eq!((read.limit, read.token.as_deref(), read.deny_partial), (25, Some("a+b c"), true));
        let filter =
            Filter { status: Some(Status::Active), created_after: Some(midnight), created_before: Some(midnight) };
        assert_eq!(read.filter, filter);
        assert!(read.shape.native && read.shape.fields.is_some());
        let plain = page("").unwrap();
        assert!(
            plain.limit == 10
                && plain.filter.is_empty()
                && !plain.deny_partial
                && plain.shape == Representation::default()
        );
    }

    #[test]
    fn adjacent_time_filters_do_not_overlap() {
        let at = |ms| Some(Time(ms));
        let filter = Filter { status: None, created_after: at(10), created_before: at(20) };
        let matches = |created| filter.matches(Status::Active, created);
        assert_eq!(
            [matches(at(9)), matches(at(10)), matches(at(19)), matches(at(20)), matches(None)],
            [false, true, true, false, false]
        );
        assert!(Filter::default().matches(Status::Unknown, None));
    }

    #[test]
    fn errors_say_what_would_be_right() {
        for (query, words) in [
            ("limit=0", "from 1 to 100"),
            ("limit=101", "from 1 to 100"),
            ("limit=%2B5", "from 1 to 100"),
            ("limit=", "from 1 to 100"),
            ("limit=5&limit=6", "given twice"),
            ("limt=5", "did you mean \"limit\""),
            ("status=activ", "did you mean \"active\""),
            ("enabled=yes", "write true or false"),
            ("page_token=", "omit it"),
            ("created_after=2024-01-01", "RFC 3339"),
            ("created_before=2024-01-01T00:00:00+01:00", "%2B"),
            ("partial=yes", "write allow or deny"),
            ("fields=", "unknown field"),
            ("include=all", "include=native"),
            ("x=%ff", "not UTF-8"),
        ] {
            let detail = page(query).unwrap_err();
            assert!(detail.contains(words), "{query}: {detail}");
        }
        let several = Parameters::parse("agent=a&agent=b&provider=c", &SESSIONS).unwrap();
        assert_eq!(several.all("agent").collect::<Vec<_>>(), ["a", "b"]);
    }

    #[test]
    fn the_examples_of_the_api_description_are_valid() {
        for endpoint in ALL {
            for parameter in endpoint.query_parameters().filter(|parameter| !parameter.example.is_empty()) {
                let query = format!("{}={}", parameter.name, parameter.example);
                let read = Parameters::parse(&query, endpoint).and_then(|read| read.page());
                assert!(read.is_ok(), "{query}: {read:?}");
            }
        }
    }
}
