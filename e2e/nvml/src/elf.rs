//! The smallest shared library: an ELF file for this machine whose only content is its SONAME, which
//! is all that discovery, `ldconfig` and a container's hooks read of a driver's libraries. Linkers find
//! it by the segments, programs in Go by the sections.

/// Size of the ELF header, of one program header, and of one section header.
const EHDR: u64 = 64;
const PHDR: u64 = 56;
const SHDR: usize = 64;
/// Dynamic section: STRTAB, STRSZ, SONAME, SYMTAB, SYMENT, NULL, two words each.
const DYNAMIC_WORDS: u64 = 12;
/// One null symbol, which the dynamic section must point to.
const SYMBOL: [u8; 24] = [0; 24];
/// Names of the sections, at 1 and 9, before the SONAME in the same table.
const NAMES: &[u8] = b"\0.dynstr\0.dynamic\0";

#[cfg(target_arch = "x86_64")]
const MACHINE: u16 = 62;
#[cfg(target_arch = "aarch64")]
const MACHINE: u16 = 183;

/// The bytes of a library with this SONAME.
pub fn library(soname: &str) -> Vec<u8> {
    let strings = [NAMES, soname.as_bytes(), b"\0"].concat();
    let dynamic = EHDR + 2 * PHDR;
    let symbols = dynamic + 8 * DYNAMIC_WORDS;
    let text = symbols + SYMBOL.len() as u64;
    let end = text + strings.len() as u64;
    let sections = end.next_multiple_of(8);
    let mut file = header(sections);
    file.extend(program(1, 4, 0, end, 0x1000));
    file.extend(program(2, 4, dynamic, 8 * DYNAMIC_WORDS, 8));
    let tags = [
        (5, text),
        (10, strings.len() as u64),
        (14, NAMES.len() as u64),
        (6, symbols),
        (11, SYMBOL.len() as u64),
        (0, 0),
    ];
    for (tag, value) in tags {
        file.extend(u64::to_le_bytes(tag));
        file.extend(u64::to_le_bytes(value));
    }
    file.extend(SYMBOL);
    file.extend(&strings);
    file.resize(file.len().next_multiple_of(8) + SHDR, 0);
    file.extend(section([1, 3], text, strings.len() as u64, 0, 0));
    file.extend(section([9, 6], dynamic, 8 * DYNAMIC_WORDS, 1, 16));
    file
}

/// The ELF header of a 64-bit little-endian shared library with two program headers, and with three
/// section headers at its end: an empty one, one for all strings, one for the dynamic section.
fn header(sections: u64) -> Vec<u8> {
    let mut bytes = b"\x7fELF\x02\x01\x01".to_vec();
    bytes.resize(16, 0);
    bytes.extend(3_u16.to_le_bytes());
    bytes.extend(MACHINE.to_le_bytes());
    bytes.extend(1_u32.to_le_bytes());
    for offset in [0, EHDR, sections] {
        bytes.extend(offset.to_le_bytes());
    }
    bytes.extend(0_u32.to_le_bytes());
    for half in [64_u16, 56, 2, 64, 3, 1] {
        bytes.extend(half.to_le_bytes());
    }
    bytes
}

/// A program header: a part of the file that lies in memory at its offset.
fn program(kind: u32, flags: u32, offset: u64, size: u64, align: u64) -> Vec<u8> {
    let mut bytes = [kind.to_le_bytes(), flags.to_le_bytes()].concat();
    for word in [offset, offset, offset, size, size, align] {
        bytes.extend(word.to_le_bytes());
    }
    bytes
}

/// A section header, with the section of its strings and the size of its entries.
fn section(name_and_kind: [u32; 2], offset: u64, size: u64, strings: u64, entry: u64) -> Vec<u8> {
    let mut bytes = name_and_kind.map(u32::to_le_bytes).concat();
    for word in [2, offset, offset, size, strings, 8, entry] {
        bytes.extend(word.to_le_bytes());
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn number(bytes: &[u8], at: usize, width: usize) -> usize {
        bytes[at..at + width].iter().rev().fold(0, |number, byte| number << 8 | usize::from(*byte))
    }

    fn string(table: &[u8], at: usize) -> &str {
        let end = table[at..].iter().position(|byte| *byte == 0).unwrap();
        str::from_utf8(&table[at..at + end]).unwrap()
    }

    /// Name, kind and what is in each section, as the ELF header leads to them.
    fn sections(file: &[u8]) -> Vec<(&str, usize, &[u8])> {
        let (at, size) = (number(file, 40, 8), number(file, 58, 2));
        let headers: Vec<_> = file[at..].chunks_exact(size).collect();
        assert_eq!(headers.len(), number(file, 60, 2), "nothing after the headers");
        let content = |header: &[u8]| &file[number(header, 24, 8)..][..number(header, 32, 8)];
        let names = content(headers[number(file, 62, 2)]);
        let section = |header: &&[u8]| {
            (string(names, number(header, 0, 4)), number(header, 4, 4), content(header))
        };
        headers.iter().map(section).collect()
    }

    #[test]
    fn the_name_is_found_by_the_sections() {
        for name in ["libcuda.so.1", "libnvidia-tls.so.580.95.05"] {
            let file = library(name);
            let [_, (".dynstr", 3, strings), (".dynamic", 6, dynamic)] = sections(&file)[..] else {
                panic!("{:?}", sections(&file));
            };
            let mut entries = dynamic.chunks_exact(16);
            let soname = entries.find(|entry| number(entry, 0, 8) == 14).unwrap();
            assert_eq!(string(strings, number(soname, 8, 8)), name);
        }
    }
}
