use proptest::prelude::*;

use super::*;

fn logged(pci: &str, code: u32, attribution: Attribution) -> LoggedXid {
    let sign = Sign::Xid { code, attribution, link: None };
    LoggedXid { pci: pci.to_owned(), sign, pid: None, process: None }
}

fn by(pid: u32, process: &str, xid: LoggedXid) -> LoggedXid {
    LoggedXid { pid: Some(pid), process: Some(process.to_owned()), ..xid }
}

fn link(code: u32, link: Option<LinkSeverity>) -> LoggedXid {
    let sign = Sign::Xid { code, attribution: Attribution::Gpu, link };
    LoggedXid { sign, ..logged("0018:01:00.0", code, Attribution::Gpu) }
}

#[test]
fn all_forms_of_a_line_are_read() {
    let gpu = |code| logged("0000:1b:00.0", code, Attribution::Gpu);
    let instance = |attribution| by(77, "python3", logged("0000:1b:00.0", 31, attribution));
    for (line, expected) in [
        (
            "NVRM: Xid (PCI:0000:1b:00): 79, pid='<unknown>', name=<unknown>, GPU has fallen off the bus.",
            gpu(79),
        ),
        ("NVRM: Xid (PCI:0000:1B:00): 79, GPU has fallen off the bus.", gpu(79)),
        ("NVRM: GPU 0000:1b:00.0: GPU has fallen off the bus.", gpu(79)),
        ("NVRM: GPU at PCI:0000:1b:00: GPU has fallen off the bus.", gpu(79)),
        ("[  612.004711] NVRM: Xid (PCI:0000:1b:00): 48, text", gpu(48)),
        ("NVRM: Xid (PCI:00000000:1b:00.0): 48", gpu(48)),
        ("NVRM: Xid (PCI:0001:c1:00): 119, Timeout", logged("0001:c1:00.0", 119, Attribution::Gpu)),
        (
            "NVRM: Xid (PCI:0000:1b:00): 13, pid=4711, name=a b, Graphics Exception: ESR 0x505730=0x9",
            by(4711, "a b", gpu(13)),
        ),
        (
            "NVRM: Xid (PCI:0000:1b:00 GPU-I:02): 31, pid=77, name=python3, MMU Fault",
            instance(Attribution::GpuInstance(2)),
        ),
        (
            "NVRM: Xid (PCI:0000:1b:00 GPU-I:11 GPU-CI:01): 31, pid=77, name=python3, MMU Fault",
            instance(Attribution::ComputeInstance(11, 1)),
        ),
        (
            "NVRM: Xid (PCI:0000:1b:00 GPU-I:4294967295 GPU-CI:0): 31, pid=77, name=python3, x",
            instance(Attribution::Gpu),
        ),
        (
            "NVRM: Xid (PCI:0018:01:00): 149, NETIR_LINK_EVT  Fatal   XC0 i0 Link 08 (0x1)",
            link(149, Some(LinkSeverity::Fatal)),
        ),
        (
            "NVRM: Xid (PCI:0018:01:00): 145, RLW_CTRL Nonfatal XC0 i0 Link 08 (0x1)",
            link(145, Some(LinkSeverity::NonFatal)),
        ),
        ("NVRM: Xid (PCI:0018:01:00): 150, MSE", link(150, None)),
        ("NVRM: Xid (PCI:0018:01:00): 46, Fatal", link(46, None)),
    ] {
        assert_eq!(parse(line), Some(expected), "{line}");
    }
}

#[test]
fn other_lines_are_none() {
    for line in [
        "",
        "NVRM: loading NVIDIA UNIX x86_64 Kernel Module  580.95.05",
        "NVRM: The NVIDIA GPU 0000:1b:00.0",
        "NVRM: GPU has fallen off the bus.",
        "NVRM: Xid (PCI:0000:1b:00): , text",
        "NVRM: Xid (PCI:0000:1b:00): 99999999999, text",
        "NVRM: Xid (PCI:1b:00): 48, text",
        "NVRM: Xid (PCI:0000:1b:ff): 48, text",
        "NVRM: Xid (PCI:0000:+b:00): 48, text",
        "NVRM: Xid (PCI:0000:1b:00",
        // A program may write what it likes elsewhere in a line.
        "python[77]: NVRM: Xid (PCI:0000:1b:00): 79, text",
    ] {
        assert_eq!(parse(line), None, "{line}");
    }
}

proptest! {
    #[test]
    fn any_line_is_read_or_not(line in ".*", tail in "[0-9a-fA-F:GPUCI(), \\-é]{0,40}") {
        parse(&line);
        parse(&format!("NVRM: {line}"));
        parse(&format!("NVRM: Xid (PCI:{tail}"));
        parse(&format!("NVRM: Xid (PCI:0000:1b:00): {line}"));
        parse(&format!("NVRM: {tail} GPU has fallen off the bus {line}"));
    }
}

#[test]
fn loads_of_the_driver_are_told_from_other_lines() {
    let loaded =
        "NVRM: loading NVIDIA UNIX Open Kernel Module for x86_64  580.95.05  Release Build";
    let before = "NVRM: loading NVIDIA UNIX x86_64 Kernel Module  470.256.02";
    assert_eq!([loaded, before].map(says_driver_loaded), [true, true]);
    let others =
        ["nvidia: loading out-of-tree module taints kernel.", "NVRM: Xid (PCI:0000:1b:00): 62"];
    assert_eq!(others.map(says_driver_loaded), [false, false]);
}
