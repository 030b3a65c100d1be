//! Amounts and dates as people write them.

use std::time::SystemTime;

/// Fewer bytes than these are no memory.
const LEAST: f64 = 1000.0;

/// `1.5 GB`.
pub fn bytes(bytes: f64) -> String {
    scaled(bytes, &["B", "kB", "MB", "GB", "TB", "PB", "EB"])
}

/// `1.5 TFLOP`.
pub fn flops(flops: f64) -> String {
    scaled(flops, &["FLOP", "kFLOP", "MFLOP", "GFLOP", "TFLOP", "PFLOP", "EFLOP", "ZFLOP", "YFLOP"])
}

/// `40 s`, `12 min`, `3.5 h`, `9 days`: two figures.
pub fn duration(seconds: f64) -> String {
    let round = |value: f64, unit: &str| match value {
        value if value < 9.95 => format!("{value:.1} {unit}"),
        value if value < 99.5 => format!("{value:.0} {unit}"),
        value => {
            let tens = 10f64.powf(value.log10().floor() - 1.0);
            format!("{:.0} {unit}", (value / tens).round() * tens)
        }
    };
    match seconds {
        seconds if seconds < 0.95 => "< 1 s".into(),
        seconds if seconds < 99.5 => format!("{seconds:.0} s"),
        seconds if seconds < 99.5 * 60.0 => round(seconds / 60.0, "min"),
        seconds if seconds < 99.5 * 3600.0 => round(seconds / 3600.0, "h"),
        seconds => round(seconds / 86400.0, "days"),
    }
}

/// The least amount of a few figures that is no less: `1.6GB`, as `--memory` reads it.
pub fn enough(bytes: f64) -> String {
    let up = |unit: f64| (bytes / unit * 10.0).ceil() / 10.0;
    match bytes {
        bytes if bytes >= 1e12 => format!("{}TB", up(1e12)),
        bytes if bytes >= 1e9 => format!("{}GB", up(1e9)),
        _ => format!("{}MB", up(1e6)),
    }
}

/// `1,000,576`.
pub fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// Bytes of `6GB`, `1.5 GiB`, `500MB` or `1000000`.
///
/// # Errors
/// What to write instead.
pub fn parse_bytes(text: &str) -> Result<u64, String> {
    let wrong = || format!("`{text}` is no amount of memory; write 6GB, 500MB or 4GiB");
    let number = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit = match text[number.len()..].to_ascii_lowercase().as_str() {
        "" | "b" => 1.0,
        "kb" => 1e3,
        "mb" => 1e6,
        "gb" => 1e9,
        "tb" => 1e12,
        "kib" => 1024f64,
        "mib" => 1024f64.powi(2),
        "gib" => 1024f64.powi(3),
        "tib" => 1024f64.powi(4),
        _ => return Err(wrong()),
    };
    // `--memory 6` is six bytes, and meant six of something else.
    if unit == 1.0 && number.trim().parse::<f64>().is_ok_and(|number| number < LEAST) {
        return Err(format!("`{text}` without a unit is a number of bytes; write {}GB", number.trim()));
    }
    let number = number.trim().parse::<f64>().ok().filter(|number| number.is_finite() && *number > 0.0);
    Ok((number.ok_or_else(wrong)? * unit) as u64)
}

/// `2026-11-26T18:37:05Z`.
pub fn utc(time: SystemTime) -> String {
    let seconds = time.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let (days, second) = (seconds / 86_400, seconds % 86_400);
    // Years that begin in March, counted from the year 0, in cycles of 400 years.
    let days = days + 719_468;
    let (cycle, day) = (days / 146_097, days % 146_097);
    let year = (day - day / 1_460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let day = day - (153 * month + 2) / 5 + 1;
    let (month, later) = if month < 10 { (month + 3, 0) } else { (month - 9, 1) };
    let year = 400 * cycle + year + later;
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
}

fn scaled(mut value: f64, units: &[&str]) -> String {
    let mut unit = 0;
    while value >= 1000.0 && unit + 1 < units.len() {
        value /= 1000.0;
        unit += 1;
    }
    if unit == 0 { format!("{value:.0} {}", units[0]) } else { format!("{value:.1} {}", units[unit]) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seconds_are_dates() {
        let date = |seconds| utc(SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(seconds));
        assert_eq!(date(0), "1970-01-01T00:00:00Z");
        assert_eq!(date(951_782_399), "2000-02-28T23:59:59Z");
        assert_eq!(date(951_868_800), "2000-03-01T00:00:00Z");
        assert_eq!(date(951_782_400), "2000-02-29T00:00:00Z");
        assert_eq!(date(1_798_761_599), "2026-12-31T23:59:59Z");
        assert_eq!(date(4_107_542_400), "2100-03-01T00:00:00Z");
    }

    #[test]
    fn amounts_are_read_as_written() {
        assert_eq!(parse_bytes("6GB"), Ok(6_000_000_000));
        assert_eq!(parse_bytes("1.5 GiB"), Ok(3 << 29));
        assert_eq!(parse_bytes("1000"), Ok(1000));
        for wrong in ["", "GB", "6 parsecs", "-1GB", "0"] {
            assert!(parse_bytes(wrong).is_err(), "{wrong}");
        }
        for (bytes, text) in [(3e5, "0.3MB"), (573_800_001.0, "573.9MB"), (2e9, "2GB"), (1.04e12, "1.1TB")] {
            assert_eq!(enough(bytes), text);
            assert!(parse_bytes(text).unwrap() as f64 >= bytes);
        }
        assert_eq!([0, 999, 1000, 1_000_576].map(grouped), ["0", "999", "1,000", "1,000,576"]);
        let said = [0.2, 1.2, 59.0, 130.0, 5400.0, 1e4, 1e6, 1e9].map(duration);
        assert_eq!(said, ["< 1 s", "1 s", "59 s", "2.2 min", "90 min", "2.8 h", "12 days", "12000 days"]);
        assert_eq!((bytes(1.52e10), flops(2.5e21)), ("15.2 GB".into(), "2.5 ZFLOP".into()));
    }
}
