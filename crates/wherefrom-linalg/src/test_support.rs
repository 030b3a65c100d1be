//! For tests alone.

/// Runs `body` with every kernel on its burn path, whatever the device: for tests that compare the two paths.
pub fn with_burn_operations<R>(body: impl FnOnce() -> R) -> R {
    crate::kernels::with_burn_operations(body)
}

/// Runs `body` as on a processor without instructions for bfloat16, on this thread.
pub fn without_bf16_instructions<R>(body: impl FnOnce() -> R) -> R {
    crate::kernels::without_instructions(body)
}
