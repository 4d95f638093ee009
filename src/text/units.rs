//! Sizes and counts in the form that people write and read.
//!
//! Turns sizes of the command line into bytes, and bytes into the megabytes of the `_MB` columns. Only uses integers,
//! because the table, the gate and JSON must agree to the byte.

use std::time::Duration;

use thiserror::Error;

use crate::text::escape;

/// Every unit of a size in lower case, with its number of bytes. Upper and lower case mean the same.
const UNITS: [(&str, u64); 14] = [
    ("", 1),
    ("b", 1),
    ("k", 1_000),
    ("m", 1_000_000),
    ("g", 1_000_000_000),
    ("t", 1_000_000_000_000),
    ("kb", 1_000),
    ("mb", 1_000_000),
    ("gb", 1_000_000_000),
    ("tb", 1_000_000_000_000),
    ("kib", 1 << 10),
    ("mib", 1 << 20),
    ("gib", 1 << 30),
    ("tib", 1 << 40),
];

/// Why a text is not a size.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum SizeError {
    #[error(
        "'{}' is not a size: write a number of bytes, or one with kB, MB, GB, TB (powers of 1000) \
         or KiB, MiB, GiB, TiB (powers of 1024), as in 512, 1.5MB, 1MiB",
        escape::escaped(.0.as_bytes())
    )]
    Unparsable(String),
    #[error(
        "'{}' is too large a size: at most {} bytes (just under 16777216TiB) can be counted",
        escape::escaped(.0.as_bytes()),
        u64::MAX
    )]
    TooLarge(String),
}

/// Reads a size: a decimal number, which may have a fraction, and after it, without a space, a unit or nothing. The
/// result is in bytes. A part of a byte is dropped, which changes no comparison with a whole number of bytes.
///
/// # Errors
/// [`SizeError::Unparsable`] if the text has another form, [`SizeError::TooLarge`] if the size does not fit into
/// 64 bits.
pub fn parse_size(size: &str) -> Result<u64, SizeError> {
    let unparsable = || SizeError::Unparsable(size.to_owned());
    let too_large = || SizeError::TooLarge(size.to_owned());
    let number_ends = size
        .bytes()
        .position(|byte| !byte.is_ascii_digit() && byte != b'.');
    let (number, unit) = size.split_at(number_ends.unwrap_or(size.len()));
    let unit = unit.to_ascii_lowercase();
    let unit = UNITS.iter().find(|(name, _)| *name == unit);
    let (_, unit) = unit.ok_or_else(unparsable)?;
    let (whole, fraction) = match number.split_once('.') {
        Some((_, "")) => return Err(unparsable()),
        Some((whole, fraction)) => (whole, fraction),
        None => (number, ""),
    };
    if whole.is_empty() || fraction.contains('.') {
        return Err(unparsable());
    }
    // Only digits are left, so a parse fails only if there are too many of them.
    let whole: u64 = whole.parse().map_err(|_| too_large())?;
    let mut bytes = whole.checked_mul(*unit).ok_or_else(too_large)?;
    // The part of the unit that the fraction is, with more decimals than a unit has bytes. Further ones do not matter.
    let digits = &fraction[..fraction.len().min(18)];
    let scale = 10_u128.pow(digits.len() as u32);
    let part: u128 = digits.parse().unwrap_or(0);
    let part = part * u128::from(*unit) / scale;
    bytes = bytes
        .checked_add(u64::try_from(part).map_err(|_| too_large())?)
        .ok_or_else(too_large)?;
    Ok(bytes)
}

/// Reads a number of seconds, whole or with decimals.
///
/// # Errors
/// What a number of seconds looks like.
pub fn parse_seconds(text: &str) -> Result<Duration, String> {
    let why = || "it is a number of seconds, as 60 or 0.5".to_owned();
    // The parser of f64 would also accept "inf" and "1e3".
    if !text
        .bytes()
        .all(|byte| byte.is_ascii_digit() || byte == b'.')
    {
        return Err(why());
    }
    let seconds = text.parse().map_err(|_| why())?;
    Duration::try_from_secs_f64(seconds).map_err(|_| why())
}

/// Bytes as megabytes (10^6 bytes) with three decimals, rounded to the nearest value. Halves are rounded up.
pub fn megabytes(bytes: u64) -> String {
    let thousands = bytes / 1_000 + u64::from(bytes % 1_000 >= 500);
    format!("{}.{:03}", thousands / 1_000, thousands % 1_000)
}

/// Bytes in a sentence: below 1 kB exactly, from there on in megabytes as in a column. `400 bytes`, `0.084 MB`.
pub fn amount(bytes: u64) -> String {
    match bytes {
        0..1_000 => counted(bytes, "byte", "bytes"),
        _ => format!("{} MB", megabytes(bytes)),
    }
}

/// A number with a comma before each group of three digits: `76,800`.
pub fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut grouped = String::with_capacity(digits.len() * 4 / 3);
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    grouped
}

/// A count with the word for what is counted: `1 byte`, `2 bytes`.
pub fn counted(count: u64, one: &str, many: &str) -> String {
    format!("{count} {}", if count == 1 { one } else { many })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn decimal_units_are_powers_of_1000_and_binary_ones_of_1024() {
        for (size, bytes) in [
            ("0", 0),
            ("512", 512),
            ("007", 7),
            ("512B", 512),
            ("100kB", 100_000),
            ("100KB", 100_000),
            ("1MB", 1_000_000),
            ("1GB", 1_000_000_000),
            ("2TB", 2_000_000_000_000),
            ("1KiB", 1_024),
            ("3MiB", 3_145_728),
            ("1GiB", 1_073_741_824),
            ("1TiB", 1_099_511_627_776),
            ("1M", 1_000_000),
            ("2k", 2_000),
            ("10mb", 10_000_000),
            ("1Mb", 1_000_000),
            ("1kib", 1_024),
            ("1.5MB", 1_500_000),
            ("0.25KiB", 256),
            ("1.0", 1),
            ("0.3KiB", 307),
            ("1.000000000000000000000001TB", 1_000_000_000_000),
            ("16777215.9999999TiB", 18_446_744_073_709_441_664),
            ("18446744073709551615", u64::MAX),
        ] {
            assert_eq!(parse_size(size), Ok(bytes), "{size}");
        }
    }

    #[test]
    fn an_ambiguous_or_malformed_size_is_refused() {
        for size in [
            "",
            "MB",
            "-1",
            "+1",
            "1.MB",
            ".5MB",
            "1.5.5MB",
            "1,5MB",
            "1e6",
            "1 MB",
            " 1",
            "1 ",
            "1Ki",
            "0x10",
            "1_000",
            "1MBs",
            "٣",
            "1\u{b5}B",
            "1\u{212a}B",
        ] {
            assert_eq!(
                parse_size(size),
                Err(SizeError::Unparsable(size.to_owned())),
                "{size:?}"
            );
        }
    }

    #[test]
    fn long_numbers_have_commas() {
        for (number, text) in [
            (0, "0"),
            (999, "999"),
            (1_000, "1,000"),
            (76_800, "76,800"),
            (u64::MAX, "18,446,744,073,709,551,615"),
        ] {
            assert_eq!(grouped(number), text);
        }
    }

    #[test]
    fn a_size_beyond_64_bits_is_too_large_and_never_wraps() {
        for size in [
            "18446744073709551616",
            "99999999999999999999999999",
            "18446744073709552kB",
            "16777216TiB",
        ] {
            assert_eq!(
                parse_size(size),
                Err(SizeError::TooLarge(size.to_owned())),
                "{size}"
            );
        }
        assert_eq!(parse_size("16777215TiB"), Ok(16_777_215 << 40));
    }

    #[test]
    fn an_error_names_the_text_and_the_valid_forms_in_one_escaped_line() {
        let error = parse_size("1\u{1b}[31m\n").unwrap_err().to_string();
        assert!(
            error.starts_with(r"'1\x1b[31m\x0a' is not a size"),
            "{error}"
        );
        assert!(error.contains("512, 1.5MB, 1MiB"), "{error}");
        assert!(!error.contains(char::is_control), "{error:?}");
    }

    #[test]
    fn megabytes_round_to_the_nearest_thousand_bytes() {
        for (bytes, shown) in [
            (0, "0.000"),
            (499, "0.000"),
            (500, "0.001"),
            (1_499, "0.001"),
            (999_499, "0.999"),
            (999_500, "1.000"),
            (12_450_000, "12.450"),
            (245_340_000, "245.340"),
            (u64::MAX, "18446744073709.552"),
        ] {
            assert_eq!(megabytes(bytes), shown, "{bytes}");
        }
    }

    proptest! {
        #[test]
        fn a_size_is_its_number_times_its_unit_or_too_large(number: u64, unit in 0..UNITS.len()) {
            let (name, bytes) = UNITS[unit];
            let size = format!("{number}{name}");
            let exact = u128::from(number) * u128::from(bytes);
            match parse_size(&size) {
                Ok(parsed) => prop_assert_eq!(u128::from(parsed), exact),
                Err(error) => {
                    prop_assert!(exact > u128::from(u64::MAX));
                    prop_assert_eq!(error, SizeError::TooLarge(size));
                }
            }
        }

        #[test]
        fn the_parser_never_panics_and_only_accepts_texts_that_begin_with_a_digit(size: String) {
            if parse_size(&size).is_ok() {
                prop_assert!(size.starts_with(|c: char| c.is_ascii_digit()));
            }
        }

        #[test]
        fn megabytes_are_within_half_a_thousand_bytes_and_have_three_decimals(bytes: u64) {
            let shown = megabytes(bytes);
            let (whole, decimals) = shown.split_once('.').unwrap();
            prop_assert_eq!(decimals.len(), 3);
            let back = whole.parse::<u128>().unwrap() * 1_000_000
                + decimals.parse::<u128>().unwrap() * 1_000;
            // Halves are rounded up: the value is at most 500 below the shown value, and less than 500 above it.
            let (low, high) = (back.saturating_sub(500), back + 499);
            prop_assert!((low..=high).contains(&u128::from(bytes)), "{} for {}", shown, bytes);
        }
    }
}
