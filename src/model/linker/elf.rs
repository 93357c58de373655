//! What an ELF file says of itself: whether it is a library for this machine, the name by which
//! programs look it up (`DT_SONAME`), and what stands in a named section.
//!
//! <https://refspecs.linuxfoundation.org/elf/gabi4+/contents.html>; 64-bit little-endian files only,
//! as drivers are for x86-64 and aarch64. Files are read in small pieces: some have 100 MB.

use std::io;

const HEADER: u64 = 64;
const PROGRAM_HEADER: usize = 56;
const SECTION_HEADER: usize = 64;
const DYNAMIC_ENTRY: usize = 16;
const SHARED_OBJECT: u64 = 3;
const PT_LOAD: u64 = 1;
const PT_DYNAMIC: u64 = 2;
const DT_NULL: u64 = 0;
const DT_STRTAB: u64 = 5;
const DT_SONAME: u64 = 14;
/// No real table is longer; a broken or hostile header may say anything.
const LONGEST_TABLE: u64 = 1 << 16;
const LONGEST_NAME: usize = 256;

/// What the header says of the machine that a file is for.
const THIS_MACHINE: Option<u64> = if cfg!(target_arch = "x86_64") {
    Some(62)
} else if cfg!(target_arch = "aarch64") {
    Some(183)
} else {
    None
};

/// An ELF file, of which parts are read when they are asked for.
pub struct Elf<R> {
    read: R,
    header: Vec<u8>,
}

impl<R: Fn(&mut [u8], u64) -> io::Result<usize>> Elf<R> {
    /// The file that `read` reads, into a buffer, from an offset on; `None` if it is no ELF file.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn new(read: R) -> io::Result<Option<Self>> {
        let header = read_exactly(&read, 0, HEADER)?;
        // Magic number, 64 bits, little end first.
        let header = header.filter(|header| header.starts_with(b"\x7fELF\x02\x01"));
        Ok(header.map(|header| Self { read, header }))
    }

    /// Whether it is a shared library for programs of this process's kind.
    pub fn is_native_library(&self) -> bool {
        let [kind, machine] = [16, 18].map(|at| number(&self.header, at, 2));
        kind == SHARED_OBJECT && THIS_MACHINE == Some(machine)
    }

    /// The library's SONAME, which is the name of a file; `None` if it has none.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn soname(&self) -> io::Result<Option<String>> {
        let Some(segments) = self.segments()? else { return Ok(None) };
        let Some(dynamic) = segments.iter().find(|segment| segment.kind == PT_DYNAMIC) else {
            return Ok(None);
        };
        let Some(entries) = self.bytes(dynamic.offset, dynamic.size)? else { return Ok(None) };
        let value = |tag| {
            let pairs = entries.chunks_exact(DYNAMIC_ENTRY);
            let pairs = pairs.map(|entry| (number(entry, 0, 8), number(entry, 8, 8)));
            let mut pairs = pairs.take_while(|&(found, _)| found != DT_NULL);
            pairs.find(|&(found, _)| found == tag).map(|(_, value)| value)
        };
        let (Some(strings), Some(name)) = (value(DT_STRTAB), value(DT_SONAME)) else {
            return Ok(None);
        };
        match strings.checked_add(name).and_then(|address| offset_of(&segments, address)) {
            Some(offset) => self.name_at(offset),
            None => Ok(None),
        }
    }

    /// What stands in the first section of this name; `None` if there is none.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn section(&self, name: &str) -> io::Result<Option<Vec<u8>>> {
        let offset = number(&self.header, 40, 8);
        let [entry, count, names] = [58, 60, 62].map(|at| number(&self.header, at, 2));
        if entry != SECTION_HEADER as u64 {
            return Ok(None);
        }
        let Some(table) = self.bytes(offset, entry * count)? else { return Ok(None) };
        let sections: Vec<_> = table.chunks_exact(SECTION_HEADER).collect();
        let names = usize::try_from(names).ok().and_then(|index| sections.get(index));
        let Some(names) = names else { return Ok(None) };
        let Some(names) = self.content(names)? else { return Ok(None) };
        let is_named = |section: &&&[u8]| {
            let at = usize::try_from(number(section, 0, 4)).unwrap_or(usize::MAX);
            names.get(at..).and_then(text) == Some(name.as_bytes())
        };
        sections.iter().find(is_named).map_or(Ok(None), |section| self.content(section))
    }

    fn content(&self, section: &[u8]) -> io::Result<Option<Vec<u8>>> {
        self.bytes(number(section, 24, 8), number(section, 32, 8))
    }

    fn segments(&self) -> io::Result<Option<Vec<Segment>>> {
        let offset = number(&self.header, 32, 8);
        let [entry, count] = [54, 56].map(|at| number(&self.header, at, 2));
        if entry != PROGRAM_HEADER as u64 {
            return Ok(None);
        }
        let table = self.bytes(offset, entry * count)?;
        Ok(table.map(|table| table.chunks_exact(PROGRAM_HEADER).map(segment).collect()))
    }

    fn name_at(&self, offset: u64) -> io::Result<Option<String>> {
        let mut buffer = [0; LONGEST_NAME];
        let length = fill(&self.read, &mut buffer, offset)?;
        // A name is one file name, whatever the file says: it becomes part of a path.
        let name = text(&buffer[..length]).and_then(|name| str::from_utf8(name).ok());
        let name = name.filter(|name| !["", ".", ".."].contains(name) && !name.contains('/'));
        Ok(name.map(str::to_owned))
    }

    fn bytes(&self, offset: u64, length: u64) -> io::Result<Option<Vec<u8>>> {
        read_exactly(&self.read, offset, length)
    }
}

/// What the first note in a section says, as text; `None` if it is another owner's, or broken.
pub fn note<'n>(section: &'n [u8], owner: &str) -> Option<&'n [u8]> {
    let [owners_size, size] = [0, 4].map(|at| usize::try_from(number(section, at, 4)).ok());
    // Behind both sizes and a number for its kind; each part ends at a multiple of four.
    let rest = section.get(12..)?;
    let (owners_name, rest) = rest.split_at_checked(owners_size?.checked_next_multiple_of(4)?)?;
    if text(owners_name)? != owner.as_bytes() {
        return None;
    }
    rest.get(..size?)?.split(|&byte| byte == 0).next()
}

/// A stretch of the file that is mapped somewhere.
struct Segment {
    kind: u64,
    offset: u64,
    address: u64,
    size: u64,
}

fn segment(entry: &[u8]) -> Segment {
    Segment {
        kind: number(entry, 0, 4),
        offset: number(entry, 8, 8),
        address: number(entry, 16, 8),
        size: number(entry, 32, 8),
    }
}

/// Where in the file lies what is mapped at an address.
fn offset_of(segments: &[Segment], address: u64) -> Option<u64> {
    let mut loaded = segments.iter().filter(|segment| segment.kind == PT_LOAD);
    loaded.find_map(|segment| {
        let inside =
            address.checked_sub(segment.address).filter(|&inside| inside < segment.size)?;
        segment.offset.checked_add(inside)
    })
}

/// Exactly so many bytes; `None` when the file ends before.
fn read_exactly(
    read: &impl Fn(&mut [u8], u64) -> io::Result<usize>,
    offset: u64,
    length: u64,
) -> io::Result<Option<Vec<u8>>> {
    if length > LONGEST_TABLE || offset > (i64::MAX as u64) - LONGEST_TABLE {
        return Ok(None);
    }
    let mut bytes = vec![0; usize::try_from(length).unwrap_or(0)];
    let filled = fill(read, &mut bytes, offset)?;
    Ok((filled == bytes.len()).then_some(bytes))
}

/// Reads as much as there is and fits; says how much that was.
fn fill(
    read: &impl Fn(&mut [u8], u64) -> io::Result<usize>,
    buffer: &mut [u8],
    offset: u64,
) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match read(&mut buffer[filled..], offset.saturating_add(filled as u64)) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

/// The bytes before the first null byte; `None` if there is none.
fn text(bytes: &[u8]) -> Option<&[u8]> {
    let end = bytes.iter().position(|&byte| byte == 0)?;
    bytes.get(..end)
}

/// A number of `width` bytes; bytes that are not there count as zero.
fn number(bytes: &[u8], at: usize, width: usize) -> u64 {
    let field = bytes.iter().skip(at).take(width).rev();
    field.fold(0, |number, &byte| number << 8 | u64::from(byte))
}
