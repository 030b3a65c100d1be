//! The statistics against laws that are known, and the page against the artifacts it shows.

mod laws;
