//! Requests of the kernel to a file system in user space, and their answers. Supports only those
//! that read-only files need.
//!
//! The layouts are those of `linux/fuse.h`, in the byte order of the machine.

use crate::pages::PageSize;

/// The node of the topmost folder.
pub(super) const ROOT: u64 = 1;

/// A request of the kernel's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Request<'a> {
    /// The number that the answer must have.
    pub(super) unique: u64,
    pub(super) call: Call<'a>,
}

/// The call of a request; `node` is a number that we gave.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Call<'a> {
    Init {
        minor: u32,
    },
    Lookup {
        name: &'a [u8],
    },
    Attributes {
        node: u64,
    },
    OpenFolder,
    ReadFolder,
    Open {
        node: u64,
        writes: bool,
    },
    Read {
        node: u64,
        offset: u64,
        bytes: usize,
    },
    /// A file is closed. Any answer will do.
    Close {
        node: u64,
    },
    /// A folder is closed, or something has nothing to write: any answer will do.
    Nothing,
    /// The process that waits for the answer to this request has been sent a signal.
    Interrupt {
        unique: u64,
    },
    /// The kernel expects no answer.
    Note,
    /// A call that read-only files can do without.
    Other,
}

const HEAD: usize = 40;
const ANSWER_HEAD: usize = 16;

impl Request<'_> {
    /// The request in these bytes, if they are one.
    pub(super) fn parse(bytes: &[u8]) -> Option<Request<'_>> {
        let (head, body) = bytes.split_at_checked(HEAD)?;
        let node = u64_at(head, 16)?;
        let call = match u32_at(head, 4)? {
            1 if node == ROOT => Call::Lookup { name: body.strip_suffix(b"\0")? },
            1 => Call::Other,
            2 | 42 | 38 => Call::Note,
            3 => Call::Attributes { node },
            14 => Call::Open { node, writes: u32_at(body, 0)? & 3 != 0 },
            15 => {
                Call::Read { node, offset: u64_at(body, 8)?, bytes: usize::try_from(u32_at(body, 16)?).ok()? }
            }
            18 => Call::Close { node },
            25 | 29 => Call::Nothing,
            26 => Call::Init { minor: u32_at(body, 4)? },
            27 => Call::OpenFolder,
            28 | 44 => Call::ReadFolder,
            36 => Call::Interrupt { unique: u64_at(body, 0)? },
            _ => Call::Other,
        };
        Some(Request { unique: u64_at(head, 8)?, call })
    }
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_ne_bytes(bytes.get(at..at + 8)?.try_into().ok()?))
}

/// Returns the header of an answer of so many bytes. `error` is 0, or the number of an error.
pub(super) fn head(unique: u64, error: i32, bytes: usize) -> [u8; ANSWER_HEAD] {
    let length = u32::try_from(ANSWER_HEAD + bytes).unwrap_or(u32::MAX);
    let mut head = [0; ANSWER_HEAD];
    head[..4].copy_from_slice(&length.to_ne_bytes());
    head[4..8].copy_from_slice(&(-error).to_ne_bytes());
    head[8..].copy_from_slice(&unique.to_ne_bytes());
    head
}

/// The maximum size of a read, in bytes.
pub(super) const LONGEST_READ: usize = 1 << 20;

/// Answers the kernel's greeting: with the version of Linux 5.2, or the kernel's if it is older,
/// and the maximum size of a read, which the kernel counts in its pages.
pub(super) fn init(minor: u32, page_size: PageSize) -> Vec<u8> {
    const MAX_PAGES: u32 = 1 << 22;
    const ASYNC_READ: u32 = 1;
    let mut out = Words::default();
    out.u32(7).u32(minor.min(31)).u32(1 << 20).u32(ASYNC_READ | MAX_PAGES);
    out.u32(0); // queues of a size of the kernel's choice
    out.u32(4096).u32(1); // what is written at once, and how exact times are
    let most_pages = u16::try_from(LONGEST_READ / page_size.length()).unwrap_or(u16::MAX);
    out.bytes(&most_pages.to_ne_bytes()).bytes(&[0; 34]);
    out.0
}

/// A node: the folder, or a file in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Node {
    Folder,
    File { node: u64, bytes: u64 },
}

/// The time for which the kernel may cache an answer, in seconds: nothing changes here.
const VALID: u64 = 1 << 20;

/// The answer to a look-up.
pub(super) fn entry(found: Node) -> Vec<u8> {
    let mut out = Words::default();
    let node = match found {
        Node::Folder => ROOT,
        Node::File { node, .. } => node,
    };
    out.u64(node).u64(0).u64(VALID).u64(VALID).u64(0);
    out.attributes(found);
    out.0
}

/// The answer to a request for attributes.
pub(super) fn attributes(found: Node) -> Vec<u8> {
    let mut out = Words::default();
    out.u64(VALID).u64(0);
    out.attributes(found);
    out.0
}

/// The answer to a request to open. If `directly` is true, the kernel does not cache the contents.
pub(super) fn opened(directly: bool) -> Vec<u8> {
    const DIRECT_IO: u32 = 1;
    const KEEP_CACHE: u32 = 2;
    let mut out = Words::default();
    out.u64(0).u32(if directly { DIRECT_IO } else { KEEP_CACHE }).u32(0);
    out.0
}

#[derive(Default)]
struct Words(Vec<u8>);

impl Words {
    fn bytes(&mut self, bytes: &[u8]) -> &mut Words {
        self.0.extend(bytes);
        self
    }

    fn u32(&mut self, number: u32) -> &mut Words {
        self.bytes(&number.to_ne_bytes())
    }

    fn u64(&mut self, number: u64) -> &mut Words {
        self.bytes(&number.to_ne_bytes())
    }

    fn attributes(&mut self, found: Node) {
        let (node, bytes, mode) = match found {
            Node::Folder => (ROOT, 0, 0o40_500),
            Node::File { node, bytes } => (node, bytes, 0o100_400),
        };
        self.u64(node).u64(bytes).u64(bytes.div_ceil(512));
        self.bytes(&[0; 36]); // times
        self.u32(mode).u32(1).u32(0).u32(0).u32(0).u32(4096).u32(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(opcode: u32, node: u64, body: &[u8]) -> Vec<u8> {
        let mut out = Words::default();
        out.u32(0).u32(opcode).u64(77).u64(node).bytes(&[0; 16]).bytes(body);
        out.0
    }

    #[test]
    fn requests_are_told_apart() {
        let call = |bytes: &[u8]| {
            Request::parse(bytes).map(|request| (request.unique, format!("{:?}", request.call)))
        };
        let lookup = request(1, ROOT, b"core-1.img\0");
        assert!(matches!(Request::parse(&lookup).unwrap().call, Call::Lookup { name: b"core-1.img" }));
        let mut read = Words::default();
        read.u64(0).u64(8192).u32(4096).u32(0).u64(0).u64(0);
        let read = request(15, 5, &read.0);
        assert_eq!(Request::parse(&read).unwrap().call, Call::Read { node: 5, offset: 8192, bytes: 4096 });
        for writes in [0_u32, 1, 2] {
            let open = request(14, 5, &[writes.to_ne_bytes(), [0; 4]].concat());
            assert_eq!(Request::parse(&open).unwrap().call, Call::Open { node: 5, writes: writes != 0 });
        }
        assert_eq!(call(&request(9999, 5, b"")), Some((77, "Other".to_owned())));
    }

    #[test]
    fn what_is_cut_short_is_none() {
        for opcode in [1, 14, 15, 26, 36] {
            assert_eq!(Request::parse(&request(opcode, ROOT, b"")), None, "{opcode}");
        }
        assert_eq!(Request::parse(&[0; HEAD - 1]), None);
    }

    #[test]
    fn a_read_is_a_mebibyte_whatever_the_pages() {
        for (page_size, pages) in PageSize::TESTED.into_iter().zip([256_u16, 64, 16]) {
            let answer = init(45, page_size);
            assert_eq!(answer[28..30], pages.to_ne_bytes(), "{page_size:?}");
            assert_eq!(u64::from(pages) * page_size.bytes(), 1 << 20);
        }
    }

    #[test]
    fn answers_have_the_sizes_that_the_kernel_wants() {
        let file = Node::File { node: 5, bytes: 513 };
        assert_eq!((entry(file).len(), attributes(file).len()), (128, 104));
        assert_eq!((opened(true).len(), init(45, PageSize::SMALLEST).len()), (16, 64));
        assert_eq!(
            head(3, 5, 100),
            *[&116_u32.to_ne_bytes()[..], &(-5_i32).to_ne_bytes(), &3_u64.to_ne_bytes()].concat()
        );
    }
}
