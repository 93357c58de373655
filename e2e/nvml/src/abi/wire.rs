//! What crosses the C interface: pointers as Rust types that check them.
//!
//! Each type here is made by C alone, as an argument of an exported function. NVML's contract is that a
//! pointer is null or valid for what the function's documentation says of it, for as long as the call
//! lasts; every `unsafe` block of this file rests on that.

use std::{
    ffi::{CStr, c_char, c_int, c_uint},
    mem::{MaybeUninit, offset_of, size_of},
    ptr,
};

use nvml_wrapper_sys::bindings::{
    NVML_GPM_METRICS_GET_VERSION, nvmlFieldValue_t, nvmlGpmMetric_t,
    nvmlGpmMetricId_t_NVML_GPM_METRIC_MAX, nvmlGpmMetricsGet_t,
};

use crate::{
    code::Code,
    library::{Handle, Kind, Present, Session},
};

/// Where an answer goes.
pub(super) type Out<'a, T> = Option<&'a mut MaybeUninit<T>>;

/// Gives an answer.
pub(super) fn give<T>(out: Out<'_, T>, value: T) -> Result<(), Code> {
    out.ok_or(Code::INVALID_ARGUMENT)?.write(value);
    Ok(())
}

/// A handle of any type: what C calls `nvmlDevice_t` and so on.
#[derive(Clone, Copy)]
#[repr(transparent)]
pub(super) struct Opaque(*mut std::ffi::c_void);

impl Opaque {
    pub(super) fn handle(self) -> Handle {
        Handle(self.0.addr())
    }

    /// A handle for C.
    pub(super) fn new(handle: Handle) -> Self {
        Self(ptr::without_provenance_mut(handle.0))
    }

    /// The same as a field of one of NVML's structures.
    pub(super) fn cast<T>(self) -> *mut T {
        self.0.cast()
    }
}

impl Session {
    /// A GPU's handle.
    pub(super) fn gpu(&self, index: u32) -> Opaque {
        Opaque::new(Handle::new(self.number, Kind::Gpu, index, 0))
    }
}

impl Present<'_> {
    /// A handle of something on this GPU.
    pub(super) fn opaque(&self, kind: Kind, serial: u32) -> Opaque {
        Opaque::new(Handle::new(self.session.number, kind, self.gpu.facts.index, serial))
    }
}

/// A C string that the caller owns.
#[repr(transparent)]
pub(super) struct Text(*const c_char);

impl Text {
    pub(super) fn get(&self) -> Result<String, Code> {
        if self.0.is_null() {
            return Err(Code::INVALID_ARGUMENT);
        }
        // SAFETY: C passes a terminated string.
        let text = unsafe { CStr::from_ptr(self.0) };
        text.to_str().map(str::to_owned).or(Err(Code::INVALID_ARGUMENT))
    }
}

/// A caller's array, whose length another argument gives.
#[repr(transparent)]
pub(super) struct Array<T>(*mut T);

impl<T: Copy> Array<T> {
    /// Whether the caller only asks how many there are.
    pub(super) fn is_null(&self) -> bool {
        self.0.is_null()
    }

    /// Fills the front of the array, which the caller has made large enough.
    pub(super) fn fill(&self, values: &[T]) -> Result<(), Code> {
        if self.0.is_null() {
            return Err(Code::INVALID_ARGUMENT);
        }
        // SAFETY: C passes room for as many values; a caller's array does not overlap one of ours.
        unsafe { ptr::copy_nonoverlapping(values.as_ptr(), self.0, values.len()) };
        Ok(())
    }

    /// Fills an array whose room the count tells; a null array asks for the count alone.
    pub(super) fn answer(&self, count: Option<&mut c_uint>, values: &[T]) -> Result<(), Code> {
        let count = count.ok_or(Code::INVALID_ARGUMENT)?;
        let room = *count as usize;
        *count = c_uint::try_from(values.len()).or(Err(Code::UNKNOWN))?;
        if self.0.is_null() {
            return Ok(());
        }
        if room < values.len() {
            return Err(Code::INSUFFICIENT_SIZE);
        }
        self.fill(values)
    }
}

impl Array<c_char> {
    /// Writes a string and its end.
    pub(super) fn text(&self, room: c_uint, text: &str) -> Result<(), Code> {
        if self.0.is_null() {
            return Err(Code::INVALID_ARGUMENT);
        }
        if room as usize <= text.len() {
            return Err(Code::INSUFFICIENT_SIZE);
        }
        self.fill(&characters(text))
    }
}

/// A string's characters and its end.
fn characters(text: &str) -> Vec<c_char> {
    text.bytes().chain([0]).map(|byte| c_char::from_le_bytes([byte])).collect()
}

/// A string as a field of a structure; it is shorter than the field.
pub(super) fn field<const N: usize>(text: &str) -> [c_char; N] {
    let mut field = [0; N];
    for (place, character) in field.iter_mut().zip(characters(text)).take(N - 1) {
        *place = character;
    }
    field
}

/// The caller's field values, of which it has set the ids of field and scope.
#[repr(transparent)]
pub(super) struct Fields(*mut nvmlFieldValue_t);

impl Fields {
    /// Answers each by its ids, as many as the caller has.
    pub(super) fn answer(
        &self,
        count: c_int,
        answer: impl Fn(c_uint, c_uint) -> nvmlFieldValue_t,
    ) -> Result<(), Code> {
        let count = usize::try_from(count).or(Err(Code::INVALID_ARGUMENT))?;
        if self.0.is_null() || count == 0 {
            return Err(Code::INVALID_ARGUMENT);
        }
        for at in 0..count {
            // SAFETY: C passes as many values as it says.
            let place = unsafe { self.0.add(at) };
            // SAFETY: a value begins with both ids, which are set.
            let [field, scope] = unsafe { place.cast::<[c_uint; 2]>().read() };
            // SAFETY: as above; the value is the caller's to be written.
            unsafe { place.write(answer(field, scope)) };
        }
        Ok(())
    }
}

/// The caller's question for metrics: two samples, and the ids of metrics.
#[repr(transparent)]
pub(super) struct Metrics(*mut nvmlGpmMetricsGet_t);

/// How it begins.
#[derive(Clone, Copy)]
#[repr(C)]
struct MetricsHead {
    version: c_uint,
    count: c_uint,
    samples: [Opaque; 2],
}

impl Metrics {
    fn head(&self) -> Result<MetricsHead, Code> {
        if self.0.is_null() {
            return Err(Code::INVALID_ARGUMENT);
        }
        // SAFETY: the structure begins like that, and the caller has set all of it.
        let head = unsafe { self.0.cast::<MetricsHead>().read() };
        if head.version == NVML_GPM_METRICS_GET_VERSION {
            Ok(head)
        } else {
            Err(Code::ARGUMENT_VERSION_MISMATCH)
        }
    }

    /// The earlier and the later one.
    pub(super) fn samples(&self) -> Result<[Handle; 2], Code> {
        Ok(self.head()?.samples.map(Opaque::handle))
    }

    /// Answers each metric by its id.
    pub(super) fn answer(&self, answer: impl Fn(c_uint) -> nvmlGpmMetric_t) -> Result<(), Code> {
        let (count, room) = (self.head()?.count, nvmlGpmMetricId_t_NVML_GPM_METRIC_MAX);
        if count == 0 || count > room {
            return Err(Code::INVALID_ARGUMENT);
        }
        let first = self.0.wrapping_byte_add(offset_of!(nvmlGpmMetricsGet_t, metrics));
        for at in 0..count as usize {
            let place = first.cast::<nvmlGpmMetric_t>().wrapping_add(at);
            // SAFETY: as many metrics follow, of which the caller has set the ids, with which they begin.
            let id = unsafe { place.cast::<c_uint>().read() };
            // SAFETY: as above; the metric is the caller's to be written.
            unsafe { place.write(answer(id)) };
        }
        Ok(())
    }
}

/// A structure that begins with its version: its size, and the number of its layout in the highest byte.
#[repr(transparent)]
pub(super) struct Versioned(*mut c_uint);

/// The version word of a layout.
pub(super) fn version<T>(layout: u32) -> u32 {
    u32::try_from(size_of::<T>()).unwrap_or(u32::MAX) | layout << 24
}

impl Versioned {
    pub(super) fn version(&self) -> Result<u32, Code> {
        if self.0.is_null() {
            return Err(Code::INVALID_ARGUMENT);
        }
        // SAFETY: every such structure begins with its version, which the caller has set.
        Ok(unsafe { self.0.read() })
    }

    /// Writes the structure if the caller means this layout of it.
    pub(super) fn give<T: Copy>(&self, layout: u32, value: T) -> Result<(), Code> {
        self.give_as(version::<T>(layout), value)
    }

    /// The same where the version word is another than most structures have.
    pub(super) fn give_as<T: Copy>(&self, word: u32, value: T) -> Result<(), Code> {
        if self.version()? != word {
            return Err(Code::ARGUMENT_VERSION_MISMATCH);
        }
        // SAFETY: the version word says that the caller's structure is one of these.
        unsafe { self.0.cast::<T>().write(value) };
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use nvml_wrapper_sys::bindings::{
        nvmlComputeInstanceProfileInfo_v2_t, nvmlComputeInstanceProfileInfo_v3_t,
        nvmlGpuInstanceProfileInfo_v2_t, nvmlGpuInstanceProfileInfo_v3_t, nvmlMemory_v2_t,
    };

    use super::*;

    #[test]
    fn version_words_are_those_of_the_header() {
        let words = [
            version::<nvmlMemory_v2_t>(2),
            version::<nvmlGpuInstanceProfileInfo_v2_t>(2),
            version::<nvmlGpuInstanceProfileInfo_v3_t>(3),
            version::<nvmlComputeInstanceProfileInfo_v2_t>(2),
            version::<nvmlComputeInstanceProfileInfo_v3_t>(3),
        ];
        assert_eq!(words, [0x0200_0028, 0x0200_0098, 0x0300_0098, 0x0200_0088, 0x0300_008c]);
    }

    #[test]
    fn a_field_ends_within_itself() {
        assert_eq!(field::<4>("abcdef"), field::<4>("abc"));
    }
}
