//! Language models that answer over the network, and what they have answered.

mod endpoint;
mod question;
mod replies;
#[cfg(test)]
mod tests;

pub(crate) use endpoint::Endpoint;
pub(crate) use question::{Question, Reply};
pub(crate) use replies::{Replies, Usage};
