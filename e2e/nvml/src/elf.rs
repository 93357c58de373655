//! The smallest shared library: an ELF file for this machine whose only content is its SONAME, which
//! is all that discovery, `ldconfig` and a container's hooks read of a driver's libraries.

/// Size of the ELF header, and of one program header.
const EHDR: u64 = 64;
const PHDR: u64 = 56;
/// Dynamic section: STRTAB, STRSZ, SONAME, SYMTAB, SYMENT, NULL, two words each.
const DYNAMIC_WORDS: u64 = 12;
/// One null symbol, which the dynamic section must point to.
const SYMBOL: [u8; 24] = [0; 24];

#[cfg(target_arch = "x86_64")]
const MACHINE: u16 = 62;
#[cfg(target_arch = "aarch64")]
const MACHINE: u16 = 183;

/// The bytes of a library with this SONAME.
pub(crate) fn library(soname: &str) -> Vec<u8> {
    let strings = [b"\0", soname.as_bytes(), b"\0"].concat();
    let dynamic = EHDR + 2 * PHDR;
    let symbols = dynamic + 8 * DYNAMIC_WORDS;
    let text = symbols + SYMBOL.len() as u64;
    let end = text + strings.len() as u64;
    let mut file = header();
    file.extend(program(1, 4, 0, end, 0x1000));
    file.extend(program(2, 4, dynamic, 8 * DYNAMIC_WORDS, 8));
    let tags = [
        (5, text),
        (10, strings.len() as u64),
        (14, 1),
        (6, symbols),
        (11, SYMBOL.len() as u64),
        (0, 0),
    ];
    for (tag, value) in tags {
        file.extend(u64::to_le_bytes(tag));
        file.extend(u64::to_le_bytes(value));
    }
    file.extend(SYMBOL);
    file.extend(strings);
    file
}

/// The ELF header of a 64-bit little-endian shared library with two program headers.
fn header() -> Vec<u8> {
    let mut bytes = b"\x7fELF\x02\x01\x01".to_vec();
    bytes.resize(16, 0);
    bytes.extend(3_u16.to_le_bytes());
    bytes.extend(MACHINE.to_le_bytes());
    bytes.extend(1_u32.to_le_bytes());
    for offset in [0, EHDR, 0] {
        bytes.extend(offset.to_le_bytes());
    }
    bytes.extend(0_u32.to_le_bytes());
    for half in [64_u16, 56, 2, 64, 0, 0] {
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
