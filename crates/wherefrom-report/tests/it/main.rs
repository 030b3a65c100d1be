//! The page against what it was made of.

mod page;
mod portrait;
mod synthetic;
