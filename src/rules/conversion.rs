//! Converts a provider's value to a time, a duration, a text or a number.

use crate::base::model::{Time, parse_time};
use crate::config::conversion::{Conversion, Unit};
use jiff::{SignedDuration, Timestamp};
use serde_json::{Number, Value};

/// The most characters of a number: more would only cost time.
const MAX_DIGITS: usize = 40;

/// Converts a value. `None` if it does not have the form that the conversion needs. A time is returned as text in UTC, and
/// parsed.
pub(crate) fn convert(conversion: Conversion, value: &Value) -> Option<(Value, Option<Time>)> {
    let text = || value.as_str();
    match conversion {
        Conversion::None => None,
        Conversion::Epoch(unit) => time(Timestamp::from_nanosecond(nanoseconds(value, unit)?).ok()?),
        Conversion::Rfc2822 => time(jiff::fmt::rfc2822::parse(text()?.trim()).ok()?.timestamp()),
        Conversion::Duration(unit) => Some((seconds(nanoseconds(value, unit)?)?, None)),
        Conversion::IsoDuration => {
            let duration: SignedDuration = text().filter(|text| text.starts_with(['P', 'p']))?.parse().ok()?;
            Some((seconds(duration.as_nanos())?, None))
        }
        Conversion::Text => match value {
            Value::String(_) => Some((value.clone(), None)),
            Value::Number(_) | Value::Bool(_) => Some((value.to_string().into(), None)),
            _ => None,
        },
        Conversion::Number => Some((number(value)?, None)),
        Conversion::Count => Some((value.as_array()?.len().into(), None)),
    }
}

fn time(at: Timestamp) -> Option<(Value, Option<Time>)> {
    let (text, time) = parse_time(&at.to_string())?;
    Some((text.into(), Some(time)))
}

/// Returns a number, or the number in a text.
fn number(value: &Value) -> Option<Value> {
    match value {
        Value::Number(_) => Some(value.clone()),
        Value::String(text) if text.len() <= MAX_DIGITS => text.trim().parse::<Number>().ok().map(Value::Number),
        _ => None,
    }
}

/// Returns a number of units in nanoseconds. Decimals are exact; what is smaller than a nanosecond is cut off.
fn nanoseconds(value: &Value, unit: Unit) -> Option<i128> {
    let number = number(value)?.to_string();
    let (mantissa, exponent) = match number.split_once(['e', 'E']) {
        Some((mantissa, exponent)) => (mantissa, exponent.parse::<i32>().ok()?),
        None => (number.as_str(), 0),
    };
    let (whole, decimals) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    if mantissa.len() > MAX_DIGITS || exponent.unsigned_abs() as usize > MAX_DIGITS {
        return None;
    }
    let digits: i128 = format!("{whole}{decimals}").parse().ok()?;
    let scaled = digits.checked_mul(unit.nanoseconds())?;
    let shift = exponent - i32::try_from(decimals.len()).ok()?;
    let power = 10_i128.checked_pow(shift.unsigned_abs())?;
    if shift < 0 { Some(scaled.div_euclid(power)) } else { scaled.checked_mul(power) }
}

/// Returns a duration in seconds, with as many decimals as it needs. `None` if it is negative.
fn seconds(nanoseconds: i128) -> Option<Value> {
    let (whole, rest) = (nanoseconds.div_euclid(1_000_000_000), nanoseconds.rem_euclid(1_000_000_000));
    if nanoseconds < 0 {
        return None;
    }
    let text = format!("{whole}.{rest:09}");
    let text = text.trim_end_matches('0').trim_end_matches('.');
    text.parse::<Number>().ok().map(Value::Number)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn converted(conversion: Conversion, value: &Value) -> Option<String> {
        convert(conversion, value).map(|(value, _)| value.as_str().map_or_else(|| value.to_string(), str::to_owned))
    }

    fn number_of(text: &str) -> Value {
        serde_json::from_str(text).unwrap()
    }

    #[test]
    fn times_since_1970_have_the_unit_of_the_rule() {
        for (unit, value, expected) in [
            (Unit::Second, json!(1_700_000_000), "2023-11-14T22:13:20Z"),
            (Unit::Second, json!("1700000000"), "2023-11-14T22:13:20Z"),
            (Unit::Second, number_of("1700000000.25"), "2023-11-14T22:13:20.25Z"),
            (Unit::Second, number_of("1.7e9"), "2023-11-14T22:13:20Z"),
            (Unit::Second, number_of("1700000000.123456789123"), "2023-11-14T22:13:20.123456789Z"),
            (Unit::Second, json!(0), "1970-01-01T00:00:00Z"),
            (Unit::Second, number_of("-0.5"), "1969-12-31T23:59:59.5Z"),
            (Unit::Millisecond, json!(1_700_000_000_123_i64), "2023-11-14T22:13:20.123Z"),
            (Unit::Microsecond, json!(1_700_000_000_123_456_i64), "2023-11-14T22:13:20.123456Z"),
            (Unit::Nanosecond, json!(1_700_000_000_123_456_789_i64), "2023-11-14T22:13:20.123456789Z"),
        ] {
            assert_eq!(converted(Conversion::Epoch(unit), &value).as_deref(), Some(expected), "{unit:?} {value}");
        }
        let at = convert(Conversion::Epoch(Unit::Millisecond), &json!(1500)).and_then(|(_, time)| time);
        assert_eq!(at, Some(Time(1500)));
        for wrong in
            [json!("soon"), json!(""), json!(true), json!([]), number_of("1e30"), json!("2023-11-14T22:13:20Z")]
        {
            assert_eq!(converted(Conversion::Epoch(Unit::Second), &wrong), None, "{wrong}");
        }
        for huge in ["1e999999999", "1e-999999999", &"9".repeat(50), &format!("0.{}1", "0".repeat(60))] {
            assert_eq!(converted(Conversion::Epoch(Unit::Second), &number_of(huge)), None, "{huge}");
        }
    }

    #[test]
    fn rfc_2822_times_are_utc() {
        for (text, expected) in [
            ("Tue, 31 Aug 2010 20:36:28 +0000", "2010-08-31T20:36:28Z"),
            ("Tue, 31 Aug 2010 20:36:28 +0200", "2010-08-31T18:36:28Z"),
            ("31 Aug 2010 20:36:28 GMT", "2010-08-31T20:36:28Z"),
        ] {
            assert_eq!(converted(Conversion::Rfc2822, &json!(text)).as_deref(), Some(expected), "{text}");
        }
        for wrong in [json!("2010-08-31T20:36:28Z"), json!("Mon, 31 Aug 2010 20:36:28 +0000"), json!(7), json!("")] {
            assert_eq!(converted(Conversion::Rfc2822, &wrong), None, "{wrong}");
        }
    }

    #[test]
    fn durations_are_seconds_with_the_decimals_that_they_need() {
        for (unit, value, expected) in [
            (Unit::Millisecond, json!(4100), "4.1"),
            (Unit::Millisecond, json!(4000), "4"),
            (Unit::Second, json!("4"), "4"),
            (Unit::Second, number_of("4.50"), "4.5"),
            (Unit::Minute, number_of("1.5"), "90"),
            (Unit::Hour, json!(2), "7200"),
            (Unit::Microsecond, json!(1), "0.000001"),
            (Unit::Second, json!(0), "0"),
        ] {
            assert_eq!(converted(Conversion::Duration(unit), &value).as_deref(), Some(expected), "{unit:?} {value}");
        }
        assert_eq!(converted(Conversion::Duration(Unit::Second), &json!(-1)), None);
        for (text, expected) in [("PT1M30S", Some("90")), ("PT0.25S", Some("0.25")), ("1m 30s", None), ("-PT1S", None)]
        {
            assert_eq!(converted(Conversion::IsoDuration, &json!(text)).as_deref(), expected, "{text}");
        }
    }

    #[test]
    fn texts_numbers_and_counts() {
        assert_eq!(converted(Conversion::Text, &json!(7)).as_deref(), Some("7"));
        assert_eq!(converted(Conversion::Text, &json!(false)).as_deref(), Some("false"));
        assert_eq!(converted(Conversion::Text, &json!([])), None);
        assert_eq!(converted(Conversion::Number, &json!(" 12 ")).as_deref(), Some("12"));
        assert_eq!(converted(Conversion::Number, &json!("12 apples")), None);
        assert_eq!(converted(Conversion::Count, &json!([1, [2], null])).as_deref(), Some("3"));
        assert_eq!(converted(Conversion::Count, &json!({})), None);
    }
}
