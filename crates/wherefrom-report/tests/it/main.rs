//! The statistics against laws that are known, and the page against what it was made of.

mod laws;
mod page;
mod synthetic;
