//! Quantities by value: what is written as `1073741824` comes back as `1Gi`.

use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

/// Replaces the text by one that all equal quantities share. What cannot be read stays as it is.
pub(super) fn normalise(quantity: &mut Quantity) {
    if let Some(value) = nano(&quantity.0) {
        quantity.0 = format!("{value}n");
    }
}

/// In billionths, the smallest unit that the API server knows.
fn nano(text: &str) -> Option<i128> {
    let unit = text.find(|c: char| !c.is_ascii_digit() && !".+-".contains(c)).unwrap_or(text.len());
    let (number, unit) = text.split_at(unit);
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let digits: i128 = format!("{whole}{fraction}").parse().ok()?;
    let (multiple, exponent) = scale(unit)?;
    let value = digits.checked_mul(multiple)?;
    shift(value, exponent.checked_add(9)?.checked_sub(i32::try_from(fraction.len()).ok()?)?)
}

/// What a unit multiplies with: a number and a power of ten.
fn scale(unit: &str) -> Option<(i128, i32)> {
    Some(match unit {
        "" => (1, 0),
        "n" => (1, -9),
        "u" => (1, -6),
        "m" => (1, -3),
        "k" => (1, 3),
        "M" => (1, 6),
        "G" => (1, 9),
        "T" => (1, 12),
        "P" => (1, 15),
        "E" => (1, 18),
        "Ki" => (1 << 10, 0),
        "Mi" => (1 << 20, 0),
        "Gi" => (1 << 30, 0),
        "Ti" => (1 << 40, 0),
        "Pi" => (1 << 50, 0),
        "Ei" => (1 << 60, 0),
        _ => (1, unit.strip_prefix(['e', 'E'])?.parse().ok()?),
    })
}

/// Times a power of ten; what is lost rounds away from zero, as in the API server.
fn shift(value: i128, exponent: i32) -> Option<i128> {
    let power = 10_i128.checked_pow(exponent.unsigned_abs())?;
    if exponent >= 0 {
        return value.checked_mul(power);
    }
    let rest = if value % power == 0 { 0 } else { value.signum() };
    Some(value / power + rest)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn normal(text: &str) -> String {
        let mut quantity = Quantity(text.to_owned());
        normalise(&mut quantity);
        quantity.0
    }

    #[test]
    fn equal_quantities_have_one_text() {
        let equal = [
            ("1Gi", "1073741824"),
            ("1.5Gi", "1536Mi"),
            ("1500m", "1.5"),
            ("1e3", "1k"),
            ("1E3", "1000"),
            ("1E", "1000000000000000000"),
            ("0", "0Gi"),
            ("-1.5", "-1500m"),
            ("+2", "2"),
            ("0.0000000001", "1n"),
            (".5", "500m"),
            ("5.", "5"),
        ];
        for (a, b) in equal {
            assert_eq!(normal(a), normal(b), "{a} and {b}");
        }
    }

    #[test]
    fn different_quantities_differ() {
        for (a, b) in [("1G", "1Gi"), ("1m", "1M"), ("1", "-1"), ("1n", "0")] {
            assert_ne!(normal(a), normal(b), "{a} and {b}");
        }
    }

    #[test]
    fn what_is_no_quantity_stays() {
        let absurd = format!("1e{}", "9".repeat(9));
        for text in ["", "abc", "1Zi", "1.2.3", "--1", "1e", "9Ei9", &absurd, &"9".repeat(60)] {
            assert_eq!(normal(text), text);
        }
    }
}
