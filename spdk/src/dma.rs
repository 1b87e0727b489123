//! Buffers that devices can reach.

use crate::ffi;
use std::ptr::NonNull;

/// Memory for I/O, zeroed at first, aligned to 4096 bytes.
pub struct DmaBuf {
    data: NonNull<u8>,
    len: usize,
}

// SAFETY: plain memory that the buffer owns.
unsafe impl Send for DmaBuf {}

impl DmaBuf {
    /// Allocates; None when there is no memory.
    pub fn new(bytes: usize) -> Option<Self> {
        // SAFETY: no preconditions; the result is null or `bytes` bytes long.
        let data = unsafe { ffi::sdm_dma_alloc(bytes.max(1), 4096) };
        Some(DmaBuf {
            data: NonNull::new(data.cast())?,
            len: bytes,
        })
    }

    pub(crate) fn as_ptr(&self) -> *mut std::ffi::c_void {
        self.data.as_ptr().cast()
    }
}

impl std::ops::Deref for DmaBuf {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: `len` bytes, initialised with zeroes, owned; while a device writes to it the buffer
        // is inside the I/O and nobody can get here.
        unsafe { std::slice::from_raw_parts(self.data.as_ptr(), self.len) }
    }
}

impl std::ops::DerefMut for DmaBuf {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above, and borrowed exclusively.
        unsafe { std::slice::from_raw_parts_mut(self.data.as_ptr(), self.len) }
    }
}

impl Drop for DmaBuf {
    fn drop(&mut self) {
        // SAFETY: allocated by sdm_dma_alloc, freed once.
        unsafe { ffi::sdm_dma_free(self.data.as_ptr().cast()) };
    }
}

/// Advises the kernel to put large pages under memory that is looked into at random. Best before it is
/// touched for the first time.
pub fn prefer_large_pages<T>(memory: &[T]) {
    // SAFETY: advice on how pages are backed changes no contents, and only whole pages inside the slice
    // are named.
    unsafe { ffi::sdm_prefer_large_pages(memory.as_ptr().cast(), std::mem::size_of_val(memory)) };
}

/// Begins to fetch the cache line at `memory`, and does not wait for it. Advice.
#[inline(always)]
pub fn prefetch<T>(memory: &T) {
    let address: *const T = memory;
    #[cfg(target_arch = "x86_64")]
    // SAFETY: the address is a reference's; a prefetch changes nothing and cannot fault.
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_T0>(address.cast());
    }
    #[cfg(target_arch = "aarch64")]
    // SAFETY: as above.
    unsafe {
        std::arch::asm!("prfm pldl1keep, [{}]", in(reg) address, options(nostack, readonly, preserves_flags));
    }
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    let _ = address;
}
