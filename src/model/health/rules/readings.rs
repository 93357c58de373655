//! The rules for what is read of a GPU, or told of it without an XID.

use k8s_openapi::jiff::SignedDuration;
use serde::{Deserialize, Serialize};

use super::{Class, End, Severity};

/// What may be wrong with a GPU by its readings.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) enum Condition {
    /// What the driver says has to be done: `NVML_GPU_RECOVERY_ACTION_…`, never 0.
    RecoveryAction(u32),
    ResetRequired,
    Lost,
    Unavailable,
    Hangs,
    PowerCable,
    Interrupts,
    InfoRom,
    UnknownAnswer,
    RemapPending,
    RepairPending,
    RemapFailed,
    SramThreshold,
    Uncorrected,
    FabricUnhealthy,
    FabricDegraded,
    FabricIncomplete,
    Thermal,
    PowerBrake,
    PcieFatal,
}

/// What a condition says.
#[derive(Debug)]
pub(crate) struct ReadingRule {
    pub(crate) condition: Condition,
    /// How it shows, for people who look it up.
    pub(crate) shows: &'static str,
    pub(crate) reason: &'static str,
    pub(crate) class: Class,
    pub(crate) severity: Severity,
    pub(crate) ends: End,
    pub(crate) keeps_running_work: bool,
    pub(crate) message: &'static str,
    pub(crate) action: &'static str,
}

impl Condition {
    /// Its rule.
    pub(crate) fn rule(self) -> &'static ReadingRule {
        RULES.iter().find(|rule| rule.condition == self).unwrap_or(&UNKNOWN_ACTION)
    }

    /// One word for programs.
    pub(crate) fn reason(self) -> String {
        match self {
            Self::RecoveryAction(value) => format!("recovery-action-{value}"),
            _ => self.rule().reason.to_owned(),
        }
    }

    /// What it is, as a line.
    pub(crate) fn message(self) -> String {
        match self {
            Self::RecoveryAction(value) => {
                format!("{} (recovery action {value})", self.rule().message)
            }
            _ => self.rule().message.to_owned(),
        }
    }
}

const WARNING: Severity = Severity::Warning;
const UNHEALTHY: Severity = Severity::Unhealthy;
const HOUR: End = End::Quiet(SignedDuration::from_hours(1));

const fn action(value: u32) -> Condition {
    Condition::RecoveryAction(value)
}

/// A recovery action that this program does not know may be the worst of all.
pub(super) static UNKNOWN_ACTION: ReadingRule = row(
    action(u32::MAX),
    ("field 230 above 7", "recovery-action-N"),
    (Class::Driver, UNHEALTHY, End::ActionNone),
    "GPU needs an unknown recovery",
    "reset this GPU and update the agent",
);

// One row a rule: what is wrong; how it shows, one word; class, severity, end; message, action.
#[rustfmt::skip]
pub(super) static RULES: &[ReadingRule] = &[
    row(action(1), ("field 230 = 1", "recovery-action-1"), (Class::Driver, UNHEALTHY, End::ActionNone),
        "GPU has to be reset", "stop all work on this GPU and reset it"),
    row(action(2), ("field 230 = 2", "recovery-action-2"), (Class::Driver, UNHEALTHY, End::Boot),
        "node has to be rebooted", "drain and reboot this node"),
    row(action(3), ("field 230 = 3", "recovery-action-3"), (Class::Driver, WARNING, End::ActionNone),
        "peer-to-peer work has to end", "stop peer-to-peer jobs on this GPU, then look again"),
    row(action(4), ("field 230 = 4", "recovery-action-4"), (Class::Driver, UNHEALTHY, End::ActionNone),
        "GPU has to be drained and reset", "let jobs finish, then reset this GPU").keeping(),
    row(action(5), ("field 230 = 5", "recovery-action-5"), (Class::Driver, WARNING, End::ActionNone),
        "IMEX domain has to be recovered", "restart the IMEX domain of this node"),
    row(action(6), ("field 230 = 6", "recovery-action-6"), (Class::Driver, UNHEALTHY, End::ActionNone),
        "PCI bus of the GPU has to be reset", "drain and reset the PCI slot, or reboot the node"),
    row(action(7), ("field 230 = 7", "recovery-action-7"), (Class::Driver, UNHEALTHY, End::Boot),
        "system has to be rebooted", "drain and reboot this node"),
    row(Condition::ResetRequired, ("a query answers 16", "reset-required"), (Class::Driver, UNHEALTHY, End::Clean),
        "GPU does not answer before it is reset", "stop all work on this GPU and reset it"),
    row(Condition::Lost, ("a query answers 15 or 28, or the UUID is gone", "gpu-lost"), (Class::Bus, UNHEALTHY, End::Clean),
        "GPU is lost", "reboot the node, then check seating, power and cable"),
    row(Condition::Unavailable, ("event 0x4000", "gpu-unavailable"), (Class::Bus, UNHEALTHY, End::Clean),
        "GPU is not available", "look at the kernel log"),
    row(Condition::Hangs, ("a query does not come back", "gpu-hangs"), (Class::Driver, UNHEALTHY, End::Clean),
        "driver does not answer for this GPU", "look at the kernel log, reset this GPU or reboot the node"),
    row(Condition::PowerCable, ("a query answers 8", "power-cable"), (Class::Power, UNHEALTHY, End::Clean),
        "GPU has too little power", "connect the power cable of this GPU"),
    row(Condition::Interrupts, ("a query answers 11", "interrupts"), (Class::Driver, UNHEALTHY, End::Boot),
        "interrupts of the GPU do not work", "reboot the node, then check interrupt settings"),
    row(Condition::InfoRom, ("a query answers 14", "inforom-corrupt"), (Class::Driver, WARNING, End::Clean),
        "InfoROM is damaged", "contact support"),
    row(Condition::UnknownAnswer, ("queries answer 999 three times", "unknown-answer"), (Class::Driver, WARNING, End::Clean),
        "driver answers with an unknown error", "look at the kernel log"),
    row(Condition::RemapPending, ("field 144", "remap-pending"), (Class::Memory, WARNING, End::Clean),
        "row remapping waits for a reset", "reset this GPU at the next service window"),
    row(Condition::RepairPending, ("repair status", "repair-pending"), (Class::Memory, WARNING, End::Clean),
        "repair waits for a reset", "reset this GPU at the next service window"),
    row(Condition::RemapFailed, ("field 145, event 0x800", "remap-failed"), (Class::Memory, UNHEALTHY, End::Hand),
        "row remapping failed", "run field diagnostics, then replace this GPU"),
    row(Condition::SramThreshold, ("SRAM ECC status", "sram-threshold"), (Class::Memory, UNHEALTHY, End::Hand),
        "too many SRAM errors", "run field diagnostics, then replace this GPU"),
    row(Condition::Uncorrected, ("field 4 grew, event 0x2", "uncorrected-ecc"), (Class::Memory, WARNING, End::Reset),
        "uncorrected memory errors", "restart the job that it hit"),
    row(Condition::FabricUnhealthy, ("fabric health", "fabric-unhealthy"), (Class::Link, WARNING, End::Clean),
        "NVLink fabric is unhealthy", "check the fabric manager and the cabling of NVLink"),
    row(Condition::FabricDegraded, ("fabric health", "fabric-degraded"), (Class::Link, WARNING, End::Clean),
        "NVLink runs with reduced quality", "check the links of this GPU"),
    row(Condition::FabricIncomplete, ("fabric state 1 or 2, or no partition, for 5 min", "fabric-incomplete"), (Class::Link, WARNING, End::Clean),
        "fabric registration is incomplete", "check the fabric manager"),
    row(Condition::Thermal, ("field 270 above 10 % of 10 min; unhealthy after 30 min", "thermal-slowdown"), (Class::Thermal, WARNING, End::Clean),
        "GPU is too hot", "check cooling and airflow"),
    row(Condition::PowerBrake, ("field 271 above 10 % of 10 min", "power-brake"), (Class::Power, WARNING, End::Clean),
        "power brake slows the GPU down", "check the power supply of the node"),
    row(Condition::PcieFatal, ("field 180 grew", "pcie-fatal"), (Class::Bus, WARNING, HOUR),
        "fatal PCIe errors", "check seating and the PCI slot"),
];

const fn row(
    condition: Condition,
    (shows, reason): (&'static str, &'static str),
    (class, severity, ends): (Class, Severity, End),
    message: &'static str,
    action: &'static str,
) -> ReadingRule {
    let keeps_running_work = false;
    ReadingRule {
        condition,
        shows,
        reason,
        class,
        severity,
        ends,
        keeps_running_work,
        message,
        action,
    }
}

impl ReadingRule {
    const fn keeping(self) -> Self {
        Self { keeps_running_work: true, ..self }
    }
}
