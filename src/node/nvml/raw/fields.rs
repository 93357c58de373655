//! Field values: many readings in one call.

use nvml_wrapper::error::{NvmlError, nvml_sym, nvml_try};
use nvml_wrapper_sys::bindings as sys;

use super::{Error, On};

impl On<'_> {
    /// Values of the fields with these ids, each in its scope, in their order.
    pub(in crate::node::nvml) fn field_values(
        &self,
        fields: &[(u32, u32)],
    ) -> Result<Vec<Result<u64, Error>>, Error> {
        let mut values: Vec<sys::nvmlFieldValue_t> = vec![zeroed!(); fields.len()];
        for (value, &(id, scope)) in values.iter_mut().zip(fields) {
            (value.fieldId, value.scopeId) = (id, scope);
        }
        let count = i32::try_from(values.len()).unwrap_or_default();
        let buffer = values.as_mut_ptr();
        call!(self.nvml, self.gpu(), nvmlDeviceGetFieldValues(self.handle.0, count, buffer))?;
        let failed = |source| Error::new("nvmlDeviceGetFieldValues", self.gpu(), source);
        let read = |value: &sys::nvmlFieldValue_t| {
            nvml_try(value.nvmlReturn)
                .and_then(|()| number(value).ok_or(NvmlError::NoData))
                .map_err(failed)
        };
        Ok(values.iter().map(read).collect())
    }
}

/// The value of a field; `None` for one that is negative or a fraction, as none is that is asked for.
fn number(field: &sys::nvmlFieldValue_t) -> Option<u64> {
    // SAFETY: all of the union was zeroed, and any bits are a number.
    let bytes = unsafe { field.value.ullVal }.to_ne_bytes();
    let int = bytes.first_chunk().copied();
    match field.valueType {
        sys::nvmlValueType_enum_NVML_VALUE_TYPE_UNSIGNED_INT => {
            Some(u32::from_ne_bytes(int?).into())
        }
        sys::nvmlValueType_enum_NVML_VALUE_TYPE_SIGNED_INT => {
            i32::from_ne_bytes(int?).try_into().ok()
        }
        sys::nvmlValueType_enum_NVML_VALUE_TYPE_UNSIGNED_LONG
        | sys::nvmlValueType_enum_NVML_VALUE_TYPE_UNSIGNED_LONG_LONG => {
            Some(u64::from_ne_bytes(bytes))
        }
        sys::nvmlValueType_enum_NVML_VALUE_TYPE_SIGNED_LONG_LONG => {
            i64::from_ne_bytes(bytes).try_into().ok()
        }
        sys::nvmlValueType_enum_NVML_VALUE_TYPE_UNSIGNED_SHORT => {
            Some(u16::from_ne_bytes(*bytes.first_chunk()?).into())
        }
        _ => None,
    }
}
