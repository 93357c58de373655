//! Field values: what a GPU answers to many questions in one call.

use std::collections::BTreeMap;

use nvml_wrapper::FieldIdScheme;
use nvml_wrapper_sys::bindings::field_id::{
    NVML_FI_DEV_NVLINK_THROUGHPUT_DATA_RX, NVML_FI_DEV_NVLINK_THROUGHPUT_DATA_TX,
};

use super::{Error, Nvml, raw::On};

/// The scope of NVLink throughput that is all links.
const ALL_LINKS: u32 = u32::MAX;

/// The fields that a GPU answered.
#[derive(Debug, Default)]
pub(super) struct Fields {
    values: BTreeMap<u32, u64>,
    /// The first answer that says something of the GPU: NVML answers for each field, also that a GPU is
    /// lost.
    pub(super) failure: Option<Error>,
}

impl On<'_> {
    /// Asks for the fields with these ids (`NVML_FI_…`).
    pub(super) fn fields(&self, ids: &[u32]) -> Result<Fields, Error> {
        let asked: Vec<(u32, u32)> = ids.iter().map(|&id| (id, scope(id))).collect();
        let mut fields = Fields::default();
        for (&id, answer) in ids.iter().zip(self.field_values(&asked)?) {
            match answer {
                Ok(value) => {
                    fields.values.insert(id, value);
                }
                // A driver has no better word than "unknown" for some fields that a GPU lacks.
                Err(error) if error.no_evidence() || error.unknown() => {}
                Err(error) => fields.failure = fields.failure.or(Some(error)),
            }
        }
        Ok(fields)
    }
}

impl Fields {
    pub(super) fn get(&self, id: u32) -> Option<u64> {
        self.values.get(&id).copied()
    }

    pub(super) fn flag(&self, id: u32) -> Option<bool> {
        self.get(id).map(|value| value != 0)
    }
}

impl Nvml {
    /// Ids of the times that hardware slowed clocks down for heat and for a power brake. Driver 580.82
    /// gave them the numbers of others: <https://docs.nvidia.com/deploy/nvml-api/known-issues.html>.
    pub(super) fn slowdown_fields(&self) -> (u32, u32) {
        match self.library.field_id_scheme() {
            FieldIdScheme::V12 => (252, 253),
            FieldIdScheme::V13Update1 => (270, 271),
        }
    }
}

fn scope(id: u32) -> u32 {
    match id {
        NVML_FI_DEV_NVLINK_THROUGHPUT_DATA_TX | NVML_FI_DEV_NVLINK_THROUGHPUT_DATA_RX => ALL_LINKS,
        _ => 0,
    }
}
