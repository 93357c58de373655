//! Kubernetes quantities: parsing, comparing, and the canonical text that an API server answers with.

use std::fmt;

use k8s_openapi::apimachinery::pkg::api::resource::Quantity as Text;

const NANOS: i128 = 1_000_000_000;

/// A quantity as an exact number of billionths, with the family of suffixes that it was written in.
///
/// Rules: `k8s.io/apimachinery/pkg/api/resource/quantity.go`.
#[derive(Clone, Copy, Debug)]
pub struct Amount {
    nanos: i128,
    binary: bool,
}

impl Amount {
    /// Reads `40Gi`, `1500m`, `1e3`, `7`; `None` where an API server would refuse the text.
    pub fn parse(text: &str) -> Option<Self> {
        let text = text.trim();
        let number = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
        match &text[number.len()..] {
            "" => exponent(text).or_else(|| Some(Self::decimal(decimal_nanos(text)?))),
            suffix => suffixed(number, suffix),
        }
    }

    /// Reads a quantity of an API object; a text that no API server would have let in is nothing.
    pub fn of(text: &Text) -> Self {
        Self::parse(&text.0).unwrap_or(Self::decimal(0))
    }

    /// Billionths, the unit in which all quantities are comparable.
    pub fn nanos(self) -> i128 {
        self.nanos
    }

    fn decimal(nanos: i128) -> Self {
        Self { nanos, binary: false }
    }
}

impl fmt::Display for Amount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let whole = self.nanos / NANOS;
        if self.binary && self.nanos % NANOS == 0 && whole.abs() >= 1024 {
            let (mantissa, power) = reduce(whole, 1024, 6);
            let suffix = ["", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei"][power];
            return write!(f, "{mantissa}{suffix}");
        }
        if self.nanos == 0 {
            return write!(f, "0");
        }
        let (mantissa, power) = reduce(self.nanos, 1000, 9);
        let suffix = ["n", "u", "m", "", "k", "M", "G", "T", "P", "E"][power];
        write!(f, "{mantissa}{suffix}")
    }
}

impl From<Amount> for Text {
    fn from(amount: Amount) -> Self {
        Self(amount.to_string())
    }
}

/// Divides by `base` as often as it goes without a rest, at most `most` times.
fn reduce(mut value: i128, base: i128, most: usize) -> (i128, usize) {
    let mut power = 0;
    while power < most && value % base == 0 {
        value /= base;
        power += 1;
    }
    (value, power)
}

fn suffixed(number: &str, suffix: &str) -> Option<Amount> {
    let nanos = decimal_nanos(number)?;
    let binary =
        |power: u32| Some(Amount { nanos: nanos.checked_mul(1024_i128.pow(power))?, binary: true });
    let up = |power: u32| Some(Amount::decimal(nanos.checked_mul(1000_i128.pow(power))?));
    match suffix {
        "Ki" => binary(1),
        "Mi" => binary(2),
        "Gi" => binary(3),
        "Ti" => binary(4),
        "Pi" => binary(5),
        "Ei" => binary(6),
        "n" => Some(Amount::decimal(nanos / NANOS)),
        "u" => Some(Amount::decimal(nanos / 1_000_000)),
        "m" => Some(Amount::decimal(nanos / 1000)),
        "k" => up(1),
        "M" => up(2),
        "G" => up(3),
        "T" => up(4),
        "P" => up(5),
        "E" => up(6),
        _ => None,
    }
}

/// `12e3` and `12E3`, the decimal exponent.
fn exponent(text: &str) -> Option<Amount> {
    let (number, power) = text.split_once(['e', 'E'])?;
    let power: i32 = power.parse().ok()?;
    let nanos = decimal_nanos(number)?;
    let scale = 10_i128.checked_pow(power.unsigned_abs())?;
    let nanos = if power < 0 { nanos / scale } else { nanos.checked_mul(scale)? };
    Some(Amount::decimal(nanos))
}

fn decimal_nanos(number: &str) -> Option<i128> {
    let (sign, digits) = match number.strip_prefix('-') {
        Some(rest) => (-1, rest),
        None => (1, number.strip_prefix('+').unwrap_or(number)),
    };
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
    let all_digits = whole.bytes().chain(fraction.bytes()).all(|b| b.is_ascii_digit());
    if !all_digits || whole.len() + fraction.len() == 0 || whole.len() > 18 || fraction.len() > 9 {
        return None;
    }
    let whole: i128 = if whole.is_empty() { 0 } else { whole.parse().ok()? };
    let fraction: i128 = format!("{fraction:0<9}").parse().ok()?;
    Some(sign * (whole * NANOS + fraction))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_api_server_answers_with_the_canonical_text() {
        let canonical = |text| Amount::parse(text).map(|amount| amount.to_string());
        let cases = [
            ("20480Mi", "20Gi"),
            ("1Gi", "1Gi"),
            ("1536Mi", "1536Mi"),
            ("512Ki", "512Ki"),
            ("1073741824", "1073741824"),
            ("1000", "1k"),
            ("0.5", "500m"),
            ("1e3", "1k"),
            ("0", "0"),
            ("0Mi", "0"),
            ("-1", "-1"),
            ("98", "98"),
        ];
        for (text, expected) in cases {
            assert_eq!(canonical(text).as_deref(), Some(expected), "{text}");
        }
    }

    #[test]
    fn what_is_no_quantity_is_refused() {
        for text in ["", "Gi", "1 Gi", "1gb", "1.2.3", "ten"] {
            assert!(Amount::parse(text).is_none(), "{text}");
        }
    }

    #[test]
    fn families_compare_by_value() {
        let nanos = |text| Amount::parse(text).unwrap().nanos();
        assert_eq!(nanos("1Ki"), nanos("1024"));
        assert!(nanos("40Gi") > nanos("40G"));
        assert_eq!(nanos("1.5Gi"), nanos("1536Mi"));
    }
}
