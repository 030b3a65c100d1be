//! The client against a hub on loopback that means well, and against one that does not.

mod fuzz;
mod hostile;
mod model;
