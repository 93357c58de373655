//! The name by which programs look up a shared library: `DT_SONAME` of its ELF file.
//!
//! <https://refspecs.linuxfoundation.org/elf/gabi4+/contents.html>; 64-bit little-endian files only,
//! as drivers are for x86-64 and aarch64. Files are read in small pieces: some have 100 MB.

use std::{fs::File, io, os::unix::fs::FileExt, path::Path};

const PROGRAM_HEADER: usize = 56;
const DYNAMIC_ENTRY: usize = 16;
const PT_LOAD: u64 = 1;
const PT_DYNAMIC: u64 = 2;
const DT_NULL: u64 = 0;
const DT_STRTAB: u64 = 5;
const DT_SONAME: u64 = 14;
/// No real table is longer; a broken header may say anything.
const LONGEST_TABLE: u64 = 1 << 20;
const LONGEST_NAME: usize = 256;

/// The library's SONAME; `None` for a file that has none or is no such library.
pub(super) fn soname(path: &Path) -> io::Result<Option<String>> {
    let file = File::open(path)?;
    find(&file)
}

fn find(file: &File) -> io::Result<Option<String>> {
    let Some(header) = read(file, 0, 64)? else { return Ok(None) };
    // Magic number, 64 bits, little end first.
    if !header.starts_with(b"\x7fELF\x02\x01") {
        return Ok(None);
    }
    let Some(segments) = segments(file, &header)? else { return Ok(None) };
    let Some(dynamic) = segments.iter().find(|segment| segment.kind == PT_DYNAMIC) else {
        return Ok(None);
    };
    let Some(entries) = read(file, dynamic.offset, dynamic.size)? else { return Ok(None) };
    let value = |tag| {
        let pairs = entries.chunks_exact(DYNAMIC_ENTRY).map(|e| (number(e, 0, 8), number(e, 8, 8)));
        let mut pairs = pairs.take_while(|&(found, _)| found != DT_NULL);
        pairs.find(|&(found, _)| found == tag).map(|(_, value)| value)
    };
    let (Some(strings), Some(name)) = (value(DT_STRTAB), value(DT_SONAME)) else {
        return Ok(None);
    };
    match strings.checked_add(name).and_then(|address| offset_of(&segments, address)) {
        Some(offset) => name_at(file, offset),
        None => Ok(None),
    }
}

/// A stretch of the file that is mapped somewhere.
struct Segment {
    kind: u64,
    offset: u64,
    address: u64,
    size: u64,
}

fn segments(file: &File, header: &[u8]) -> io::Result<Option<Vec<Segment>>> {
    let (offset, entry, count) =
        (number(header, 32, 8), number(header, 54, 2), number(header, 56, 2));
    if entry != PROGRAM_HEADER as u64 {
        return Ok(None);
    }
    let table = read(file, offset, entry * count)?;
    Ok(table.map(|table| table.chunks_exact(PROGRAM_HEADER).map(segment).collect()))
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

fn name_at(file: &File, offset: u64) -> io::Result<Option<String>> {
    let mut buffer = [0; LONGEST_NAME];
    let length = file.read_at(&mut buffer, offset)?;
    let name = buffer[..length].split(|&byte| byte == 0).next().unwrap_or_default();
    // A name is one file name, whatever the file says: it becomes part of a path.
    let name = str::from_utf8(name).ok().filter(|name| {
        name.len() < length && !name.is_empty() && !name.contains('/') && *name != ".."
    });
    Ok(name.map(str::to_owned))
}

/// Exactly so many bytes; `None` when the file ends before.
fn read(file: &File, offset: u64, length: u64) -> io::Result<Option<Vec<u8>>> {
    if length > LONGEST_TABLE || offset > i64::MAX as u64 {
        return Ok(None);
    }
    let mut bytes = vec![0; usize::try_from(length).unwrap_or(0)];
    match file.read_exact_at(&mut bytes, offset) {
        Ok(()) => Ok(Some(bytes)),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(None),
        Err(error) => Err(error),
    }
}

/// A number of `width` bytes; bytes that are not there count as zero.
fn number(bytes: &[u8], at: usize, width: usize) -> u64 {
    let field = bytes.iter().skip(at).take(width).rev();
    field.fold(0, |number, &byte| number << 8 | u64::from(byte))
}
