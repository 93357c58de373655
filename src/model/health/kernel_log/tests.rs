mod hostile;

use super::*;

fn logged(pci: &str, code: u32, attribution: Attribution) -> LoggedXid {
    let sign = Sign::Xid { code, attribution, link: None };
    LoggedXid { pci: pci.to_owned(), sign }
}

fn link(code: u32, link: Option<LinkSeverity>) -> LoggedXid {
    let sign = Sign::Xid { code, attribution: Attribution::Gpu, link };
    LoggedXid { sign, ..logged("0018:01:00.0", code, Attribution::Gpu) }
}

/// Every shape of the driver's, and what it says.
fn forms() -> Vec<(&'static str, LoggedXid)> {
    let gpu = |code| logged("0000:1b:00.0", code, Attribution::Gpu);
    let instance = |attribution| logged("0000:1b:00.0", 31, attribution);
    vec![
        (
            "NVRM: Xid (PCI:0000:1b:00): 79, pid='<unknown>', name=<unknown>, GPU has fallen off the bus.",
            gpu(79),
        ),
        ("NVRM: Xid (PCI:0000:1B:00): 79, GPU has fallen off the bus.", gpu(79)),
        ("NVRM: GPU 0000:1b:00.0: GPU has fallen off the bus.", gpu(79)),
        ("NVRM: GPU 0000:1b:00.0: GPU has fallen off the bus", gpu(79)),
        ("NVRM: GPU at PCI:0000:1b:00: GPU has fallen off the bus.", gpu(79)),
        ("NVRM: GPU at 0000:1b:00.0 has fallen off the bus.", gpu(79)),
        (
            r"NVRM: The NVIDIA GPU 0000:1b:00.0\x0aNVRM: (PCI ID: 10de:2330) installed in this system has\x0aNVRM: fallen off the bus and is not responding to commands.",
            gpu(79),
        ),
        ("NVRM: Xid (PCI:00000000:1b:00.0): 48", gpu(48)),
        ("NVRM: Xid (PCI:0001:c1:00): 119, Timeout", logged("0001:c1:00.0", 119, Attribution::Gpu)),
        ("NVRM: Xid (PCI:10000:1b:00): 48, x", logged("10000:1b:00.0", 48, Attribution::Gpu)),
        (
            "NVRM: Xid (PCI:0000:1b:00): 13, pid=4711, name=a b, Graphics Exception: ESR 0x505730=0x9",
            gpu(13),
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
        (
            "NVRM: Xid (PCI:0018:01:00): 145, pid='<unknown>', name=<unknown>, RLW_CTRL Nonfatal XC0",
            link(145, Some(LinkSeverity::NonFatal)),
        ),
        ("NVRM: Xid (PCI:0018:01:00): 150, MSE", link(150, None)),
        ("NVRM: Xid (PCI:0018:01:00): 46, Fatal", link(46, None)),
    ]
}

#[test]
fn all_forms_of_a_record_are_read() {
    for (record, expected) in forms() {
        assert_eq!(parse(record), Some(expected), "{record}");
    }
}

/// The name of a process stands in the record, and its owner chose it.
#[test]
fn the_name_of_a_process_says_nothing_of_a_link() {
    for name in ["A Fatal", "x, A Nonfatal b", "<unknown>, A Fatal", "Fatal"] {
        let record =
            format!("NVRM: Xid (PCI:0018:01:00): 145, pid=7, name={name}, RLW_CTRL Nonfatal XC0");
        assert_eq!(parse(&record), Some(link(145, None)), "{record}");
    }
}

#[test]
fn other_records_are_none() {
    for record in [
        "",
        "NVRM: loading NVIDIA UNIX x86_64 Kernel Module  580.95.05",
        "NVRM: The NVIDIA GPU 0000:1b:00.0",
        r"NVRM: The NVIDIA GPU 0000:1b:00.0\x0aNVRM: (PCI ID: 10de:2330) installed in this system is new",
        "NVRM: GPU has fallen off the bus.",
        "NVRM: 0000:1b:00.0 GPU has fallen off the bus",
        "NVRM: GPU 0000:1b:00.0: GPU has not fallen off the bus.",
        "NVRM: GPU 0000:1b:00.0: GPU has fallen off the bus. So says a name[7]",
        "NVRM: Xid (PCI:0000:1b:00): , text",
        "NVRM: Xid (PCI:0000:1b:00): 79 text",
        "NVRM: Xid (PCI:0000:1b:00): 99999999999, text",
        "NVRM: Xid (PCI:1b:00): 48, text",
        "NVRM: Xid (PCI:0000:1b:ff): 48, text",
        "NVRM: Xid (PCI:0000:1b:é): 48, text",
        "NVRM: Xid (PCI:0000:+b:00): 48, text",
        "NVRM: Xid (PCI:0000:1b:00 GPU-I:x): 48, text",
        "NVRM: Xid (PCI:0000:1b:00 anything): 48, text",
        "NVRM: Xid (PCI:0000:1b:00",
        // Not from the first byte.
        "python[77]: NVRM: Xid (PCI:0000:1b:00): 79, text",
        " NVRM: Xid (PCI:0000:1b:00): 79, text",
        "[  612.004711] NVRM: Xid (PCI:0000:1b:00): 48, text",
        r"a\x0aNVRM: Xid (PCI:0000:1b:00): 79, text",
        // A thread of this name, which has the longest that there is.
        "NVRM: Xid (PCI:[77]: segfault at 0 ip 0 sp 0 error 4 in 0000:1b:00): 79, text",
        "NVRM: GPU 0:1:1: page allocation failure: order:0",
    ] {
        assert_eq!(parse(record), None, "{record}");
    }
}

#[test]
fn loads_of_the_driver_are_told_from_other_records() {
    let loaded =
        "NVRM: loading NVIDIA UNIX Open Kernel Module for x86_64  580.95.05  Release Build";
    let before = "NVRM: loading NVIDIA UNIX x86_64 Kernel Module  470.256.02";
    assert_eq!([loaded, before].map(says_driver_loaded), [true, true]);
    let others = [
        "nvidia: loading out-of-tree module taints kernel.",
        "NVRM: Xid (PCI:0000:1b:00): 62",
        "NVRM: loading N[77]: segfault at 0 ip 0 in VIDIA UNIX x86_64 Kernel Module",
        " NVRM: loading NVIDIA UNIX x86_64 Kernel Module  470.256.02",
    ];
    assert_eq!(others.map(says_driver_loaded), [false; 4]);
}
