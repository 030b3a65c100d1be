//! What the processor is, how much memory there is, and how the C library keeps what was freed.

use sysinfo::System;

/// Bytes of memory of this machine, or of the container that this process runs in, where the system says.
pub fn total_bytes() -> Option<u64> {
    memory(System::total_memory, |limits| limits.total_memory)
}

/// Bytes of it that could be taken now without anything being swapped out.
pub fn available_bytes() -> Option<u64> {
    // What a container has free counts files in memory as taken, which are given up when something else needs the room.
    memory(System::available_memory, |limits| limits.total_memory.saturating_sub(limits.rss))
}

/// The most memory that this process has held so far, where the system says.
pub fn peak_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok().map(|kilobytes| 1024 * kilobytes)
}

/// As the processor calls itself, where the system says.
pub fn processor() -> Option<String> {
    let mut system = System::new();
    system.refresh_cpu_list(sysinfo::CpuRefreshKind::nothing());
    Some(system.cpus().first()?.brand().trim().to_string()).filter(|name| !name.is_empty())
}

fn memory(machine: impl Fn(&System) -> u64, container: impl Fn(&sysinfo::CGroupLimits) -> u64) -> Option<u64> {
    let mut system = System::new();
    system.refresh_memory();
    let limit = system.cgroup_limits().map_or(u64::MAX, |limits| container(&limits));
    Some(machine(&system).min(limit)).filter(|&bytes| bytes > 0)
}

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
