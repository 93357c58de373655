use proptest::prelude::*;

use super::{
    cache::Cache,
    elf::{Elf, note},
    *,
};
use crate::model::fixtures::libraries::{library_with_section, shared_library};

const NATIVE: u32 = if cfg!(target_arch = "aarch64") { 0x0a03 } else { 0x0303 };
const I386: u32 = 0x0003;
/// The hardware word of a library in the first subdirectory of the extension.
const FIRST_SUBDIRECTORY: u64 = 1 << 62;

type Row<'a> = (u32, &'a str, &'a str, u64);

/// A file of these entries, as ldconfig orders it, with these subdirectories.
fn file(entries: &[Row<'_>], subdirectories: &[&str]) -> Vec<u8> {
    let offset = |at: usize| u32::try_from(at).unwrap().to_le_bytes();
    let (mut table, mut strings) = (Vec::new(), Vec::new());
    let base = 48 + entries.len() * 24;
    let mut string = |text: &str| {
        let at = offset(base + strings.len());
        strings.extend([text.as_bytes(), b"\0"].concat());
        at
    };
    for (flags, name, path, hardware) in entries {
        table.extend([flags.to_le_bytes(), string(name), string(path), [0; 4]].concat());
        table.extend(hardware.to_le_bytes());
    }
    let names: Vec<_> = subdirectories.iter().flat_map(|name| string(name)).collect();
    strings.resize(strings.len().next_multiple_of(4), 0);
    let extension = base + strings.len();
    let magic = 0xeaa4_2174_u32.to_le_bytes();
    let list = extension + 8 + 2 * 16;
    let words = [2, 0, 0, list, 0, 1, 0, list, names.len()].map(offset).concat();
    [
        &b"glibc-ld.so.cache1.1"[..],
        &offset(entries.len()),
        &offset(strings.len()),
        &[2, 0, 0, 0],
        &offset(extension),
        &[0; 12],
        &table,
        &strings,
        &magic,
        &words,
        &names,
    ]
    .concat()
}

/// What a cache says, through a file and back.
fn lines(cache: &Cache<'_>) -> Vec<String> {
    let bytes = cache.encode().unwrap();
    let again = Cache::parse(&bytes).unwrap();
    assert_eq!(&again, cache);
    let text = |bytes| str::from_utf8(bytes).unwrap().to_owned();
    again.libraries().map(|(name, path)| format!("{} {}", text(name), text(path))).collect()
}

#[test]
fn names_are_ordered_as_the_linker_searches_them() {
    // As `ldconfig -p` of Debian lists them, from the end.
    let rising = [
        "ld-linux-x86-64.so.2",
        "libX11-xcb.so.1",
        "libX11.so.6",
        "libc.so.6",
        "libcuda.so",
        "libcuda.so.1",
        "libcuda.so.2",
        "libcuda.so.10",
        "libcuda.so.580.95.5",
        "libcudart.so.12",
        "libz.so",
        "libz.so.1",
        "libzstd.so.1",
        "libz3.so.4",
    ];
    for pair in rising.windows(2) {
        assert_eq!(order(pair[0].as_bytes(), pair[1].as_bytes()), Ordering::Less, "{pair:?}");
        assert_eq!(order(pair[1].as_bytes(), pair[0].as_bytes()), Ordering::Greater, "{pair:?}");
    }
    assert_eq!(order(b"libcuda.so.01", b"libcuda.so.1"), Ordering::Equal);
    let wrapped = i64::from(u32::MAX) + 2;
    let wrapped = format!("libcuda.so.{wrapped}");
    assert_eq!(order(wrapped.as_bytes(), b"libcuda.so.1"), Ordering::Equal, "as C overflows");
}

#[test]
fn what_is_added_stands_where_the_linker_looks_and_the_rest_stays() {
    let bytes = file(
        &[
            (NATIVE, "libz.so.1", "/lib/libz.so.1", 0),
            (NATIVE, "libcuda.so.1", "/lib/v3/libcuda.so.1", FIRST_SUBDIRECTORY),
            (NATIVE, "libcuda.so.1", "/old/libcuda.so.1", 0),
            (I386, "libcuda.so.1", "/lib32/libcuda.so.1", 0),
            (NATIVE, "libc.so.6", "/lib/libc.so.6", 0),
        ],
        &["x86-64-v2", "x86-64-v3"],
    );
    let mut cache = Cache::parse(&bytes).unwrap();
    assert!(cache.add("libcuda.so.1", "/new/libcuda.so.1"));
    assert!(cache.add("libzzz.so", "/new/libzzz.so"));
    assert!(cache.add("liba.so", "/new/liba.so"));
    assert!(!cache.add("libc.so.6", "/lib/libc.so.6"));
    let expected = file(
        &[
            (NATIVE, "libzzz.so", "/new/libzzz.so", 0),
            (NATIVE, "libz.so.1", "/lib/libz.so.1", 0),
            (NATIVE, "libcuda.so.1", "/lib/v3/libcuda.so.1", FIRST_SUBDIRECTORY),
            (NATIVE, "libcuda.so.1", "/new/libcuda.so.1", 0),
            (NATIVE, "libcuda.so.1", "/old/libcuda.so.1", 0),
            (I386, "libcuda.so.1", "/lib32/libcuda.so.1", 0),
            (NATIVE, "libc.so.6", "/lib/libc.so.6", 0),
            (NATIVE, "liba.so", "/new/liba.so", 0),
        ],
        &["x86-64-v2", "x86-64-v3"],
    );
    assert_eq!(cache, Cache::parse(&expected).unwrap());
    let encoded = cache.encode().unwrap();
    assert_eq!(Cache::parse(&encoded).unwrap(), cache);
}

#[test]
fn what_is_known_keeps_its_place_unless_it_is_preferred() {
    let mut cache = Cache::default();
    for path in ["/c/libcuda.so.1", "/b/libcuda.so.1", "/a/libcuda.so.1"] {
        assert!(cache.add("libcuda.so.1", path));
    }
    assert!(!cache.add("libcuda.so.1", "/c/libcuda.so.1"));
    let before = ["a", "b", "c"].map(|dir| format!("libcuda.so.1 /{dir}/libcuda.so.1"));
    assert_eq!(lines(&cache), before);
    assert!(cache.prefer("libcuda.so.1", "/c/libcuda.so.1"));
    assert!(!cache.prefer("libcuda.so.1", "/c/libcuda.so.1"));
    let after = ["c", "a", "b"].map(|dir| format!("libcuda.so.1 /{dir}/libcuda.so.1"));
    assert_eq!(lines(&cache), after);
}

#[test]
fn libraries_of_other_architectures_and_processors_are_not_listed() {
    let bytes = file(
        &[
            (NATIVE, "libcuda.so.1", "/opt/lib/libcuda.so.1", 0),
            (NATIVE, "libcuda.so.1", "/opt/lib/haswell/libcuda.so.1", 1),
            (I386, "libcuda.so.1", "/opt/lib32/libcuda.so.1", 0),
        ],
        &[],
    );
    let cache = Cache::parse(&bytes).unwrap();
    let listed: Vec<_> = cache.libraries().collect();
    assert_eq!(listed, [(&b"libcuda.so.1"[..], &b"/opt/lib/libcuda.so.1"[..])]);
}

/// As ldconfig wrote it up to glibc 2.31: strings count from the newer cache's beginning, extensions from
/// the file's.
#[test]
fn a_cache_behind_one_of_the_older_format_is_the_same() {
    let rows = [
        (NATIVE, "libcuda.so.1", "/a/libcuda.so.1", FIRST_SUBDIRECTORY),
        (NATIVE, "libcuda.so.1", "/b/libcuda.so.1", 0),
    ];
    let new = file(&rows, &["x86-64-v3"]);
    let older = b"ld.so-1.7.0\0\0\0\0\0";
    let shift = u32::try_from(older.len()).unwrap();
    let mut both = [&older[..], &new].concat();
    let extension = usize::from(new[32]) + older.len();
    for at in [older.len() + 32, extension + 8 + 8, extension + 24 + 8] {
        let offset: [u8; 4] = both[at..at + 4].try_into().unwrap();
        both[at..at + 4].copy_from_slice(&(u32::from_le_bytes(offset) + shift).to_le_bytes());
    }
    let cache = Cache::parse(&both).unwrap();
    assert_eq!(cache, Cache::parse(&new).unwrap());
    assert_ne!(cache, Cache::parse(&file(&rows, &[])).unwrap());
}

#[test]
fn an_extension_that_is_none_is_as_none_to_the_linker() {
    let rows = [(NATIVE, "liba.so", "/a", 0), (NATIVE, "libb.so", "/b", FIRST_SUBDIRECTORY)];
    let good = file(&rows, &["x86-64-v3"]);
    let without = file(&rows, &[]);
    let none = Cache::parse(&without).unwrap();
    let extension = usize::from(good[32]);
    // Elsewhere, of another kind, far too many of them, a name that is not there.
    for (at, byte) in
        [(32, 1), (35, 0xff), (extension, 0), (good.len() - 5, 1), (good.len() - 1, 1)]
    {
        let mut bytes = good.clone();
        bytes[at] = byte;
        assert_eq!(Cache::parse(&bytes).unwrap(), none, "{at}");
    }
}

#[test]
fn a_file_that_the_linker_would_not_take_is_none() {
    let good = file(&[(NATIVE, "liba.so", "/a", 0)], &["x86-64-v3"]);
    let spoilt = |at: usize, byte: u8| {
        let mut bytes = good.clone();
        bytes[at] = byte;
        bytes
    };
    for bytes in [
        Vec::new(),
        b"ld.so-1.7.0\0\0\0\0\0".to_vec(),
        spoilt(0, b'G'),
        // Four thousand million entries, big-endian.
        spoilt(23, 0xff),
        spoilt(28, 3),
        good[..60].to_vec(),
    ] {
        assert_eq!(Cache::parse(&bytes), None, "{bytes:?}");
    }
    // A string that is not there is its own entry's loss.
    assert_eq!(Cache::parse(&spoilt(48 + 7, 0xff)).unwrap().libraries().count(), 0);
    let mut large = good;
    large.resize(cache::LARGEST + 1, 0);
    assert_eq!(Cache::parse(&large), None);
}

#[test]
fn a_file_that_would_grow_beyond_bounds_is_none() {
    // Entries that all point into one long string, each at another place of it.
    let count = 5000u32;
    let mut bytes = b"glibc-ld.so.cache1.1".to_vec();
    bytes.extend(count.to_le_bytes());
    bytes.resize(48, 0);
    let strings = 48 + 24 * count;
    for n in 0..count {
        let words = [NATIVE, strings + n, strings + n, 0, 0, 0];
        bytes.extend(words.iter().flat_map(|word| word.to_le_bytes()));
    }
    bytes.extend(vec![b'a'; 5000]);
    bytes.push(0);
    let cache = Cache::parse(&bytes).unwrap();
    assert!(cache.libraries().count() > 4000);
    assert_eq!(cache.encode(), None);
}

type Reader<'a> = Box<dyn Fn(&mut [u8], u64) -> std::io::Result<usize> + 'a>;

fn elf(bytes: &[u8]) -> Option<Elf<Reader<'_>>> {
    let read: Reader<'_> = Box::new(|buffer, offset| {
        let rest = bytes.get(usize::try_from(offset).unwrap()..).unwrap_or_default();
        // A reader may give less than was asked for.
        let length = buffer.len().min(rest.len()).min(7);
        buffer[..length].copy_from_slice(&rest[..length]);
        Ok(length)
    });
    Elf::new(read).unwrap()
}

#[test]
fn a_soname_is_a_file_name() {
    let soname = |bytes: &[u8]| elf(bytes).and_then(|elf| elf.soname().unwrap());
    assert_eq!(soname(&shared_library("libcuda.so.1")).as_deref(), Some("libcuda.so.1"));
    for name in ["", ".", "..", "../../etc/passwd", "/etc/passwd", &"x".repeat(300)] {
        assert_eq!(soname(&shared_library(name)), None, "{name}");
    }
    assert_eq!(soname(b""), None);
}

#[test]
fn only_libraries_of_this_architecture_are_native() {
    let library = shared_library("libcuda.so.1");
    assert!(elf(&library).unwrap().is_native_library());
    for (at, byte) in [(16, 2), (18, 3)] {
        let mut other = library.clone();
        other[at] = byte;
        assert!(!elf(&other).unwrap().is_native_library());
    }
    let mut small = library;
    small[4] = 1;
    assert!(elf(&small).is_none(), "32 bits");
}

#[test]
fn a_section_is_found_by_its_name() {
    let library = library_with_section("libcuda.so.1", ".note.a", b"content");
    let section = |name| elf(&library).unwrap().section(name).unwrap();
    assert_eq!(section(".note.a").as_deref(), Some(&b"content"[..]));
    assert_eq!(section(".note.b"), None);
    assert_eq!(elf(&shared_library("libcuda.so.1")).unwrap().section(".note.a").unwrap(), None);
}

#[test]
fn a_note_is_read_if_its_owner_wrote_it() {
    let section = |owner: &str, text: &str| {
        let mut bytes = Vec::new();
        for size in [owner.len() + 1, text.len() + 2, 7] {
            bytes.extend(u32::try_from(size).unwrap().to_le_bytes());
        }
        for part in [[owner, "\0"].concat(), [text, "\0\0"].concat()] {
            bytes.extend(part.into_bytes());
            bytes.resize(bytes.len().next_multiple_of(4), 0);
        }
        bytes
    };
    let good = section("somebody", "a text");
    assert_eq!(note(&good, "somebody"), Some(&b"a text"[..]));
    assert_eq!(note(&good, "somebody else"), None);
    assert_eq!(note(&good, "some"), None);
    let (sizes, rest) = good.split_at(8);
    let too_long = [&sizes[..4], &[0xff; 4], rest].concat();
    for broken in [&good[..30], &good[..13], &good[..7], &[], &[0xff; 40], &too_long] {
        assert_eq!(note(broken, "somebody"), None, "{broken:?}");
    }
}

fn spoil(bytes: &mut Vec<u8>, changes: Vec<(usize, u8)>, end: usize) {
    for (at, byte) in changes {
        let at = at % bytes.len();
        bytes[at] = byte;
    }
    bytes.truncate(end);
}

proptest! {
    #[test]
    fn any_file_is_read_as_an_elf_file(
        changes: Vec<(usize, u8)>,
        end in 0usize..500,
        garbage: Vec<u8>,
    ) {
        note(&garbage, "a");
        let mut bytes = library_with_section("libcuda.so.1", ".note.a", b"content");
        spoil(&mut bytes, changes, end);
        for elf in [elf(&bytes), elf(&garbage)].into_iter().flatten() {
            elf.is_native_library();
            elf.soname().unwrap();
            elf.section(".note.a").unwrap();
        }
    }

    #[test]
    fn any_file_is_read_as_a_cache_and_can_be_added_to(
        names in prop::collection::vec("[a-z0-9.]{0,6}", 0..8),
        hardware: u64,
        changes in prop::collection::vec((0usize..400, any::<u8>()), 0..8),
        end in 0usize..500,
        garbage: Vec<u8>,
        added in "lib[a-c0-9]{0,3}\\.so",
    ) {
        let rows: Vec<Row<'_>> = names.iter().map(|name| (NATIVE, &**name, &**name, hardware)).collect();
        let mut bytes = file(&rows, &["a", "b"]);
        spoil(&mut bytes, changes, end);
        for bytes in [&bytes, &garbage, &[b"glibc-ld.so.cache1.1".to_vec(), garbage.clone()].concat()] {
            let Some(mut cache) = Cache::parse(bytes) else { continue };
            cache.add(&added, "/p");
            cache.prefer(&added, "/q");
            let encoded = cache.encode().unwrap();
            prop_assert_eq!(Cache::parse(&encoded).unwrap(), cache);
        }
    }

    /// What is added to a cache that is in order leaves it in order, so that every name is found.
    #[test]
    fn order_is_kept(names in prop::collection::vec("lib[a-c0-9.]{0,5}", 0..20)) {
        let mut cache = Cache::default();
        for name in &names {
            cache.add(name, "/p");
            cache.prefer(name, "/q");
            prop_assert!(!cache.add(name, "/p"));
            prop_assert!(!cache.prefer(name, "/q"));
        }
        let listed: Vec<_> = cache.libraries().map(|(name, _)| name.to_owned()).collect();
        prop_assert!(listed.windows(2).all(|pair| order(&pair[0], &pair[1]) != Ordering::Less));
    }
}
