//! Linux error numbers, the one currency in which every layer reports failure to an I/O or an RPC.

use std::fmt;

/// A positive Linux errno.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Errno(pub i32);

impl Errno {
    /// Operation not permitted.
    pub const EPERM: Errno = Errno(1);
    /// No such object.
    pub const ENOENT: Errno = Errno(2);
    /// Interrupted.
    pub const EINTR: Errno = Errno(4);
    /// Input/output error.
    pub const EIO: Errno = Errno(5);
    /// Argument too large.
    pub const E2BIG: Errno = Errno(7);
    /// Not open, or not in the right state.
    pub const EBADF: Errno = Errno(9);
    /// Nothing just now; try again.
    pub const EAGAIN: Errno = Errno(11);
    /// Out of memory.
    pub const ENOMEM: Errno = Errno(12);
    /// Device or resource busy.
    pub const EBUSY: Errno = Errno(16);
    /// Object exists already.
    pub const EEXIST: Errno = Errno(17);
    /// No such device.
    pub const ENODEV: Errno = Errno(19);
    /// Invalid argument.
    pub const EINVAL: Errno = Errno(22);
    /// Too many.
    pub const EMFILE: Errno = Errno(24);
    /// No space left.
    pub const ENOSPC: Errno = Errno(28);
    /// Read-only.
    pub const EROFS: Errno = Errno(30);
    /// No data available: the id or key does not exist.
    pub const ENODATA: Errno = Errno(61);
    /// Not in the form that was agreed.
    pub const EPROTO: Errno = Errno(71);
    /// Operation not supported.
    pub const EOPNOTSUPP: Errno = Errno(95);
    /// It took too long.
    pub const ETIMEDOUT: Errno = Errno(110);
    /// It has expired.
    pub const ESTALE: Errno = Errno(116);
    /// Operation cancelled.
    pub const ECANCELED: Errno = Errno(125);
}

impl fmt::Display for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The standard library knows the text of every errno.
        std::io::Error::from_raw_os_error(self.0).fmt(f)
    }
}

impl fmt::Debug for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Errno({})", self.0)
    }
}
