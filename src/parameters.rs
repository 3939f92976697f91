//! A request's query, read by what its endpoint takes.
//!
//! A room of its own because everything malformed in a query is refused here, with words that say what would
//! be right. It knows no provider.

use crate::config::decode::unknown;
use crate::endpoints::{DEFAULT_LIMIT, Endpoint, MAX_LIMIT, Stands};
use crate::error::{Outcome, Problem};
use crate::fields::Fields;
use crate::model::{Status, Time, parse_time};
use percent_encoding::percent_decode_str;

/// How sessions are shown.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Shape {
    /// `include=native`
    pub native: bool,
    /// `fields=`; `None`: all of them.
    pub fields: Option<Fields>,
}

/// Which sessions of a list are wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Filter {
    /// Only sessions in this state.
    pub status: Option<Status>,
    /// Only sessions made at this moment or later.
    pub created_after: Option<Time>,
    /// Only sessions made before this moment.
    pub created_before: Option<Time>,
}

impl Filter {
    /// Whether it lets every session through.
    #[must_use]
    pub fn is_open(&self) -> bool {
        *self == Self::default()
    }

    /// Whether a session passes. One that does not say when it was made is in no span of time.
    #[must_use]
    pub fn takes(&self, status: Status, created_at: Option<Time>) -> bool {
        self.status.is_none_or(|wanted| wanted == status)
            && self.created_after.is_none_or(|after| created_at.is_some_and(|at| at >= after))
            && self.created_before.is_none_or(|before| created_at.is_some_and(|at| at < before))
    }
}

/// A list's parameters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Page {
    /// Sessions wanted, 1 to 100.
    pub limit: u32,
    /// Our token, as sent.
    pub token: Option<String>,
    /// Which sessions.
    pub filter: Filter,
    /// Only sessions that are, or are not, switched on.
    pub enabled: Option<bool>,
    /// A source that fails fails the request.
    pub deny_partial: bool,
    /// How they are shown.
    pub shape: Shape,
}

fn invalid(detail: impl Into<String>) -> Box<Problem> {
    Box::new(Problem::invalid(detail))
}

/// A query's parameters, each known, and given once unless it may be repeated.
#[derive(Debug)]
pub struct Parameters(Vec<(&'static str, String)>);

impl Parameters {
    /// Reads a query.
    ///
    /// # Errors
    /// 400 for a parameter that the endpoint does not take, and for one given twice.
    pub fn parse(query: &str, endpoint: &'static Endpoint) -> Outcome<Self> {
        let mut all: Vec<(&'static str, String)> = Vec::new();
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let (name, value) = (form_decoded(name)?, form_decoded(value)?);
            let known = endpoint.parameter(&name);
            let known =
                known.ok_or_else(|| invalid(unknown("parameter", &name, endpoint.in_query().map(|p| p.name))))?;
            if known.stands == Stands::Query && all.iter().any(|(other, _)| *other == known.name) {
                return Err(invalid(format!("{name} is given twice; give it once")));
            }
            all.push((known.name, value));
        }
        Ok(Self(all))
    }

    /// A parameter's value; the first, where there are several.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(known, _)| *known == name).map(|(_, value)| value.as_str())
    }

    /// Every value of a parameter.
    pub fn all(&self, name: &'static str) -> impl Iterator<Item = &str> {
        self.0.iter().filter(move |(known, _)| *known == name).map(|(_, value)| value.as_str())
    }

    /// How sessions are to be shown.
    ///
    /// # Errors
    /// 400 for something else to include, or a field that there is not.
    pub fn shape(&self) -> Outcome<Shape> {
        let native = match self.get("include") {
            None => false,
            Some("native") => true,
            Some(other) => {
                let known = "include=native adds the provider's own object";
                return Err(invalid(format!("include={other} is unknown; {known}")));
            }
        };
        Ok(Shape { native, fields: self.get("fields").map(Fields::parse).transpose()? })
    }

    /// What of a list is wanted.
    ///
    /// # Errors
    /// 400 for a value that its parameter does not take.
    pub fn page(&self) -> Outcome<Page> {
        let limit = self.get("limit").map_or(Some(DEFAULT_LIMIT), |text| {
            let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
            text.parse().ok().filter(|limit| digits && (1..=MAX_LIMIT).contains(limit))
        });
        let status = self.get("status").map(|text| {
            Status::parse(text).ok_or_else(|| invalid(unknown("status", text, Status::ALL.iter().map(|s| s.as_str()))))
        });
        let enabled = self.get("enabled").map(|text| match text {
            "true" => Ok(true),
            "false" => Ok(false),
            _ => Err(invalid(format!("enabled={text} is neither true nor false"))),
        });
        let time = |name| {
            let read = |text: &str| {
                let right = "write RFC 3339 with a zone, as in 2024-01-15T00:00:00Z (a + in a query is written %2B)";
                parse_time(text)
                    .map(|(_, at)| at)
                    .ok_or_else(|| invalid(format!("{name}={text} is not a time; {right}")))
            };
            self.get(name).map(read).transpose()
        };
        let deny_partial = match self.get("partial") {
            None | Some("allow") => false,
            Some("deny") => true,
            Some(other) => return Err(invalid(format!("partial={other} is neither allow nor deny"))),
        };
        let token = self.get("page_token").map(str::to_owned);
        if token.as_deref() == Some("") {
            return Err(invalid("page_token is empty; leave it out for the first page"));
        }
        Ok(Page {
            limit: limit.ok_or_else(|| invalid(format!("limit is a whole number from 1 to {MAX_LIMIT}")))?,
            token,
            filter: Filter {
                status: status.transpose()?,
                created_after: time("created_after")?,
                created_before: time("created_before")?,
            },
            enabled: enabled.transpose()?,
            deny_partial,
            shape: self.shape()?,
        })
    }
}

fn form_decoded(text: &str) -> Outcome<String> {
    let spaced = text.replace('+', " ");
    let decoded = percent_decode_str(&spaced).decode_utf8();
    decoded
        .map(std::borrow::Cow::into_owned)
        .map_err(|_| invalid("a query parameter is not UTF-8 when percent-decoded"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::endpoints::{ALL, SESSIONS};

    fn page(query: &str) -> Result<Page, String> {
        Parameters::parse(query, &SESSIONS).and_then(|p| p.page()).map_err(|problem| problem.detail)
    }

    #[test]
    fn a_page_by_its_parameters() {
        let read = page("limit=25&status=active&created_after=2024-01-01T00:00:00Z&created_before=2024-01-01T01:00:00%2B01:00&partial=deny&fields=id&include=native&page_token=a%2Bb+c").unwrap();
        let midnight = Time(1_704_067_200_000);
        assert_eq!((read.limit, read.token.as_deref(), read.deny_partial), (25, Some("a+b c"), true));
        let filter =
            Filter { status: Some(Status::Active), created_after: Some(midnight), created_before: Some(midnight) };
        assert_eq!(read.filter, filter);
        assert!(read.shape.native && read.shape.fields.is_some());
        let plain = page("").unwrap();
        assert!(plain.limit == 10 && plain.filter.is_open() && !plain.deny_partial && plain.shape == Shape::default());
    }

    #[test]
    fn spans_of_time_meet_without_overlap() {
        let at = |ms| Some(Time(ms));
        let filter = Filter { status: None, created_after: at(10), created_before: at(20) };
        let takes = |created| filter.takes(Status::Active, created);
        assert_eq!(
            [takes(at(9)), takes(at(10)), takes(at(19)), takes(at(20)), takes(None)],
            [false, true, true, false, false]
        );
        assert!(Filter::default().takes(Status::Unknown, None));
    }

    #[test]
    fn what_is_malformed_says_what_would_be_right() {
        for (query, words) in [
            ("limit=0", "from 1 to 100"),
            ("limit=101", "from 1 to 100"),
            ("limit=%2B5", "from 1 to 100"),
            ("limit=", "from 1 to 100"),
            ("limit=5&limit=6", "given twice"),
            ("limt=5", "did you mean \"limit\""),
            ("status=activ", "did you mean \"active\""),
            ("enabled=yes", "neither true nor false"),
            ("page_token=", "leave it out"),
            ("created_after=2024-01-01", "RFC 3339"),
            ("created_before=2024-01-01T00:00:00+01:00", "%2B"),
            ("partial=yes", "neither allow nor deny"),
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
    fn examples_of_the_description_are_taken() {
        for endpoint in ALL {
            for parameter in endpoint.in_query().filter(|parameter| !parameter.example.is_empty()) {
                let query = format!("{}={}", parameter.name, parameter.example);
                let read = Parameters::parse(&query, endpoint).and_then(|read| read.page());
                assert!(read.is_ok(), "{query}: {read:?}");
            }
        }
    }
}
