//! Small texts that people read: short ids, times, counts.

use std::time::{SystemTime, UNIX_EPOCH};

/// Hex digits of an id that tables show; any unambiguous beginning is accepted as an argument.
const SHORT: usize = 12;

/// The beginning of an id.
pub(crate) fn short(id: &str) -> &str {
    id.get(..SHORT).unwrap_or(id)
}

/// The first line of a text, cut at `most` characters.
pub(crate) fn first_line(text: &str, most: usize) -> String {
    let line = text.lines().next().unwrap_or_default();
    if line.chars().count() <= most && line.len() == text.trim_end().len() {
        return line.to_owned();
    }
    let cut: String = line.chars().take(most.saturating_sub(1)).collect();
    format!("{cut}…")
}

/// `1 fact`, `2 facts`.
pub(crate) fn count(number: u64, one: &str) -> String {
    if number == 1 {
        format!("1 {one}")
    } else {
        format!("{} {one}s", grouped(number))
    }
}

/// `12,345`.
pub(crate) fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// How long ago a time of the wire was: `12 s ago`, `3 h ago`, `5 d ago`; `never` for 0.
pub(crate) fn ago(at_ms: u64) -> String {
    if at_ms == 0 {
        return "never".to_owned();
    }
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| {
            u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
        });
    let seconds = now.saturating_sub(at_ms) / 1000;
    match seconds {
        0 => "now".to_owned(),
        1..=119 => format!("{seconds} s ago"),
        120..=7199 => format!("{} min ago", seconds / 60),
        7200..=172_799 => format!("{} h ago", seconds / 3600),
        _ => format!("{} d ago", seconds / 86_400),
    }
}

/// A time of the wire as UTC, `2025-03-09 14:05:00Z`; `-` for 0.
pub(crate) fn utc(at_ms: u64) -> String {
    if at_ms == 0 {
        return "-".to_owned();
    }
    let seconds = at_ms / 1000;
    let (days, second) = (seconds / 86_400, seconds % 86_400);
    let (year, month, day) = civil(days);
    let (hour, minute) = (second / 3600, second / 60 % 60);
    format!(
        "{year:04}-{month:02}-{day:02} {hour:02}:{minute:02}:{:02}Z",
        second % 60
    )
}

/// A time of the wire from UTC: `2025-03-09`, `2025-03-09 14:05`, `2025-03-09T14:05:00Z`.
///
/// # Errors
/// What is wrong with it, as a sentence.
pub(crate) fn parse_utc(text: &str) -> Result<u64, String> {
    let wrong = || format!("{text:?} is no time such as 2025-03-09 or 2025-03-09T14:05:00Z");
    let (date, time) = match text.split_once(['T', ' ']) {
        Some((date, time)) => (date, time.trim_end_matches('Z')),
        None => (text, "00:00"),
    };
    let numbers = |text: &str, by: char| -> Option<Vec<u64>> {
        text.split(by).map(|part| part.parse().ok()).collect()
    };
    let date = numbers(date, '-').ok_or_else(wrong)?;
    let time = numbers(time, ':').ok_or_else(wrong)?;
    let (&[year, month, day], &[hour, minute, ref second @ ..]) = (&*date, &*time) else {
        return Err(wrong());
    };
    let second = match second {
        [] => 0,
        [second] => *second,
        _ => return Err(wrong()),
    };
    if !(1970..=9999).contains(&year) || hour > 23 || minute > 59 || second > 59 {
        return Err(wrong());
    }
    // The day of the year's first March, plus the days before it, found by trying: months have 28 to 31 days.
    let first = (year - 1970) * 365;
    let days = (first..first + 2900).find(|days| civil(*days) == (year, month, day));
    let days = days.ok_or_else(wrong)?;
    Ok((days * 86_400 + hour * 3600 + minute * 60 + second) * 1000)
}

/// Year, month and day of a day since 1970-01-01, in the Gregorian calendar; the year begins in
/// March inside, so that the leap day is its last.
fn civil(days: u64) -> (u64, u64, u64) {
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 {
        month_from_march + 3
    } else {
        month_from_march - 9
    };
    (era * 400 + year_of_era + u64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::{count, first_line, grouped, parse_utc, utc};

    #[test]
    fn times_are_right_around_leap_days_and_the_ends_of_years() {
        assert_eq!(utc(0), "-");
        assert_eq!(utc(951_782_400_000), "2000-02-29 00:00:00Z");
        assert_eq!(utc(951_868_799_999), "2000-02-29 23:59:59Z");
        assert_eq!(utc(951_868_800_000), "2000-03-01 00:00:00Z");
        assert_eq!(utc(4_102_444_799_000), "2099-12-31 23:59:59Z");
        assert_eq!(utc(4_107_542_400_000), "2100-03-01 00:00:00Z");
    }

    #[test]
    fn times_are_read_as_they_are_shown() {
        for text in [
            "2000-02-29 23:59:59Z",
            "2099-12-31 00:00:00Z",
            "1970-01-02 00:00:01Z",
        ] {
            assert_eq!(parse_utc(text).map(utc), Ok(text.to_owned()));
        }
        assert_eq!(parse_utc("2000-03-01"), Ok(951_868_800_000));
        assert_eq!(parse_utc("2000-03-01T00:00"), Ok(951_868_800_000));
        for text in [
            "",
            "2001-02-29",
            "2000-13-01",
            "2000-03-01 24:00",
            "now",
            "2000-03",
        ] {
            assert!(parse_utc(text).is_err(), "{text}");
        }
    }

    #[test]
    fn numbers_are_grouped_and_counted() {
        assert_eq!(grouped(999), "999");
        assert_eq!(grouped(1_234_567), "1,234,567");
        assert_eq!(
            (count(1, "fact"), count(0, "fact")),
            ("1 fact".into(), "0 facts".into())
        );
    }

    #[test]
    fn a_long_or_many_lined_text_is_cut_and_says_so() {
        assert_eq!(first_line("short", 10), "short");
        assert_eq!(first_line("naïve café au lait", 10), "naïve caf…");
        assert_eq!(first_line("one\ntwo", 10), "one…");
    }
}
