//! What the dynamic linker goes by: the names in libraries, and its cache of where they lie.

pub mod cache;
pub mod elf;

use std::cmp::Ordering;

/// The order of names in the linker's cache: runs of digits count as numbers, and come after all else.
///
/// As glibc has it (`_dl_cache_libcmp`), overflow and sign of bytes included: its search relies on it.
pub fn order(a: &[u8], b: &[u8]) -> Ordering {
    let (mut a, mut b) = (a, b);
    loop {
        let (digits_a, digits_b) = (digits(a), digits(b));
        match (digits_a, digits_b) {
            (0, 0) => {}
            (0, _) => return Ordering::Less,
            (_, 0) => return Ordering::Greater,
            _ => {
                let difference = number(&a[..digits_a]).wrapping_sub(number(&b[..digits_b]));
                if difference != 0 {
                    return difference.cmp(&0);
                }
                (a, b) = (&a[digits_a..], &b[digits_b..]);
                continue;
            }
        }
        match (a.split_first(), b.split_first()) {
            (None, None) => return Ordering::Equal,
            (None, Some((&byte, _))) => return 0.cmp(&signed(byte)),
            (Some((&byte, _)), None) => return signed(byte).cmp(&0),
            (Some((&first_a, rest_a)), Some((&first_b, rest_b))) => {
                if first_a != first_b {
                    return signed(first_a).cmp(&signed(first_b));
                }
                (a, b) = (rest_a, rest_b);
            }
        }
    }
}

fn digits(text: &[u8]) -> usize {
    text.iter().take_while(|byte| byte.is_ascii_digit()).count()
}

fn number(digits: &[u8]) -> i32 {
    let digits = digits.iter().map(|digit| i32::from(digit - b'0'));
    digits.fold(0, |number, digit| number.wrapping_mul(10).wrapping_add(digit))
}

/// C's `char` has a sign on x86-64 and none on aarch64.
fn signed(byte: u8) -> i32 {
    i32::from(std::ffi::c_char::from_ne_bytes([byte]))
}

#[cfg(test)]
mod tests;
