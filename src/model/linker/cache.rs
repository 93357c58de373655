//! The dynamic linker's cache, `/etc/ld.so.cache`: where the libraries lie that programs ask for by name.
//!
//! The format is glibc's own (`elf/cache.c`, `sysdeps/generic/dl-cache.h`), version 1.1, little-endian:
//! a header, a table of entries in falling order of their names, strings, and after them extensions,
//! of which one names the subdirectories with libraries for better processors. It may follow a cache of
//! an older format in the same file, as it does up to glibc 2.31.

use std::{borrow::Cow, cmp::Ordering, collections::BTreeMap};

use super::order;

/// No cache is larger than this: real ones have a tenth of a megabyte.
pub const LARGEST: usize = 4 << 20;
/// Nor has one more entries.
const MOST_ENTRIES: usize = 1 << 16;

const MAGIC: &[u8] = b"glibc-ld.so.cache1.1";
const HEADER: usize = 48;
const ENTRY: usize = 24;
/// The header's byte of flags: the low bits say which end of numbers comes first.
const FLAGS: usize = 28;
const LITTLE_END_FIRST: u8 = 2;
const EXTENSION_OFFSET: usize = 32;
const EXTENSION_MAGIC: u32 = 0xeaa4_2174;
/// The extension that lists subdirectories, as offsets of strings.
const SUBDIRECTORIES: u32 = 1;
/// More than any processor has.
const MOST_SUBDIRECTORIES: usize = 64;
/// Longer strings are no paths.
const LONGEST_STRING: usize = 4096;

/// Marks a library of glibc for 64-bit programs of this architecture.
const THIS_ARCHITECTURE: Option<u32> = if cfg!(target_arch = "x86_64") {
    Some(0x0303)
} else if cfg!(target_arch = "aarch64") {
    Some(0x0a03)
} else {
    None
};

/// What a cache holds. Entries that were read stay in their order and as they are, those for other
/// architectures and processors included.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cache<'a> {
    entries: Vec<Entry<'a>>,
    subdirectories: Vec<&'a [u8]>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Entry<'a> {
    flags: u32,
    name: Cow<'a, [u8]>,
    path: Cow<'a, [u8]>,
    os_version: u32,
    /// Not zero for a library that needs a better processor.
    hardware: u64,
}

impl<'a> Cache<'a> {
    /// Reads a cache; `None` if it is none that the linker would take, or larger than any real one.
    /// Entries whose strings are not there are left out, as the linker leaves them.
    pub fn parse(bytes: &'a [u8]) -> Option<Self> {
        if bytes.len() > LARGEST {
            return None;
        }
        // Offsets of strings count from here, those of extensions from the file's beginning.
        let start = bytes.windows(MAGIC.len()).position(|window| window == MAGIC)?;
        let cache = &bytes[start..];
        if ![0, LITTLE_END_FIRST].contains(&(cache.get(FLAGS)? & 3)) {
            return None;
        }
        let count = number(cache, 20).filter(|&count| count <= MOST_ENTRIES)?;
        let table = cache.get(HEADER..HEADER + count * ENTRY)?;
        let entries = table.chunks_exact(ENTRY).filter_map(|entry| Entry::parse(entry, cache));
        let extension = number(cache, EXTENSION_OFFSET).filter(|&offset| offset != 0);
        let subdirectories = extension.and_then(|start| subdirectories(bytes, start, cache));
        Some(Self {
            entries: entries.collect(),
            subdirectories: subdirectories.unwrap_or_default(),
        })
    }

    /// Names and paths of the libraries for this architecture and any processor, in the cache's order.
    pub fn libraries(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        let plain = self.entries.iter().filter(|entry| entry.is_plain());
        plain.map(|entry| (&*entry.name, &*entry.path))
    }

    /// Has a name lead to a path, unless it does already; before whatever else it leads to. Says
    /// whether that changed anything. On an architecture that no driver is for, nothing does.
    pub fn add(&mut self, name: &str, path: &str) -> bool {
        let group = self.group(name);
        let known = self.entries[group].iter();
        let known =
            known.filter(|entry| entry.is_plain()).any(|entry| *entry.path == *path.as_bytes());
        !known && self.insert(name, path)
    }

    /// The same, and moves it before the others if it was behind them.
    pub fn prefer(&mut self, name: &str, path: &str) -> bool {
        let group = self.group(name);
        let is_it = |entry: &Entry<'_>| entry.is_plain() && *entry.path == *path.as_bytes();
        let first = self.entries[group.clone()].iter().find(|entry| entry.is_plain());
        if first.is_some_and(is_it) {
            return false;
        }
        let mut at = 0;
        self.entries.retain(|entry| {
            at += 1;
            !(group.contains(&(at - 1)) && is_it(entry))
        });
        self.insert(name, path)
    }

    /// The file; `None` if it would be larger than any real one.
    pub fn encode(&self) -> Option<Vec<u8>> {
        let mut strings = Strings::new(HEADER + self.entries.len() * ENTRY);
        let mut table = Vec::with_capacity(self.entries.len() * ENTRY);
        for entry in &self.entries {
            table.extend(entry.flags.to_le_bytes());
            table.extend(strings.offset(&entry.name)?.to_le_bytes());
            table.extend(strings.offset(&entry.path)?.to_le_bytes());
            table.extend(entry.os_version.to_le_bytes());
            table.extend(entry.hardware.to_le_bytes());
        }
        let subdirectories = self.subdirectories.iter().map(|name| strings.offset(name));
        let subdirectories: Vec<u32> = subdirectories.collect::<Option<_>>()?;
        let length = strings.bytes.len();
        let mut file = MAGIC.to_vec();
        file.extend(small(self.entries.len())?.to_le_bytes());
        file.extend(small(length)?.to_le_bytes());
        file.extend([LITTLE_END_FIRST, 0, 0, 0]);
        file.resize(HEADER, 0);
        file.extend(table);
        file.extend(strings.bytes);
        if !subdirectories.is_empty() {
            append_extension(&mut file, &subdirectories)?;
        }
        (file.len() <= LARGEST).then_some(file)
    }

    /// The entries that the linker takes for a name's: it finds them by the order alone.
    fn group(&self, name: &str) -> std::ops::Range<usize> {
        let compared = |entry: &Entry<'_>| order(&entry.name, name.as_bytes());
        let start = self.entries.partition_point(|entry| compared(entry) == Ordering::Greater);
        let after = self.entries[start..].iter();
        let length = after.take_while(|entry| compared(entry) == Ordering::Equal).count();
        start..start + length
    }

    /// Within the entries of a name, those with higher flags come first, and of the same flags those
    /// for better processors: the linker stops at the first that is for any.
    fn insert(&mut self, name: &str, path: &str) -> bool {
        let Some(flags) = THIS_ARCHITECTURE else { return false };
        if self.entries.len() >= MOST_ENTRIES {
            return false;
        }
        let group = self.group(name);
        let before = |entry: &&Entry<'_>| {
            entry.flags > flags || (entry.flags == flags && entry.hardware != 0)
        };
        let at = group.start + self.entries[group].iter().take_while(before).count();
        let [name, path] = [name, path].map(|text| Cow::Owned(text.as_bytes().to_owned()));
        self.entries.insert(at, Entry { flags, name, path, os_version: 0, hardware: 0 });
        true
    }
}

impl<'a> Entry<'a> {
    fn parse(bytes: &[u8], cache: &'a [u8]) -> Option<Self> {
        let field = |at| u32_at(bytes, at);
        let low = u64::from(field(16)?);
        Some(Self {
            flags: field(0)?,
            name: Cow::Borrowed(text(cache, number(bytes, 4)?)?),
            path: Cow::Borrowed(text(cache, number(bytes, 8)?)?),
            os_version: field(12)?,
            hardware: u64::from(field(20)?) << 32 | low,
        })
    }

    fn is_plain(&self) -> bool {
        Some(self.flags) == THIS_ARCHITECTURE && self.hardware == 0
    }
}

/// Strings behind the table, each once.
struct Strings<'a> {
    start: usize,
    bytes: Vec<u8>,
    offsets: BTreeMap<&'a [u8], u32>,
}

impl<'a> Strings<'a> {
    fn new(start: usize) -> Self {
        Self { start, bytes: Vec::new(), offsets: BTreeMap::new() }
    }

    fn offset(&mut self, text: &'a [u8]) -> Option<u32> {
        if let Some(&offset) = self.offsets.get(text) {
            return Some(offset);
        }
        let offset = small(self.start + self.bytes.len())?;
        self.bytes.extend(text);
        self.bytes.push(0);
        self.offsets.insert(text, offset);
        Some(offset)
    }
}

/// The subdirectories that entries refer to by number; `None` if none are named, and then the linker
/// passes over such entries.
fn subdirectories<'a>(file: &[u8], start: usize, cache: &'a [u8]) -> Option<Vec<&'a [u8]>> {
    let extension = file.get(start..)?;
    if u32_at(extension, 0)? != EXTENSION_MAGIC {
        return None;
    }
    let count = number(extension, 4)?;
    // There are two kinds, each at most once.
    let mut sections = extension.get(8..)?.chunks_exact(16).take(count.min(16));
    let section = sections.find(|section| u32_at(section, 0) == Some(SUBDIRECTORIES))?;
    let (offset, size) = (number(section, 8)?, number(section, 12)?);
    let offsets = file.get(offset..offset.checked_add(size)?)?.chunks_exact(4);
    if offsets.len() > MOST_SUBDIRECTORIES {
        return None;
    }
    // The entries count on every one of them.
    offsets.map(|offset| text(cache, number(offset, 0)?)).collect()
}

fn append_extension(file: &mut Vec<u8>, subdirectories: &[u32]) -> Option<()> {
    const WORD: usize = 4;
    file.resize(file.len().next_multiple_of(WORD), 0);
    let start = file.len();
    let list = start + 6 * WORD;
    let size = subdirectories.len() * WORD;
    for word in [EXTENSION_MAGIC, 1, SUBDIRECTORIES, 0, small(list)?, small(size)?] {
        file.extend(word.to_le_bytes());
    }
    file.extend(subdirectories.iter().flat_map(|offset| offset.to_le_bytes()));
    file[EXTENSION_OFFSET..EXTENSION_OFFSET + WORD].copy_from_slice(&small(start)?.to_le_bytes());
    Some(())
}

/// A number that stands in a file of bounded size; `None` if the file would be larger.
fn small(number: usize) -> Option<u32> {
    u32::try_from(number).ok().filter(|_| number <= LARGEST)
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    let field = bytes.get(at..at.checked_add(4)?)?;
    Some(u32::from_le_bytes(field.try_into().ok()?))
}

fn number(bytes: &[u8], at: usize) -> Option<usize> {
    usize::try_from(u32_at(bytes, at)?).ok()
}

/// The string that begins there, up to its null byte.
fn text(cache: &[u8], at: usize) -> Option<&[u8]> {
    let rest = cache.get(at..)?;
    let rest = &rest[..rest.len().min(LONGEST_STRING)];
    let end = rest.iter().position(|&byte| byte == 0)?;
    Some(&rest[..end])
}
