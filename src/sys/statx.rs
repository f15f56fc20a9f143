//! [`Statx`]: file metadata from the kernel's cache.

use std::{
    ffi::{CStr, CString},
    io, mem,
    os::{
        fd::{AsFd, AsRawFd, RawFd},
        unix::ffi::OsStrExt,
    },
    path::Path,
};

use nix::sys::stat::{SFlag, makedev};

/// File metadata by `statx` with `AT_STATX_DONT_SYNC`: the kernel answers from its cache. A
/// question to a dead network file system would block for ever and could not be interrupted.
pub(crate) struct Statx(libc::statx);

impl Statx {
    /// Reads the metadata of the file at the path; follows symbolic links.
    pub(crate) fn of(path: impl AsRef<Path>) -> io::Result<Statx> {
        let path = CString::new(path.as_ref().as_os_str().as_bytes())?;
        Statx::at(libc::AT_FDCWD, &path, 0)
    }

    /// Reads the metadata of an open file. It may be open for nothing but that (`O_PATH`).
    pub(crate) fn of_open(file: impl AsFd) -> io::Result<Statx> {
        Statx::at(file.as_fd().as_raw_fd(), c"", libc::AT_EMPTY_PATH)
    }

    fn at(folder: RawFd, path: &CStr, flags: libc::c_int) -> io::Result<Statx> {
        let (flags, mask) = (flags | libc::AT_STATX_DONT_SYNC, libc::STATX_BASIC_STATS | libc::STATX_BTIME);
        // SAFETY: all fields may be zero.
        let mut found: libc::statx = unsafe { mem::zeroed() };
        // SAFETY: the path is a C string, and the kernel writes no more than `found`.
        match unsafe { libc::statx(folder, path.as_ptr(), flags, mask, &raw mut found) } {
            0 => Ok(Statx(found)),
            _ => Err(io::Error::last_os_error()),
        }
    }

    pub(crate) fn is_file(&self) -> bool {
        self.kind() == SFlag::S_IFREG
    }

    pub(crate) fn is_dir(&self) -> bool {
        self.kind() == SFlag::S_IFDIR
    }

    pub(crate) fn is_block_device(&self) -> bool {
        self.kind() == SFlag::S_IFBLK
    }

    pub(crate) fn is_char_device(&self) -> bool {
        self.kind() == SFlag::S_IFCHR
    }

    fn kind(&self) -> SFlag {
        SFlag::from_bits_truncate(self.0.stx_mode.into()) & SFlag::S_IFMT
    }

    /// Returns the number of names that the file has; 0 if it is deleted.
    pub(crate) fn links(&self) -> u32 {
        self.0.stx_nlink
    }

    /// Returns the size in bytes.
    pub(crate) fn size(&self) -> u64 {
        self.0.stx_size
    }

    /// Returns the device number of the file system.
    pub(crate) fn dev(&self) -> u64 {
        makedev(self.0.stx_dev_major.into(), self.0.stx_dev_minor.into())
    }

    /// Returns the device number of a device file.
    pub(crate) fn rdev(&self) -> u64 {
        makedev(self.0.stx_rdev_major.into(), self.0.stx_rdev_minor.into())
    }

    /// Returns the device number as major and minor.
    pub(crate) fn device(&self) -> (u32, u32) {
        (self.0.stx_rdev_major, self.0.stx_rdev_minor)
    }

    /// Returns the index of a pseudo-terminal's slave, if it is one.
    pub(crate) fn slave(&self) -> Option<u64> {
        if self.is_char_device() { Statx::slave_index(self.device()) } else { None }
    }

    /// Returns the index of the slave with this device number.
    pub(crate) fn slave_index((major, minor): (u32, u32)) -> Option<u64> {
        const SLAVES: std::ops::RangeInclusive<u32> = 136..=143;
        // The slaves have eight consecutive major numbers.
        SLAVES.contains(&major).then(|| (u64::from(major - SLAVES.start()) << 20) + u64::from(minor))
    }

    /// Returns true if it is `/dev/tty`: the controlling terminal of the process that opened it.
    pub(crate) fn is_controlling_terminal(&self) -> bool {
        self.is_char_device() && self.device() == (5, 0)
    }

    /// Returns true for the master of a pseudo-terminal, whatever its path.
    pub(crate) fn is_master(&self) -> bool {
        self.is_char_device() && self.device() == (5, 2)
    }

    /// Returns the time that the file was made at, in nanoseconds since 1970, if the file system
    /// knows it.
    pub(crate) fn born(&self) -> Option<i64> {
        let time = self.0.stx_btime;
        let known = self.0.stx_mask & libc::STATX_BTIME != 0;
        known.then(|| time.tv_sec.checked_mul(1_000_000_000)?.checked_add(time.tv_nsec.into())).flatten()
    }

    pub(crate) fn ino(&self) -> u64 {
        self.0.stx_ino
    }

    pub(crate) fn nlink(&self) -> u32 {
        self.0.stx_nlink
    }

    /// Returns the allocated size, in blocks of 512 bytes.
    pub(crate) fn blocks(&self) -> u64 {
        self.0.stx_blocks
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    #[test]
    fn it_is_what_everybody_else_is_told() {
        for path in ["/proc/self/exe", "/proc", "/dev/null", "/dev/ptmx"] {
            let Ok(told) = std::fs::metadata(path) else { continue };
            let known = Statx::of(path).unwrap();
            assert_eq!((known.dev(), known.ino(), known.rdev()), (told.dev(), told.ino(), told.rdev()));
            assert_eq!((u64::from(known.nlink()), known.blocks()), (told.nlink(), told.blocks()));
            assert_eq!((known.is_file(), known.is_dir()), (told.is_file(), told.is_dir()));
            assert_eq!(known.is_char_device(), path.starts_with("/dev/"));
            assert_eq!((known.is_master(), known.slave()), (path == "/dev/ptmx", None));
            assert!(!known.is_block_device());
        }
        let file = std::fs::File::open(std::env::current_exe().unwrap()).unwrap();
        let (known, told) = (Statx::of_open(&file).unwrap(), file.metadata().unwrap());
        assert_eq!(known.ino(), told.ino());
        let born = told.created().ok().and_then(|time| time.duration_since(std::time::UNIX_EPOCH).ok());
        assert_eq!(known.born().map(i128::from), born.map(|time| time.as_nanos().cast_signed()));
        assert_eq!(Statx::of("/nonexistent").err().map(|error| error.kind()), Some(io::ErrorKind::NotFound));
    }
}
