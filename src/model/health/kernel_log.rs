//! Records of the kernel's log in which NVIDIA's driver reports a fault of a GPU.
//!
//! Users can write parts of the log: the kernel prints names of their programs and files, as in
//! `comm[pid]: segfault at … in FILE[…]`. So a record counts only if it has one of the driver's shapes from its
//! first byte through the address of the GPU. No record of the kernel's own can have one: what is in front is
//! the kernel's, or the name of a thread, which has 15 bytes at most and is followed by something else. A
//! record is never split, and what the kernel escapes, such as `\x0a` for a newline, is never decoded.
//!
//! The shapes are those of NVIDIA's open kernel modules: `NVRM: Xid (PCI:dddd:bb:dd): N, …`, with ` GPU-I:nn` or
//! ` GPU-I:nn GPU-CI:nn` after the address where the instance is known (`nvErrorLog`), and sentences for a GPU
//! that falls off the bus.

use super::{Attribution, LinkSeverity, Sign};

/// What the driver reports in a record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LoggedXid {
    /// PCI address in sysfs's spelling, `0000:1b:00.0`.
    pub pci: String,
    /// The XID.
    pub sign: Sign,
}

/// How the driver begins a sentence on a lost GPU, and how it goes on after the address.
const OFF_THE_BUS: [(&str, &str); 4] = [
    ("GPU ", ": GPU has fallen off the bus."),
    ("GPU at PCI:", ": GPU has fallen off the bus."),
    ("GPU at ", " has fallen off the bus."),
    ("The NVIDIA GPU ", r"\x0aNVRM: (PCI ID: "),
];

/// Whether a record says that NVIDIA's kernel module was loaded, which starts every GPU anew.
pub fn says_driver_loaded(record: &str) -> bool {
    let module = record.strip_prefix("NVRM: loading NVIDIA UNIX ");
    module.is_some_and(|module| module.contains("Kernel Module"))
}

/// What a record of the kernel's log reports; absent where that is no XID.
pub fn parse(record: &str) -> Option<LoggedXid> {
    let text = record.strip_prefix("NVRM: ")?;
    match text.strip_prefix("Xid (PCI:") {
        Some(rest) => numbered(rest),
        None => off_the_bus(text),
    }
}

fn numbered(rest: &str) -> Option<LoggedXid> {
    let (pci, rest) = address(rest)?;
    let (place, rest) = rest.split_once("): ")?;
    let attribution = attribution(place)?;
    let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
    let (code, text) = rest.split_at_checked(digits)?;
    let code = code.parse().ok()?;
    if !text.is_empty() && !text.starts_with(',') {
        return None;
    }
    let link = if (144..=150).contains(&code) { severity(text) } else { None };
    Some(LoggedXid { pci, sign: Sign::Xid { code, attribution, link } })
}

fn off_the_bus(text: &str) -> Option<LoggedXid> {
    let pci = OFF_THE_BUS.iter().find_map(|(before, after)| {
        let (pci, rest) = address(text.strip_prefix(before)?)?;
        let whole = match after.strip_prefix(r"\x0a") {
            None => rest == *after || Some(rest) == after.strip_suffix('.'),
            Some(_) => is_long_sentence(rest.strip_prefix(after)?),
        };
        whole.then_some(pci)
    })?;
    let sign = Sign::Xid { code: 79, attribution: Attribution::Gpu, link: None };
    Some(LoggedXid { pci, sign })
}

/// The rest of one record of three lines, after `(PCI ID: `.
fn is_long_sentence(rest: &str) -> bool {
    let rest = rest.split_at_checked("10de:2330".len());
    rest.is_some_and(|(id, rest)| {
        let id = id.split_once(':').is_some_and(|(vendor, device)| {
            hexadecimal(vendor).is_some() && hexadecimal(device).is_some()
        });
        id && rest
            == r") installed in this system has\x0aNVRM: fallen off the bus and is not responding to commands."
    })
}

/// The address that a text begins with, domain, bus and device, with or without the function, and what
/// follows it. A GPU is function 0.
fn address(text: &str) -> Option<(String, &str)> {
    let (domain, rest) = text.split_once(':')?;
    let (bus, rest) = rest.split_once(':')?;
    let (device, rest) = rest.split_at_checked(2)?;
    let rest = rest.strip_prefix(".0").unwrap_or(rest);
    if !(4..=8).contains(&domain.len()) || bus.len() != 2 {
        return None;
    }
    let (domain, bus) = (hexadecimal(domain)?, hexadecimal(bus)?);
    let device = hexadecimal(device).filter(|device| *device <= 0x1f)?;
    Some((format!("{domain:04x}:{bus:02x}:{device:02x}.0"), rest))
}

fn hexadecimal(digits: &str) -> Option<u32> {
    let plain = digits.bytes().all(|digit| digit.is_ascii_hexdigit());
    plain.then(|| u32::from_str_radix(digits, 16).ok())?
}

/// The instance that is named between address and parenthesis, if any; absent for any other text.
fn attribution(place: &str) -> Option<Attribution> {
    if place.is_empty() {
        return Some(Attribution::Gpu);
    }
    let place = place.strip_prefix(" GPU-I:")?;
    let (gi, ci) = match place.split_once(" GPU-CI:") {
        Some((gi, ci)) => (gi, Some(number(ci)?)),
        None => (place, None),
    };
    Some(match (number(gi)?, ci) {
        (u32::MAX, _) => Attribution::Gpu,
        (gi, None | Some(u32::MAX)) => Attribution::GpuInstance(gi),
        (gi, Some(ci)) => Attribution::ComputeInstance(gi, ci),
    })
}

fn number(digits: &str) -> Option<u32> {
    let plain = digits.bytes().all(|digit| digit.is_ascii_digit());
    plain.then(|| digits.parse().ok())?
}

/// How bad an NVLink error is: the second word, after the name of the block. It is not looked for where a
/// process is named, since that may have any name.
fn severity(text: &str) -> Option<LinkSeverity> {
    let text = text.strip_prefix(", ")?;
    let text = text.strip_prefix("pid='<unknown>', name=<unknown>, ").unwrap_or(text);
    let mut words = text.split_whitespace();
    let block = words.next()?;
    if !block.bytes().all(|byte| byte.is_ascii_uppercase() || byte.is_ascii_digit() || byte == b'_')
    {
        return None;
    }
    match words.next()?.trim_end_matches(',').to_ascii_lowercase().as_str() {
        "nonfatal" | "non-fatal" => Some(LinkSeverity::NonFatal),
        "fatal" | "link-fatal" | "gpu-fatal" => Some(LinkSeverity::Fatal),
        _ => None,
    }
}

#[cfg(test)]
mod tests;
