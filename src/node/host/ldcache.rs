//! `/etc/ld.so.cache`, which knows libraries that lie where no distribution puts them.
//!
//! The format is glibc's own (`elf/cache.c`, `sysdeps/generic/dl-cache.h`), version 1.1, little-endian.

const MAGIC: &[u8] = b"glibc-ld.so.cache1.1";
const HEADER: usize = 48;
const ENTRY: usize = 24;

/// Marks a library of glibc for 64-bit programs of this architecture.
const THIS_ARCHITECTURE: Option<u32> = if cfg!(target_arch = "x86_64") {
    Some(0x0303)
} else if cfg!(target_arch = "aarch64") {
    Some(0x0a03)
} else {
    None
};

/// Paths of the libraries for this architecture whose name begins with `prefix`, in the order of the
/// cache; none if the cache is not understood.
pub(super) fn paths(cache: &[u8], prefix: &str) -> Vec<String> {
    // It may follow the older format in the same file. Offsets of strings count from here.
    let start = cache.windows(MAGIC.len()).position(|window| window == MAGIC);
    let Some(cache) = start.map(|start| &cache[start..]) else { return Vec::new() };
    let count = number(cache, 20).unwrap_or(0);
    let entries = cache.get(HEADER..).unwrap_or_default().chunks_exact(ENTRY);
    let ours = entries.take(count).filter(|entry| {
        THIS_ARCHITECTURE.is_some_and(|flags| number(entry, 0) == usize::try_from(flags).ok())
    });
    let named = ours
        .filter(|entry| text(cache, number(entry, 4)).is_some_and(|name| name.starts_with(prefix)));
    named.filter_map(|entry| text(cache, number(entry, 8))).map(str::to_owned).collect()
}

fn number(bytes: &[u8], at: usize) -> Option<usize> {
    let field = bytes.get(at..at.checked_add(4)?)?;
    usize::try_from(u32::from_le_bytes(field.try_into().ok()?)).ok()
}

/// The string that begins there, up to its null byte.
fn text(cache: &[u8], at: Option<usize>) -> Option<&str> {
    let rest = cache.get(at?..)?;
    let end = rest.iter().position(|&byte| byte == 0)?;
    str::from_utf8(&rest[..end]).ok()
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A cache with these libraries of this architecture, after the header of an older format.
    pub(in super::super) fn cache(libraries: &[(&str, &str)]) -> Vec<u8> {
        let flags = THIS_ARCHITECTURE.unwrap_or(0);
        let entries: Vec<_> = libraries.iter().map(|&(name, path)| (flags, name, path)).collect();
        cache_of(&entries)
    }

    fn cache_of(entries: &[(u32, &str, &str)]) -> Vec<u8> {
        let offset = |at: usize| u32::try_from(at).unwrap().to_le_bytes();
        let (mut table, mut strings) = (Vec::new(), Vec::new());
        let base = HEADER + entries.len() * ENTRY;
        for (flags, name, path) in entries {
            table.extend(flags.to_le_bytes());
            for text in [name, path] {
                table.extend(offset(base + strings.len()));
                strings.extend([text.as_bytes(), b"\0"].concat());
            }
            table.extend([0; 12]);
        }
        let count = offset(entries.len());
        [
            b"ld.so-1.7.0\0\0\0\0\0",
            MAGIC,
            &count,
            &offset(strings.len()),
            &[0; 20],
            &table,
            &strings,
        ]
        .concat()
    }

    #[test]
    fn lists_libraries_of_this_architecture_by_name() {
        let cache = cache_of(&[
            (THIS_ARCHITECTURE.unwrap(), "libcuda.so.1", "/opt/driver/lib/libcuda.so.1"),
            (0x0003, "libcuda.so.1", "/opt/driver/lib32/libcuda.so.1"),
            (THIS_ARCHITECTURE.unwrap(), "libc.so.6", "/lib/libc.so.6"),
        ]);
        assert_eq!(paths(&cache, "libcuda.so"), ["/opt/driver/lib/libcuda.so.1"]);
    }

    proptest! {
        #[test]
        fn takes_anything(mut bytes: Vec<u8>, count: u32, cut in 0usize..200, flip in 16usize..200) {
            paths(&bytes, "");
            bytes.extend(MAGIC);
            bytes.extend(count.to_le_bytes());
            paths(&bytes, "");
            let mut broken = cache(&[("libcuda.so.1", "/a/libcuda.so.1")]);
            if let Some(byte) = broken.get_mut(flip) {
                *byte ^= 0xff;
            }
            broken.truncate(cut);
            paths(&broken, "");
        }
    }
}
