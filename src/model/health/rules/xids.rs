//! The rules for XIDs, in the order of their codes. NVIDIA's catalogue of XIDs says what they mean.

use std::ops::RangeInclusive;

use k8s_openapi::jiff::SignedDuration;

use super::{Class, End, Rule, Scope, Severity, Threshold, Verdict, When};

const APP: Scope = Scope::Application;
const PART: Scope = Scope::Instance;
const GPU: Scope = Scope::Gpu;

const NOTICE: Verdict = Verdict::Notice;
const EVENT: Verdict = Verdict::Event;
const WARNING: Verdict = Verdict::At(Severity::Warning);
const UNHEALTHY: Verdict = Verdict::At(Severity::Unhealthy);
const THREE_A_DAY: Verdict = Verdict::Repeated(faults(3, SignedDuration::from_hours(24)));
const TEN_A_DAY: Verdict = Verdict::Repeated(faults(10, SignedDuration::from_hours(24)));
const TEN_AN_HOUR: Verdict = Verdict::Repeated(faults(10, SignedDuration::from_hours(1)));
/// The driver asks for a reset at the third timeout by default, and each is a fault of its own.
const THIRD_IN_TEN_MINUTES: Verdict = Verdict::Mounting(Threshold {
    times: 3,
    within: SignedDuration::from_mins(10),
    apart: SignedDuration::from_secs(5),
});

const HOUR: End = End::Quiet(SignedDuration::from_hours(1));
const DAY: End = End::Quiet(SignedDuration::from_hours(24));
const ACTION_NONE: End = End::ActionNoneAndQuiet(SignedDuration::from_mins(10));

const APPLICATION: &str = "check the application, this GPU is fine";

// One row a rule: codes, scope, class, meaning; verdict, end, action.
#[rustfmt::skip]
pub(super) static RULES: &[Rule] = &[
    row(&[8..=8], APP, Class::Application, "channel made no progress",
        EVENT, End::AtOnce, APPLICATION),
    row(&[11..=11, 25..=25, 69..=69], APP, Class::Application, "broken command stream of a program",
        EVENT, End::AtOnce, APPLICATION),
    row(&[13..=13], APP, Class::Application, "graphics engine exception of a program",
        EVENT, End::AtOnce, APPLICATION),
    row(&[14..=14], GPU, Class::Driver, "injected test error",
        NOTICE, End::AtOnce, "nothing, it is a test"),
    row(&[31..=31], APP, Class::Application, "page fault of a program",
        EVENT, End::AtOnce, APPLICATION),
    row(&[32..=32], GPU, Class::Bus, "broken command stream at the DMA unit",
        THREE_A_DAY, DAY, "check the application; if it repeats, check the PCI slot"),
    row(&[37..=37], APP, Class::Application, "method that firmware does not know",
        EVENT, End::AtOnce, APPLICATION),
    row(&[38..=38], GPU, Class::Firmware, "context switch watchdog",
        THREE_A_DAY, DAY, "check the application; if it repeats, contact support"),
    row(&[39..=41, 70..=72, 75..=77, 85..=85, 126..=135], APP, Class::Application, "copy engine error",
        EVENT, End::AtOnce, APPLICATION),
    row(&[43..=43, 44..=44], APP, Class::Application, "channel stopped by a fault of its program",
        EVENT, End::AtOnce, APPLICATION),
    row(&[45..=45], APP, Class::Application, "channels removed after an earlier error",
        NOTICE, End::AtOnce, "look at the error before it"),
    row(&[46..=46], GPU, Class::Driver, "GPU made no progress",
        UNHEALTHY, End::Reset, "stop all work on this GPU and reset it"),
    row(&[48..=48], GPU, Class::Memory, "uncorrectable ECC error",
        UNHEALTHY, End::Reset, "memory error, reset this GPU").outranked(),
    row(&[54..=54], GPU, Class::Power, "auxiliary power is not connected",
        UNHEALTHY, End::BootAndAnswer, "connect the power cable of this GPU"),
    row(&[57..=59, 61..=61], GPU, Class::Firmware, "memory or power microcontroller failed",
        UNHEALTHY, End::Reset, "reset this GPU, contact support if it returns").when(When::BeforeAmpere),
    row(&[60..=60], APP, Class::Application, "video processor exception",
        EVENT, End::AtOnce, APPLICATION),
    row(&[62..=62], GPU, Class::Firmware, "power microcontroller halted",
        UNHEALTHY, End::Reset, "reset this GPU, contact support if it returns").outranked(),
    row(&[63..=63], GPU, Class::Memory, "row remapping recorded",
        WARNING, End::RemapDone, "reset this GPU at the next service window").outranked(),
    row(&[64..=64], GPU, Class::Memory, "row remapping failed to be recorded",
        UNHEALTHY, End::FailureGone, "reset this GPU, then run field diagnostics").outranked(),
    row(&[66..=66, 67..=67], APP, Class::Application, "illegal register access",
        EVENT, End::AtOnce, APPLICATION),
    row(&[68..=68, 83..=83, 84..=84, 88..=88, 89..=89, 96..=98], APP, Class::Application, "video decoder error",
        EVENT, End::AtOnce, APPLICATION),
    row(&[74..=74], GPU, Class::Link, "NVLink error",
        UNHEALTHY, End::Reset, "reset this GPU, then check NVLink to its peer").outranked(),
    row(&[78..=78], APP, Class::Driver, "vGPU start refused",
        NOTICE, End::AtOnce, "update the drivers of guest and host"),
    row(&[79..=79], GPU, Class::Bus, "GPU has fallen off the bus",
        UNHEALTHY, End::BootAndAnswer, "reboot the node, then check seating, power and cable").outranked(),
    row(&[80..=80], APP, Class::Application, "command data failed its checksum",
        EVENT, End::AtOnce, APPLICATION),
    row(&[82..=82, 99..=105], APP, Class::Application, "JPEG engine error",
        EVENT, End::AtOnce, APPLICATION),
    row(&[86..=86, 139..=139], APP, Class::Application, "optical flow engine error",
        EVENT, End::AtOnce, APPLICATION),
    row(&[92..=92], GPU, Class::Memory, "high rate of corrected memory errors",
        WARNING, DAY, "watch for remapped rows"),
    row(&[93..=93, 122..=125], GPU, Class::Driver, "InfoROM worn or not accessible",
        WARNING, End::Hand, "contact support"),
    row(&[94..=94], PART, Class::Memory, "memory error, contained",
        WARNING, ACTION_NONE, "restart the application, reset this GPU when convenient").outranked(),
    row(&[95..=95], GPU, Class::Memory, "memory error, not contained",
        UNHEALTHY, End::Reset, "stop all work on this GPU and reset it").outranked(),
    row(&[106..=106, 107..=107], GPU, Class::Driver, "message of the management bus",
        NOTICE, End::AtOnce, "nothing, it is a notice"),
    row(&[108..=108, 137..=137], APP, Class::Application, "NVLink access refused by a peer",
        EVENT, End::AtOnce, APPLICATION),
    row(&[109..=109], GPU, Class::Driver, "context switch timed out",
        UNHEALTHY, End::Reset, "stop all work on this GPU and reset it").outranked(),
    row(&[110..=110], GPU, Class::Firmware, "security fault",
        UNHEALTHY, End::Boot, "power cycle the node, undo changes of hardware").outranked(),
    row(&[119..=119, 175..=175], GPU, Class::Firmware, "GPU firmware (GSP) does not answer",
        THIRD_IN_TEN_MINUTES, End::Reset, "reset this GPU"),
    row(&[120..=120], GPU, Class::Firmware, "GPU firmware (GSP) failed",
        UNHEALTHY, End::Reset, "reset this GPU").outranked(),
    row(&[121..=121], GPU, Class::Link, "corrected errors on the link to the CPU",
        TEN_A_DAY, DAY, "check seating, reset this GPU when convenient"),
    row(&[136..=136], GPU, Class::Link, "NVLink training failed",
        UNHEALTHY, End::Reset, "reset this GPU, then check NVLink to its peer").outranked(),
    row(&[140..=140], GPU, Class::Memory, "uncorrected ECC error",
        UNHEALTHY, End::Reset, "stop all work on this GPU and reset it"),
    row(&[141..=141], APP, Class::Application, "CUDA fast path error",
        EVENT, End::AtOnce, APPLICATION),
    row(&[142..=142], GPU, Class::Firmware, "video encoder error",
        THREE_A_DAY, DAY, "check the application; if it repeats, contact support"),
    row(&[143..=143], GPU, Class::Driver, "GPU initialisation failed",
        UNHEALTHY, End::Answer, "reset this GPU or reboot the node").outranked(),
    row(&[144..=146, 149..=149, 150..=150], GPU, Class::Link, "NVLink failed",
        UNHEALTHY, End::Reset, "let jobs finish, reset this GPU, check its NVLink peer").when(When::FatalOrUntold).outranked().keeping(),
    row(&[147..=147, 148..=148], GPU, Class::Link, "NVLink failed",
        UNHEALTHY, End::Reset, "let jobs finish, reset this GPU, check its NVLink peer").when(When::Fatal).outranked().keeping(),
    row(&[144..=146, 149..=149, 150..=150], GPU, Class::Link, "NVLink noise",
        TEN_AN_HOUR, HOUR, "watch this link").when(When::NonFatal),
    row(&[147..=147, 148..=148], GPU, Class::Link, "NVLink noise",
        TEN_AN_HOUR, HOUR, "watch this link").when(When::NonFatalOrUntold),
    row(&[151..=151], GPU, Class::Security, "key rotation failed",
        UNHEALTHY, End::Boot, "restart the virtual machine"),
    row(&[152..=152, 153..=153], APP, Class::Application, "deep learning accelerator error",
        EVENT, End::AtOnce, APPLICATION),
    row(&[154..=154], GPU, Class::Driver, "recovery action changed",
        NOTICE, End::AtOnce, "look at the recovery action"),
    row(&[155..=155], GPU, Class::Link, "NVLink was taken down",
        WARNING, ACTION_NONE, "find out who took it down").outranked(),
    row(&[156..=156, 160..=160], GPU, Class::Memory, "faulty part retired",
        WARNING, End::RepairDone, "reset this GPU at the next service window").outranked(),
    row(&[157..=157, 161..=161], GPU, Class::Memory, "no spare parts left",
        WARNING, End::Hand, "contact support").outranked(),
    row(&[158..=158], GPU, Class::Driver, "fatal timeout",
        UNHEALTHY, End::Reset, "stop all work on this GPU and reset it").outranked(),
    row(&[159..=159], GPU, Class::Link, "coherent interface error",
        WARNING, End::Reset, "reset this GPU if managed memory or vGPU is used").outranked(),
    row(&[162..=162], GPU, Class::Power, "power smoothing works again",
        NOTICE, End::AtOnce, "nothing, it is a notice"),
    row(&[163..=163], GPU, Class::Power, "power smoothing is off",
        WARNING, End::SmoothingBack, "check the temperature"),
    row(&[164..=164, 165..=165], GPU, Class::Power, "power smoothing circuit is worn",
        WARNING, End::Hand, "plan a replacement"),
    row(&[166..=166, 170..=170], GPU, Class::Security, "link encryption is in a wrong state",
        WARNING, End::Reset, "restart the confidential guest"),
    row(&[167..=167], GPU, Class::Bus, "fatal PCIe timeout",
        UNHEALTHY, End::Boot, "link to the CPU failed, reboot the node"),
    row(&[168..=168], GPU, Class::Memory, "memory capacity is reduced",
        WARNING, End::Boot, "enable ECC or reboot the node"),
    row(&[169..=169], GPU, Class::Firmware, "security processor halted",
        UNHEALTHY, End::Reset, "reset this GPU, contact support if it returns"),
    row(&[171..=171, 172..=172], GPU, Class::Memory, "uncorrectable ECC error",
        UNHEALTHY, End::Reset, "memory error, reset this GPU").outranked(),
    row(&[173..=173], GPU, Class::Link, "link to the CPU failed",
        UNHEALTHY, End::Boot, "reboot the node"),
    row(&[174..=174], APP, Class::Application, "channel reset",
        EVENT, End::AtOnce, APPLICATION),
    row(&[176..=176], GPU, Class::Bus, "corrected PCIe errors",
        TEN_A_DAY, DAY, "check seating, reset this GPU when convenient"),
];

const fn row(
    codes: &'static [RangeInclusive<u32>],
    scope: Scope,
    class: Class,
    meaning: &'static str,
    verdict: Verdict,
    ends: End,
    action: &'static str,
) -> Rule {
    let (outranked, keeps_running_work) = (false, false);
    let when = When::Any;
    Rule {
        codes,
        when,
        class,
        meaning,
        scope,
        verdict,
        ends,
        outranked,
        keeps_running_work,
        action,
    }
}

impl Rule {
    const fn when(self, when: When) -> Self {
        Self { when, ..self }
    }

    const fn outranked(self) -> Self {
        Self { outranked: true, ..self }
    }

    const fn keeping(self) -> Self {
        Self { keeps_running_work: true, ..self }
    }
}

/// Faults: one shows on several channels and in several places, so that what comes within three
/// minutes is one.
const fn faults(times: usize, within: SignedDuration) -> Threshold {
    Threshold { times, within, apart: SignedDuration::from_mins(3) }
}
