//! Factors between the backward pass that makes them and the part that they are written to: the pass comes by the modules
//! last to first, the part has them first to last.

use std::fs::File;
use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::rc::Rc;

use anyhow::{Context as _, Result};
use wherefrom_artifact::Factors;

/// Where they wait.
pub(crate) enum Place {
    Memory,
    /// A file of the draft.
    File(Rc<File>),
}

/// One module's factors of one example.
pub(crate) enum Kept {
    Held(Factors),
    /// Without their values, which lie in the file from a place on: left, then right.
    Aside(Factors, Rc<File>, u64),
}

impl Place {
    /// Puts factors there, after those before.
    pub(crate) fn keep(&self, mut factors: Factors) -> Result<Kept> {
        let Self::File(file) = self else { return Ok(Kept::Held(factors)) };
        let write = || -> std::io::Result<u64> {
            let mut file = &**file;
            let at = file.seek(SeekFrom::End(0))?;
            for values in [&factors.left, &factors.right] {
                file.write_all(bytemuck::cast_slice(values))?;
            }
            Ok(at)
        };
        let at = write().context("put gradients aside")?;
        (factors.left, factors.right) = (Vec::new(), Vec::new());
        Ok(Kept::Aside(factors, file.clone(), at))
    }
}

impl Kept {
    /// The factors, back in memory.
    pub(crate) fn factors(self) -> Result<Factors> {
        let (mut factors, file, at) = match self {
            Self::Held(factors) => return Ok(factors),
            Self::Aside(factors, file, at) => (factors, file, at),
        };
        let mut file = &*file;
        file.seek(SeekFrom::Start(at)).context("take gradients up again")?;
        let mut values = |[rows, columns]: [usize; 2]| {
            let mut values = vec![0.0_f32; rows * columns];
            file.read_exact(bytemuck::cast_slice_mut(&mut values)).context("take gradients up again")?;
            anyhow::Ok(values)
        };
        (factors.left, factors.right) = (values(factors.left_shape)?, values(factors.right_shape)?);
        Ok(factors)
    }
}
