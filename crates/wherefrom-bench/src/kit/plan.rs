//! What is measured on a card, and how long each piece may take.

use std::path::Path;
use std::time::Duration;

use crate::shape::{SHAPES, largest};
use crate::work::Subject;

/// What is run, in order.
pub(super) struct Plan {
    /// Shapes, and what a phase of each may take.
    pub(super) shapes: Vec<(Subject, Duration)>,
    /// Rows of the largest matrix that is multiplied.
    pub(super) matrices: usize,
    /// What a study of the golden model, the ceilings, and a piece of torch may take.
    pub(super) golden: Duration,
    pub(super) ceilings: Duration,
    pub(super) torch: Duration,
}

/// Small sizes for a software adapter; else 135M, 1B, and the largest that fits.
pub(super) fn plan(small: bool, memory: Option<u64>, tensor: Option<u64>, disk: Option<u64>, torch: bool) -> Plan {
    let seconds = Duration::from_secs;
    if small {
        let long = seconds(600);
        let shapes = vec![(Subject::Shape(&SHAPES[0]), long)];
        return Plan { shapes, matrices: 256, golden: long, ceilings: long, torch: seconds(60) };
    }
    let mut shapes = vec![(Subject::Shape(&SHAPES[1]), seconds(30)), (Subject::Shape(&SHAPES[2]), seconds(45))];
    let most = memory.and_then(|memory| largest(memory, tensor, disk));
    shapes.extend(most.map(|shape| (Subject::Shape(shape), seconds(60))));
    let torch = seconds(if torch { 20 } else { 0 });
    Plan { shapes, matrices: 8192, golden: seconds(60), ceilings: seconds(60), torch }
}

impl Plan {
    pub(super) fn words(&self) -> String {
        let shapes: Vec<_> = self.shapes.iter().map(|(subject, _)| subject.name()).collect();
        format!("shapes {}, matrices up to {} rows", shapes.join(", "), self.matrices)
    }
}

/// Bytes that a folder's disk has left.
pub(super) fn free(folder: &Path) -> Option<u64> {
    rustix::fs::statvfs(folder).ok().map(|disk| disk.f_bavail * disk.f_frsize)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_software_adapter_is_asked_for_little_and_a_card_for_what_fits() {
        assert_eq!(plan(true, Some(1 << 40), None, None, true).words(), "shapes tiny, matrices up to 256 rows");
        let card = |gib: u64| plan(false, Some(gib << 30), Some((2 << 30) - 1), None, false).words();
        assert_eq!(card(16), "shapes 135M, 1B, matrices up to 8192 rows");
        assert_eq!(card(80), "shapes 135M, 1B, 14B, matrices up to 8192 rows");
    }
}
