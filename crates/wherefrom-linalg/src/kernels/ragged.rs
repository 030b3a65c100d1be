//! Examples of different lengths, one after another without padding.

use std::ops::Range;

use burn::tensor::{Device, Int, Tensor, TensorData};

/// Which rows belong to which example: those of each come after those of the one before, and an example may have none.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Ragged {
    /// First row of each example.
    starts: Vec<usize>,
    rows: usize,
}

impl Ragged {
    /// Examples with so many rows each.
    pub fn new(lengths: impl IntoIterator<Item = usize>) -> Self {
        let mut ragged = Self::default();
        for length in lengths {
            ragged.starts.push(ragged.rows);
            ragged.rows += length;
        }
        ragged
    }

    /// Number of examples.
    pub fn len(&self) -> usize {
        self.starts.len()
    }

    /// Whether there is no example.
    pub fn is_empty(&self) -> bool {
        self.starts.is_empty()
    }

    /// Rows of all examples.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Rows of an example.
    ///
    /// # Panics
    /// Where there is no such example.
    pub fn of(&self, example: usize) -> Range<usize> {
        self.starts[example]..self.starts.get(example + 1).copied().unwrap_or(self.rows)
    }

    /// Rows of each example, in order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = Range<usize>> + Clone {
        (0..self.len()).map(|example| self.of(example))
    }

    /// Rows of the longest example.
    pub fn longest(&self) -> usize {
        self.iter().map(|rows| rows.len()).max().unwrap_or(0)
    }

    /// Values of one example out of those of all, of `width` each.
    pub(super) fn slice<'a>(&self, values: &'a [f32], width: usize, example: usize) -> &'a [f32] {
        let rows = self.of(example);
        &values[rows.start * width..rows.end * width]
    }

    /// Some examples side by side, each as long as the longest of them, filled up with zeros.
    ///
    /// x `[rows, width]` -> `[examples, longest, width]`
    pub(super) fn padded(&self, x: &Tensor<2>, examples: Range<usize>) -> Tensor<3> {
        let ([rows, width], count) = (x.dims(), examples.len());
        assert_eq!(rows, self.rows, "a row for each of the examples' rows");
        let longest = examples.clone().map(|example| self.of(example).len()).max().unwrap_or(0);
        if longest == 0 {
            return Tensor::zeros([count, 1, width], (&x.device(), x.dtype()));
        }
        if examples.clone().all(|example| self.of(example).len() == longest) {
            let first = self.of(examples.start).start;
            return x.clone().narrow(0, first, count * longest).reshape([count, longest, width]);
        }
        let places = examples.flat_map(|example| {
            let own = self.of(example);
            (0..longest).map(move |t| if t < own.len() { own.start + t } else { rows })
        });
        let zero = Tensor::zeros([1, width], (&x.device(), x.dtype()));
        let places = indices(places, &x.device());
        Tensor::cat(vec![x.clone(), zero], 0).select(0, places).reshape([count, longest, width])
    }

    /// The rows of all examples out of [`Ragged::padded`]: `[examples * longest, width]` -> `[rows, width]`.
    pub(super) fn unpadded(&self, x: Tensor<2>) -> Tensor<2> {
        let longest = self.longest();
        if self.rows == self.len() * longest {
            return x;
        }
        let places =
            self.iter().enumerate().flat_map(|(example, own)| (0..own.len()).map(move |t| example * longest + t));
        let places = indices(places, &x.device());
        x.select(0, places)
    }
}

fn indices(places: impl Iterator<Item = usize>, device: &Device) -> Tensor<1, Int> {
    let places: Vec<i32> = places.map(|place| place as i32).collect();
    let count = places.len();
    Tensor::from_data(TensorData::new(places, [count]), device)
}
