//! Durations as people type them: `10ms`, `1.5s`, `500us`, `2m`, `0`.

use std::time::Duration;

use tidegate::config::INTERVAL_MIN;

/// Longest duration accepted: a year, so that sums of nanoseconds stay far from overflow.
const SECONDS_MAX: f64 = 365.0 * 86_400.0;

/// Unit and its seconds.
const UNITS: [(&str, f64); 7] = [
    ("ns", 1e-9),
    ("us", 1e-6),
    ("µs", 1e-6),
    ("ms", 1e-3),
    ("s", 1.0),
    ("m", 60.0),
    ("h", 3600.0),
];

/// Parses a number with its unit.
pub fn parse(text: &str) -> Result<Duration, String> {
    let refuse = || Err("give a number with its unit, for example 10ms, 1.5s or 2m".to_string());
    let digits =
        text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit() || c == '.').len();
    let (number, unit) = text.split_at(digits);
    let Ok(number) = number.parse::<f64>() else { return refuse() };
    if number == 0.0 && unit.is_empty() {
        return Ok(Duration::ZERO);
    }
    let Some((_, seconds)) = UNITS.iter().find(|(name, _)| *name == unit) else { return refuse() };
    let seconds = number * seconds;
    if seconds > SECONDS_MAX {
        return Err("it is longer than a year".into());
    }
    Ok(Duration::from_nanos((seconds * 1e9).round() as u64))
}

/// Parses a snapshot interval.
pub fn parse_interval(text: &str) -> Result<Duration, String> {
    let interval = parse(text)?;
    if interval < INTERVAL_MIN {
        return Err(format!("the shortest snapshot interval is {INTERVAL_MIN:?}"));
    }
    Ok(interval)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_with_units_are_durations() {
        for (text, nanoseconds) in [
            ("0", 0),
            ("0s", 0),
            ("3ns", 3),
            ("500us", 500_000),
            ("500µs", 500_000),
            ("10ms", 10_000_000),
            ("1.5s", 1_500_000_000),
            (".5s", 500_000_000),
            ("2m", 120_000_000_000),
            ("1h", 3_600_000_000_000),
        ] {
            assert_eq!(parse(text), Ok(Duration::from_nanos(nanoseconds)), "{text}");
        }
    }

    #[test]
    fn anything_else_is_refused_with_an_example() {
        for text in ["", "10", "ms", "1.2.3s", "-1s", "1 s", "10MS", "5d", "NaNs", "1e3s"] {
            let refusal = parse(text).expect_err(text);
            assert!(refusal.contains("for example 10ms"), "{text}: {refusal}");
        }
        assert!(parse("99999999999h").is_err());
    }

    #[test]
    fn an_interval_below_a_millisecond_is_refused() {
        assert!(parse_interval("999us").expect_err("too short").contains("1ms"));
        assert_eq!(parse_interval("1ms"), Ok(INTERVAL_MIN));
    }
}
