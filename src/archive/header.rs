//! The 512 bytes before each file of a tar archive.
//!
//! The `tar` crate writes headers. Their bytes are part of a digest, so a golden file pins them.
//! They are parsed here, more strictly than by the crate, which skips invalid bytes.

use super::names::LONGEST;

/// The size of a block: an archive is a sequence of blocks.
pub(super) const BLOCK: usize = 512;

/// The parsed header of an entry: name, type and size.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) name: Vec<u8>,
    pub(super) kind: Kind,
    pub(super) size: u64,
}

/// The supported types of entries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    File,
    Folder,
    /// Attributes of the next entry.
    Attributes,
}

impl Header {
    /// Makes the header of a file; see `docs/formats.md` for each field.
    ///
    /// # Panics
    ///
    /// If the name is longer than [`LONGEST`].
    pub(super) fn encode(name: &str, size: u64) -> [u8; BLOCK] {
        let mut header = tar::Header::new_gnu();
        header.set_path(name).expect("because names are short, relative and plain");
        header.set_size(size);
        header.set_mode(0o600);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        header.set_entry_type(tar::EntryType::Regular);
        header.set_cksum();
        *header.as_bytes()
    }

    /// Parses a header block, or returns the reason why it is invalid.
    pub(super) fn decode(block: &[u8; BLOCK]) -> Result<Header, &'static str> {
        if number(&block[CHECKSUM]) != Some(checksum(block)) {
            return Err("its header is damaged");
        }
        if &block[MAGIC] != GNU && &block[MAGIC] != USTAR {
            return Err("it is of an unknown sort of tar");
        }
        if &block[MAGIC] == USTAR && block[PREFIX] != 0 {
            return Err("its name is too long");
        }
        let kind = kind(block[TYPE])?;
        let size = number(&block[SIZE]).ok_or("its size is no number")?;
        Ok(Header { name: until_zero(&block[..LONGEST]).to_vec(), kind, size })
    }
}

/// Returns the name in a block, for errors.
pub(super) fn name_of(block: &[u8; BLOCK]) -> &[u8] {
    until_zero(&block[..LONGEST])
}

fn kind(kind: u8) -> Result<Kind, &'static str> {
    match kind {
        b'0' | 0 => Ok(Kind::File),
        b'5' => Ok(Kind::Folder),
        b'x' => Ok(Kind::Attributes),
        b'1' => Err("it is a hard link"),
        b'2' => Err("it is a symbolic link"),
        b'3' | b'4' => Err("it is a device"),
        b'6' => Err("it is a fifo"),
        b'S' => Err("it is a sparse file"),
        b'L' | b'K' => Err("its name is too long"),
        b'g' => Err("it holds attributes of all entries"),
        _ => Err("it is neither a file nor a folder"),
    }
}

fn until_zero(field: &[u8]) -> &[u8] {
    field.split(|byte| *byte == 0).next().unwrap_or_default()
}

/// Sums all bytes, with spaces in the place of the sum itself.
fn checksum(block: &[u8; BLOCK]) -> u64 {
    let all: u64 = block.iter().map(|byte| u64::from(*byte)).sum();
    let sum: u64 = block[CHECKSUM].iter().map(|byte| u64::from(*byte)).sum();
    all - sum + 8 * u64::from(b' ')
}

/// Parses octal digits between spaces and zeros, or GNU's binary form for numbers of more than 11
/// digits.
fn number(field: &[u8]) -> Option<u64> {
    if field[0] == 0x80 {
        let (high, low) = field[1..].split_at_checked(field.len().checked_sub(9)?)?;
        let fits = high.iter().all(|byte| *byte == 0);
        return low.try_into().ok().filter(|_| fits).map(u64::from_be_bytes);
    }
    let digits = field.trim_ascii_start();
    let end = digits.iter().position(|byte| matches!(byte, 0 | b' ')).unwrap_or(digits.len());
    let (digits, rest) = digits.split_at(end);
    let clean = rest.iter().all(|byte| matches!(byte, 0 | b' ')) && digits.iter().all(u8::is_ascii_digit);
    let digits = std::str::from_utf8(digits).ok().filter(|_| clean)?;
    u64::from_str_radix(digits, 8).ok()
}

const SIZE: std::ops::Range<usize> = 124..136;
const CHECKSUM: std::ops::Range<usize> = 148..156;
const TYPE: usize = 156;
const MAGIC: std::ops::Range<usize> = 257..265;
/// Offset of ustar's name prefix, the first half of a long name. GNU has times there.
const PREFIX: usize = 345;

const GNU: &[u8; 8] = b"ustar  \0";
const USTAR: &[u8; 8] = b"ustar\x0000";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_come_back_up_to_the_largest() {
        for size in [0, 1, 511, (1 << 33) - 1, 1 << 33, u64::MAX] {
            let block = Header::encode("pages-1.img", size);
            let header = Header { name: b"pages-1.img".to_vec(), kind: Kind::File, size };
            assert_eq!(Header::decode(&block), Ok(header));
        }
    }

    #[test]
    fn every_changed_byte_is_noticed() {
        let block = Header::encode("pages-1.img", 4096);
        for at in 0..BLOCK {
            let mut damaged = block;
            damaged[at] ^= 0x11;
            assert!(Header::decode(&damaged).is_err(), "byte {at}");
        }
    }

    #[test]
    fn a_number_is_octal_or_binary_and_fits() {
        assert_eq!(number(b"0000600\0"), Some(0o600));
        assert_eq!(number(b"   600 \0"), Some(0o600));
        assert_eq!(number(b"77777777"), Some(0o77777777));
        assert_eq!(number(b"\x80\0\0\0\0\0\0\0\0\0\x01\0"), Some(256));
        for field in
            [&b"\0\0\0\0"[..], b"    ", b"08\0\0", b"+7\0\0", b"1 1\0", b"\xff\xff\xff\xff", b"\x80\0\0\x07"]
        {
            assert_eq!(number(field), None, "{field:?}");
        }
        assert_eq!(number(b"\x80\x01\0\0\0\0\0\0\0\0\0\0"), None);
        assert_eq!(number(b"\x80\0\0\x01\0\0\0\0\0\0\0\0"), None);
    }
}
