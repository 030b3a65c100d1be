//! Places that keep sealed artifacts for others: a folder, a web server that is read, and with the feature `remote` the object
//! stores of S3, Google Cloud and Azure.
//!
//! reads   files of a remote
//! writes  files of a remote

mod folder;
#[cfg(feature = "remote")]
mod objects;
mod web;

use std::sync::Arc;

use anyhow::Result;
use wherefrom_artifact::{Remote, bad_input};

/// The remote of that address: `s3://BUCKET/PREFIX`, `gs://…`, `az://…`, `https://…` (which is read and never written) or a folder.
///
/// # Errors
/// [`wherefrom_artifact::Error::Input`] for an address of another kind, or one that this build cannot reach.
pub fn open(address: &str) -> Result<Arc<dyn Remote>> {
    let scheme = address.split_once("://");
    let address = address.trim_end_matches('/');
    match scheme {
        Some((_, "")) => Err(bad_input(format!("--remote {address}//: no address: give what follows the scheme"))),
        None if address.is_empty() => Err(bad_input("--remote is empty: give an address or a folder")),
        None => Ok(Arc::new(folder::Folder::open(address))),
        Some(("http" | "https", _)) => Ok(Arc::new(web::Web::open(address)?)),
        #[cfg(feature = "remote")]
        Some(("s3" | "gs" | "az", _)) => Ok(Arc::new(objects::Objects::open(address)?)),
        #[cfg(not(feature = "remote"))]
        Some((scheme @ ("s3" | "gs" | "az"), _)) => Err(bad_input(format!(
            "--remote {address}: this build does not reach {scheme}://; build it with `cargo install --path crates/wherefrom --locked \
             --features remote`"
        ))),
        Some((scheme, _)) => Err(bad_input(format!(
            "--remote {address}: `{scheme}` is none of s3, gs, az, https and http; a folder has no scheme"
        ))),
    }
}
