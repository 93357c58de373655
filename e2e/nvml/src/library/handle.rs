//! Handles: numbers that say what they stand for, so that a wrong one is noticed and never followed.

/// A handle as programs hold it, whatever its C type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Handle(pub(crate) usize);

/// What a handle stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Gpu = 1,
    Mig = 2,
    GpuInstance = 3,
    ComputeInstance = 4,
    EventSet = 5,
    Sample = 6,
}

/// A handle, opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Target {
    pub(crate) kind: Kind,
    pub(crate) gpu: usize,
    /// Serial of the instance, number of the event set or sample; 0 for a GPU.
    pub(crate) serial: u32,
}

/// In the highest 16 bits, where no pointer of a program has anything like it.
const MAGIC: usize = 0x4b45;

impl Handle {
    /// From the top: magic, session (8 bits), kind and GPU (4 bits each), serial (32 bits).
    pub(crate) fn new(session: u8, kind: Kind, gpu: u32, serial: u32) -> Self {
        let kind = (kind as usize) << 36;
        let gpu = (gpu as usize & 0xf) << 32;
        Self(MAGIC << 48 | usize::from(session) << 40 | kind | gpu | serial as usize)
    }

    /// What it stands for, if it was given out in this session.
    pub(crate) fn open(self, session: u8) -> Option<Target> {
        if self.0 >> 40 != MAGIC << 8 | usize::from(session) {
            return None;
        }
        let kinds = [
            Kind::Gpu,
            Kind::Mig,
            Kind::GpuInstance,
            Kind::ComputeInstance,
            Kind::EventSet,
            Kind::Sample,
        ];
        let kind = kinds.into_iter().find(|kind| *kind as usize == self.0 >> 36 & 0xf)?;
        let serial = u32::try_from(self.0 & 0xffff_ffff).ok()?;
        Some(Target { kind, gpu: self.0 >> 32 & 0xf, serial })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_handle_opens_in_its_session_only() {
        let handle = Handle::new(7, Kind::GpuInstance, 15, u32::MAX);
        let target = Target { kind: Kind::GpuInstance, gpu: 15, serial: u32::MAX };
        assert_eq!([handle.open(7), handle.open(8), Handle(0).open(7)], [Some(target), None, None]);
    }
}
