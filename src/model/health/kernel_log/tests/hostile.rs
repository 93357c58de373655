//! What users can have the kernel write: its own records, with words of their choice where it prints names.
//! None of these says anything of a GPU.

use proptest::prelude::*;

use super::*;

/// The kernel's formats in which users choose a word: `{comm}` is the name of a thread, of 15 bytes at most,
/// `{name}` anything else, `{n}` a number.
const FORMATS: [&str; 34] = [
    "{comm}[{n}]: segfault at {n} ip {n} sp {n} error 4 in {name}[{n}+1000] likely on CPU 3 (core 3, socket 0)",
    "{comm}[{n}]: bad frame in rt_sigreturn frame:{n} ip:{n} sp:{n} orax:{n} in {name}[{n}+1000]",
    "{comm}[{n}] general protection fault ip:{n} sp:{n} error:0 in {name}[{n}+1000]",
    "{comm}[{n}] trap divide error ip:{n} sp:{n} error:0 in {name}[{n}+1000]",
    "traps: {comm}[{n}] trap invalid opcode ip:{n} sp:{n} error:0 in {name}[{n}+1000]",
    "{comm}[{n}]: unhandled level 1 translation fault (11) at {n}, esr {n}, in {name}[{n}+1000]",
    "{comm} invoked oom-killer: gfp_mask=0xcc0(GFP_KERNEL), order=0, oom_score_adj={n}",
    "Out of memory: Killed process {n} ({comm}) total-vm:{n}kB, anon-rss:{n}kB",
    "Memory cgroup out of memory: Killed process {n} ({comm}) total-vm:{n}kB",
    "oom-kill:constraint=CONSTRAINT_MEMCG,oom_memcg=/{name},task_memcg=/{name},task={comm},pid={n},uid=0",
    "oom_reaper: reaped process {n} ({comm}), now anon-rss:0kB",
    "[{n}]     0 {n} {n} {n} 0 {comm}",
    "INFO: task {comm}:{n} blocked for more than {n} seconds.",
    "task:{comm} state:D stack:0 pid:{n} tgid:{n} ppid:1",
    "watchdog: BUG: soft lockup - CPU#1 stuck for {n}s! [{comm}:{n}]",
    "{comm}: page allocation failure: order:{n}, mode:0xcc0(GFP_KERNEL), nodemask=(null),cpuset={name}",
    "{comm} ({n}) used greatest stack depth: {n} bytes left",
    "{comm} ({n}): drop_caches: 3",
    "{comm} uses obsolete (PF_INET,SOCK_PACKET)",
    "{comm} {n} deprecated syscall",
    "audit: type=1701 audit({n}:1): auid=0 uid=0 pid={n} comm=\"{comm}\" exe=\"{name}\" sig=11 res=1",
    "audit: type=1400 audit({n}:1): apparmor=\"DENIED\" operation=\"open\" name=\"{name}\" comm=\"{comm}\"",
    "Netfilter: {name} IN=eth0 OUT= MAC= SRC=10.0.0.1 DST=10.0.0.2",
    "usb 1-1: Product: {name}",
    "usb 1-1: Manufacturer: {name}",
    "input: {name} as /devices/pci0000:00/usb1/1-1/input/input{n}",
    "EXT4-fs ({name}): mounted filesystem with ordered data mode. Quota mode: none.",
    "overlayfs: lowerdir={name} does not exist",
    "cgroup: fork rejected by pids controller in /{name}",
    "device {name} entered promiscuous mode",
    "{name}: renamed from {name}",
    "process '{name}' started with executable stack",
    "perf: interrupt took too long ({n} > {n}), lowering for {comm}",
    "FAT-fs (loop0): bogus number of reserved sectors {name}",
];

/// What an attacker would write: the driver's words, and pieces of them, with newlines raw and as the kernel
/// prints them.
const WORDS: [&str; 22] = [
    "NVRM: Xid (PCI:0000:1b:00): 79, pid=1, name=x, GPU has fallen off the bus.",
    "NVRM: 0000:1b:00.0 GPU has fallen off the bus",
    "NVRM: GPU 0000:1b:00.0: GPU has fallen off the bus.",
    "NVRM: GPU at PCI:0000:1b:00: GPU has fallen off the bus.",
    "NVRM: loading NVIDIA UNIX x86_64 Kernel Module  580.95.05",
    r"\x0aNVRM: Xid (PCI:0000:1b:00): 79, x",
    "\nNVRM: Xid (PCI:0000:1b:00): 79, x",
    r"\x0a4,1,2,-;NVRM: Xid (PCI:0000:1b:00): 79, x",
    r"NVRM: The NVIDIA GPU 0000:b3:00.0\x0aNVRM: (PCI ID: 10de:2330) installed in this system has\x0aNVRM: fallen off the bus and is not responding to commands.",
    "NVRM: ",
    "NVRM: Xid (PCI:",
    "NVRM: GPU at 00",
    "NVRM: loading N",
    "Xid (PCI:0000:1b:00): 79",
    "0000:1b:00.0",
    "0000:1b:00): 79, ",
    "PCI:0000:1b:00",
    "Fatal",
    "[  1.000000] NVRM: Xid (PCI:0000:1b:00): 79, x",
    " ",
    "\r",
    "",
];

/// Pseudorandom numbers: the same records for the same seed.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 >> 33).unwrap() % sides
    }

    fn word(&mut self, into: &mut String) {
        for _ in 0..=self.roll(3) {
            into.push_str(WORDS[self.roll(WORDS.len())]);
        }
    }

    /// A thread's name, cut as the kernel cuts it.
    fn comm(&mut self, into: &mut String) {
        let begin = into.len();
        self.word(into);
        into.truncate(into.floor_char_boundary(begin + 15));
    }

    fn record(&mut self, record: &mut String) {
        record.clear();
        let mut rest = FORMATS[self.roll(FORMATS.len())];
        while let Some((before, after)) = rest.split_once('{') {
            record.push_str(before);
            let (what, after) = after.split_once('}').unwrap();
            match what {
                "comm" => self.comm(record),
                // A network device's name begins a record, and has 15 bytes at most.
                "name" if record.is_empty() => self.comm(record),
                "name" => self.word(record),
                _ => record.push_str(["0", "77", "4294967295"][self.roll(3)]),
            }
            rest = after;
        }
        record.push_str(rest);
    }
}

fn none_of(records: usize, seed: u64) {
    let (mut dice, mut record) = (Dice(seed), String::new());
    for _ in 0..records {
        dice.record(&mut record);
        assert_eq!(parse(&record), None, "{record}");
        assert!(!says_driver_loaded(&record), "{record}");
    }
}

#[test]
fn a_million_records_of_the_kernels_say_nothing_of_a_gpu() {
    none_of(1_000_000, 0x5eed);
}

#[test]
#[ignore = "ten times as long: cargo test --release --lib -- --ignored hostile"]
fn ten_million_records_of_the_kernels_say_nothing_of_a_gpu() {
    none_of(10_000_000, 0x0bad_5eed);
}

/// A program without a GPU that was run under the name of a sentence of the driver, and ends by a fault: the
/// name of its thread is the beginning of its file's.
#[test]
fn a_file_name_takes_no_gpu_off_the_bus() {
    let record = "NVRM: 0000:1b:0[4711]: segfault at 0 ip 0000000000401106 sp 00007ffd error 6 in NVRM: 0000:1b:00.0 GPU has \
                  fallen off the bus[401000+1000]";
    assert_eq!(parse(record), None);
}

proptest! {
    #[test]
    fn whatever_stands_before_a_form_makes_it_none(before in "[^N].{0,20}", form: prop::sample::Index) {
        let (form, _) = *form.get(&forms().iter().map(|(form, _)| (*form, ())).collect::<Vec<_>>());
        let record = format!("{before}{form}");
        prop_assert_eq!(parse(&record), None);
    }

    #[test]
    fn any_record_is_read_or_not(line in ".*", tail in "[0-9a-fA-F:GPUCI(), \\-é]{0,40}") {
        parse(&line);
        parse(&format!("NVRM: {line}"));
        parse(&format!("NVRM: Xid (PCI:{tail}"));
        parse(&format!("NVRM: Xid (PCI:0000:1b:00): {line}"));
        parse(&format!("NVRM: GPU {tail} GPU has fallen off the bus {line}"));
    }
}
