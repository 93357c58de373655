//! Lines of the kernel's log in which NVIDIA's driver reports an XID.
//!
//! The driver prints `NVRM: Xid (PCI:dddd:bb:dd): N, …`, with ` GPU-I:nn` or ` GPU-I:nn GPU-CI:nn` after
//! the address where it knows the instance (`nvErrorLog` in its open kernel modules). Some XIDs are found
//! nowhere else, and a GPU that falls off the bus is also told of in a sentence without its number.

use super::{Attribution, LinkSeverity, Sign};

/// An XID in the kernel's log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LoggedXid {
    /// PCI address in sysfs's spelling, `0000:1b:00.0`.
    pub pci: String,
    /// The XID.
    pub sign: Sign,
    /// The process that it names.
    pub pid: Option<u32>,
    /// The name of that process.
    pub process: Option<String>,
}

/// Whether a line says that NVIDIA's kernel module was loaded, which starts every GPU anew.
pub fn says_driver_loaded(line: &str) -> bool {
    without_time(line).starts_with("NVRM: loading NVIDIA UNIX ")
}

/// What a line of the kernel's log reports; absent where that is no XID.
pub fn parse(line: &str) -> Option<LoggedXid> {
    let line = without_time(line).strip_prefix("NVRM:")?.trim_start();
    match line.strip_prefix("Xid (PCI:") {
        Some(rest) => numbered(rest),
        None => off_the_bus(line),
    }
}

/// Some print the time since the boot before each line: `[ 1234.567890] `.
fn without_time(line: &str) -> &str {
    let line = line.trim();
    let bare = line.strip_prefix('[').and_then(|rest| rest.split_once(']'));
    bare.map_or(line, |(_, rest)| rest.trim_start())
}

fn numbered(rest: &str) -> Option<LoggedXid> {
    let (place, rest) = rest.split_once(')')?;
    let mut words = place.split_whitespace();
    let pci = address(words.next()?)?;
    let attribution = attribution(words);
    let rest = rest.strip_prefix(':')?.trim_start();
    let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
    let (code, text) = rest.split_at_checked(digits)?;
    let code = code.parse().ok()?;
    let link = if (144..=150).contains(&code) { severity(text) } else { None };
    let pid = field(text, "pid=").and_then(|pid| pid.parse().ok());
    let process = field(text, "name=").map(str::to_owned);
    Some(LoggedXid { pci, sign: Sign::Xid { code, attribution, link }, pid, process })
}

/// `GPU 0000:1b:00.0: GPU has fallen off the bus.`
fn off_the_bus(line: &str) -> Option<LoggedXid> {
    if !line.to_ascii_lowercase().contains("gpu has fallen off the bus") {
        return None;
    }
    let pci = line.split_whitespace().find_map(|word| {
        let word = word.trim_end_matches([':', ',']);
        address(word.strip_prefix("PCI:").unwrap_or(word))
    })?;
    let sign = Sign::Xid { code: 79, attribution: Attribution::Gpu, link: None };
    Some(LoggedXid { pci, sign, pid: None, process: None })
}

/// Domain, bus and device, with or without a function: a GPU is function 0.
fn address(text: &str) -> Option<String> {
    let bare = text.split_once('.').map_or(text, |(bare, _)| bare);
    let parts: Vec<u32> = bare.split(':').map(hexadecimal).collect::<Option<_>>()?;
    match parts[..] {
        [domain, bus @ ..=0xff, device @ ..=0x1f] => {
            Some(format!("{domain:04x}:{bus:02x}:{device:02x}.0"))
        }
        _ => None,
    }
}

fn hexadecimal(digits: &str) -> Option<u32> {
    let plain = digits.bytes().all(|digit| digit.is_ascii_hexdigit());
    plain.then(|| u32::from_str_radix(digits, 16).ok())?
}

fn attribution<'l>(words: impl Iterator<Item = &'l str> + Clone) -> Attribution {
    let id = |name| words.clone().find_map(|word| word.strip_prefix(name)?.parse().ok());
    match (id("GPU-I:"), id("GPU-CI:")) {
        (None | Some(u32::MAX), _) => Attribution::Gpu,
        (Some(gi), None | Some(u32::MAX)) => Attribution::GpuInstance(gi),
        (Some(gi), Some(ci)) => Attribution::ComputeInstance(gi, ci),
    }
}

/// The first word that says how bad an NVLink error is.
fn severity(text: &str) -> Option<LinkSeverity> {
    let words = text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '-'));
    words.map(str::to_ascii_lowercase).find_map(|word| match word.as_str() {
        "nonfatal" | "non-fatal" => Some(LinkSeverity::NonFatal),
        "fatal" | "link-fatal" | "gpu-fatal" => Some(LinkSeverity::Fatal),
        _ => None,
    })
}

/// The value of a field, up to the next comma; the driver writes `<unknown>` for none.
fn field<'l>(text: &'l str, name: &str) -> Option<&'l str> {
    let (before, value) = text.split_once(name)?;
    let value = value.split(',').next()?.trim().trim_matches('\'');
    let named = before.ends_with([' ', ',']) && !value.is_empty() && value != "<unknown>";
    named.then_some(value)
}

#[cfg(test)]
mod tests;
