//! The coordinates of an index by module, in memory.

use anyhow::Result;
use wherefrom_artifact::{Artifact, Coordinate, Coordinates, Error};

/// One module's share of the coordinates.
pub(crate) struct Share {
    pub(crate) module: String,
    /// Place of its first coordinate in the table.
    pub(crate) first: usize,
    /// Rows and columns of Q_S^T G Q_A.
    pub(crate) elements: Vec<[u32; 2]>,
    /// sqrt(Lambda) of each.
    pub(crate) deviations: Vec<f32>,
}

/// All of them.
pub(crate) struct Table {
    pub(crate) shares: Vec<Share>,
    pub(crate) count: usize,
}

impl Table {
    /// Reads the table; each module's rows lie together.
    pub(crate) fn read(coordinates: &Artifact<Coordinates>) -> Result<Self> {
        let mut table = Self { shares: Vec::new(), count: 0 };
        for row in coordinates.rows::<Coordinate>()? {
            let row = row?;
            if table.shares.last().is_none_or(|share| share.module != row.module) {
                if table.shares.iter().any(|share| share.module == row.module) {
                    let (module, folder) = (row.module, coordinates.folder().display());
                    let what = format!("the coordinates of {module} do not lie together: {folder}");
                    return Err(Error::Mismatch(what).into());
                }
                let (first, elements, deviations) = (table.count, Vec::new(), Vec::new());
                table.shares.push(Share { module: row.module, first, elements, deviations });
            }
            if let Some(share) = table.shares.last_mut() {
                share.elements.push([row.row, row.column]);
                share.deviations.push(row.deviation);
            }
            table.count += 1;
        }
        if table.count == 0 {
            let folder = coordinates.folder().display();
            return Err(Error::Mismatch(format!("there are no coordinates: {folder}")).into());
        }
        Ok(table)
    }
}

impl Share {
    /// Row-major places in [out, in].
    ///
    /// # Errors
    /// A coordinate outside the module.
    pub(crate) fn places(&self, shape: [usize; 2]) -> Result<Vec<u32>> {
        let place = |&[row, column]: &[u32; 2]| {
            let inside = (row as usize) < shape[0] && (column as usize) < shape[1];
            inside.then(|| row * shape[1] as u32 + column).ok_or_else(|| {
                let what = format!(
                    "coordinate [{row}, {column}] lies outside {} {shape:?}: choose the coordinates by this model's lambda",
                    self.module
                );
                Error::Mismatch(what).into()
            })
        };
        self.elements.iter().map(place).collect()
    }
}
