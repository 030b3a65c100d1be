//! Models and datasets of the Hugging Face hub, by name: where they lie in the local cache, and how they get there.
//!
//! reads   the cache of Hugging Face; the hub, where a name is to be fetched
//! writes  the cache, in the layout of Python's `huggingface_hub`, so that both share it
//!
//! [`Hub::find`] looks at the cache and makes no request; [`Hub::ask`] makes one, for names and sizes; [`Hub::fetch`]
//! brings the files. What follows is identified by content: a name is never an identity.

mod blob;
mod cache;
mod client;
mod fetch;
mod listing;
mod reference;

pub use cache::{Found, Hub};
pub use reference::Reference;

#[cfg(test)]
mod tests;
