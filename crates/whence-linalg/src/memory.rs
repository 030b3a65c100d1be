//! How the C library keeps memory that was freed.

/// Tells glibc to keep freed memory instead of giving it back to the kernel.
///
/// A forward pass frees and takes the same hundreds of megabytes for every batch; with the default
/// policy the kernel hands out and clears each page again, which takes a third of the time of a small
/// model. Elsewhere than on glibc this does nothing. May be called any number of times.
pub fn keep_freed_memory() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        // 1 GiB; older versions refuse more than 32 MiB.
        const LARGEST: [i32; 2] = [1 << 30, 32 << 20];
        // SAFETY: `mallopt` only sets parameters of the allocator, under its own lock.
        #[allow(unsafe_code)]
        unsafe {
            let _ = LARGEST.iter().any(|&bytes| libc::mallopt(libc::M_MMAP_THRESHOLD, bytes) == 1);
            libc::mallopt(libc::M_TRIM_THRESHOLD, i32::MAX);
            libc::mallopt(libc::M_TOP_PAD, 64 << 20);
        }
    }
}
