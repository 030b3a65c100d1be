//! How a stage runs: never part of a key.

use std::fmt;
use std::sync::Arc;

use wherefrom_artifact::{Reporter, Silent};

/// Where the arithmetic runs: chosen once, before the first step, by what knows the adapters of this machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Device {
    /// The CPU.
    Cpu {
        /// Threads that work side by side.
        threads: usize,
    },
    /// A GPU, or a program that plays one.
    Gpu {
        /// N of `gpu:N`.
        index: usize,
        /// As the driver calls it, and the interface it is reached by: `llvmpipe (LLVM 15.0.6, 256 bits), Vulkan`.
        name: String,
        /// Bytes of its memory, where the interface says.
        memory: Option<u64>,
    },
}

/// Of the memory that there is, the share that is taken: other programs live, too.
const SHARE: f64 = 0.9;

impl Device {
    /// The CPU with all its threads.
    pub fn cpu() -> Self {
        Self::Cpu { threads: rayon::current_num_threads() }
    }

    /// N of `gpu:N`; none for the CPU.
    pub fn gpu(&self) -> Option<usize> {
        match self {
            Self::Cpu { .. } => None,
            Self::Gpu { index, .. } => Some(*index),
        }
    }

    /// Pieces of work that run side by side: one a thread on the CPU, one on a GPU.
    pub fn side_by_side(&self) -> usize {
        match self {
            Self::Cpu { threads } => *threads,
            Self::Gpu { .. } => 1,
        }
    }

    /// Bytes that may be held on it: what is given, or most of a GPU's memory, or on the CPU most of what is `free`. None
    /// where nobody knows.
    pub fn limit(&self, given: Option<u64>, free: impl FnOnce() -> Option<u64>) -> Option<u64> {
        let there = || match self {
            Self::Cpu { .. } => free(),
            Self::Gpu { memory, .. } => *memory,
        };
        given.or_else(|| there().map(|bytes| (bytes as f64 * SHARE) as u64))
    }
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cpu { threads } => write!(f, "cpu, {threads} threads"),
            Self::Gpu { index, name, .. } => write!(f, "gpu:{index}, {name}"),
        }
    }
}

/// Device, memory, batch size and reporter of a run.
#[derive(Clone)]
pub struct Exec {
    /// Where the arithmetic runs.
    pub device: Device,
    /// Tokens in one batch, where all its sequences are as long as the longest.
    pub batch_tokens: usize,
    /// Bytes that may be held at once; none = as [`Device::limit`] has it.
    pub memory: Option<u64>,
    /// Modules that `covariance` and `lambda` sum in one pass over the tokens; none = as many as fit the memory.
    pub modules_per_pass: Option<usize>,
    /// Where progress goes.
    pub reporter: Arc<dyn Reporter>,
}

impl Exec {
    /// Tokens in the largest batch of so many tokens.
    pub fn batch_of(&self, tokens: u64) -> usize {
        self.batch_tokens.min((tokens as usize).max(1))
    }
}

impl Default for Exec {
    fn default() -> Self {
        Self {
            device: Device::cpu(),
            batch_tokens: 4096,
            memory: None,
            modules_per_pass: None,
            reporter: Arc::new(Silent),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;

    fn gpu(memory: Option<u64>) -> Device {
        Device::Gpu { index: 1, name: "NVIDIA H100, CUDA".into(), memory }
    }

    #[test]
    fn a_gpu_is_sized_by_its_own_memory_and_never_by_the_hosts() {
        let free = || -> Option<u64> { panic!("the host was asked") };
        assert_eq!(gpu(Some(80 * GIB)).limit(None, free), Some(72 * GIB));
        assert_eq!(gpu(None).limit(None, free), None);
        assert_eq!(gpu(None).limit(Some(GIB), free), Some(GIB));
        assert_eq!(gpu(Some(80 * GIB)).side_by_side(), 1);
    }

    #[test]
    fn the_cpu_is_sized_by_what_the_host_has_free() {
        let cpu = Device::Cpu { threads: 16 };
        assert_eq!(cpu.limit(None, || Some(10 * GIB)), Some(9 * GIB));
        assert_eq!(cpu.limit(None, || None), None);
        assert_eq!(cpu.limit(Some(GIB), || Some(10 * GIB)), Some(GIB));
        assert_eq!(cpu.side_by_side(), 16);
    }

    #[test]
    fn a_device_is_said_as_it_is_asked_for() {
        assert_eq!(gpu(None).to_string(), "gpu:1, NVIDIA H100, CUDA");
        assert_eq!(Device::Cpu { threads: 16 }.to_string(), "cpu, 16 threads");
    }
}
