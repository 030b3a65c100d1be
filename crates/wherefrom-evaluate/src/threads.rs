//! Work that runs side by side, each piece on a thread of its own.

use anyhow::Result;
use wherefrom_stage::Exec;

/// A small model leaves threads idle: `work` runs once a thread, and what it calls has that thread alone. On a GPU it runs once.
pub(crate) fn side_by_side(exec: &Exec, work: &(dyn Fn() -> Result<()> + Sync)) -> Result<()> {
    let threads = if exec.device.gpu().is_some() { 1 } else { rayon::current_num_threads() };
    if threads == 1 {
        return work();
    }
    std::thread::scope(|scope| {
        let alone = || rayon::ThreadPoolBuilder::new().num_threads(1).build()?.install(work);
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(alone)).collect();
        workers
            .into_iter()
            .try_for_each(|worker| worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
    })
}
