//! Typed refusals: what the store and the readers of artifacts say no to, and what to do about it.

use std::fmt;
use std::path::PathBuf;

/// Why an artifact, a store or an input was refused.
///
/// Every variant is something the user can mend (the binary exits with 2); anything else travels as [`anyhow::Error`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Error {
    /// Something the user gave (a file, a row, a field) cannot be used; the message names it and says what to do.
    Input(String),
    /// There is no artifact here.
    Missing {
        /// The folder that was looked at.
        path: PathBuf,
    },
    /// A part or manifest is not what was sealed: a flipped byte, a truncated file, a foreign edit.
    Corrupt {
        /// The file.
        path: PathBuf,
        /// What differs.
        what: String,
    },
    /// The artifact is of another kind than the role asks for.
    Kind {
        /// The folder.
        path: PathBuf,
        /// What the role takes.
        expected: String,
        /// What the folder holds.
        found: String,
    },
    /// The artifact was written by another version of its format.
    Version {
        /// The folder.
        path: PathBuf,
        /// The version this build reads.
        expected: u32,
        /// The version on disk.
        found: u32,
    },
    /// A part lacks a column, or a column has another type.
    Schema {
        /// The part.
        path: PathBuf,
        /// Which column, and what was expected.
        what: String,
    },
    /// Two artifacts do not belong together: other modules, other shapes, another model.
    Mismatch(String),
    /// Another process is in the way: the same may be tried again.
    Busy(String),
    /// The store cannot be written.
    Unwritable {
        /// The folder.
        path: PathBuf,
        /// What the operating system said.
        what: String,
    },
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Input(message) => f.write_str(message),
            Self::Missing { path } => write!(f, "no artifact in {}: run the step that makes it", path.display()),
            Self::Corrupt { path, what } => write!(
                f,
                "corrupt: {what}; remove the artifact with `wherefrom rm` and run its step again: {}",
                path.display()
            ),
            Self::Kind { path, expected, found } => {
                write!(f, "expected an artifact of kind `{expected}`, found `{found}`: {}", path.display())
            }
            Self::Version { path, expected, found } => write!(
                f,
                "format version {found} is not the version {expected} that this build reads; run the step again: {}",
                path.display()
            ),
            Self::Schema { path, what } => write!(f, "schema: {what}: {}", path.display()),
            Self::Mismatch(message) | Self::Busy(message) => f.write_str(message),
            Self::Unwritable { path, what } => {
                write!(f, "the store cannot be written ({what}); give another folder with --store: {}", path.display())
            }
        }
    }
}

impl std::error::Error for Error {}

/// An [`Error::Input`] as an [`anyhow::Error`]: the way every stage refuses what the user gave.
pub fn bad_input(message: impl Into<String>) -> anyhow::Error {
    Error::Input(message.into()).into()
}

/// The knob `training-examples`, N of an influence: refuses 0.
pub fn check_training_examples(given: Option<u64>) -> anyhow::Result<()> {
    match given {
        Some(0) => Err(bad_input("training-examples = 0 divides by zero; set it to the rows of the training corpus")),
        _ => Ok(()),
    }
}
