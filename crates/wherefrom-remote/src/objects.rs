//! Object stores: S3 and what speaks like it, Google Cloud, Azure. Credentials come from the environment, as elsewhere (`AWS_…`,
//! `GOOGLE_…`, `AZURE_…`).

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::path::Path as LocalPath;

use anyhow::{Context as _, Result};
use object_store::path::Path;
use object_store::{
    Error as Refusal, GetOptions, ObjectStore, ObjectStoreExt as _, PutMode, PutOptions, PutPayload, WriteMultipart,
};
use tokio::runtime::Runtime;
use wherefrom_artifact::{Remote, bad_input};

/// Bytes of a request: the time-out of a request counts all of it.
const PIECE: u64 = 8 << 20;
/// Bytes of a file that is read whole, at most: manifests.
const SMALL: u64 = 1 << 28;

#[derive(Debug)]
pub(crate) struct Objects {
    runtime: Runtime,
    store: Box<dyn ObjectStore>,
    prefix: Path,
    address: String,
}

impl Objects {
    pub(crate) fn open(address: &str) -> Result<Self> {
        // Whatever other crate installs one first is as good.
        let _installed = rustls::crypto::ring::default_provider().install_default();
        let refused = |error: &dyn std::fmt::Display| bad_input(format!("--remote {address}: {error}"));
        let url = url::Url::parse(address).map_err(|error| refused(&error))?;
        let variables = std::env::vars_os()
            .filter_map(|(name, value)| Some((name.into_string().ok()?.to_lowercase(), value.into_string().ok()?)));
        let (store, prefix) = object_store::parse_url_opts(&url, variables).map_err(|error| refused(&error))?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        Ok(Self { runtime, store, prefix, address: address.into() })
    }

    fn path(&self, name: &str) -> Path {
        name.split('/').fold(self.prefix.clone(), |path, step| path.join(step))
    }

    fn mode(&self, mode: PutMode) -> PutOptions {
        PutOptions { mode, ..PutOptions::default() }
    }
}

/// What was sent is taken, or refused.
fn taken<T>(answer: Result<T, Refusal>) -> Result<T> {
    found(answer)?.context("there is no such bucket")
}

/// What was found; none where there is nothing of that name. Other refusals stay what they are.
fn found<T>(answer: Result<T, Refusal>) -> Result<Option<T>> {
    match answer {
        Ok(there) => Ok(Some(there)),
        Err(Refusal::NotFound { .. }) => Ok(None),
        Err(error @ (Refusal::PermissionDenied { .. } | Refusal::Unauthenticated { .. })) => {
            Err(bad_input(format!("{error}; credentials are taken from the environment: AWS_…, GOOGLE_… or AZURE_…")))
        }
        Err(error) => Err(error.into()),
    }
}

impl Remote for Objects {
    fn address(&self) -> &str {
        &self.address
    }

    fn read(&self, name: &str) -> Result<Option<Vec<u8>>> {
        self.runtime.block_on(async {
            match found(self.store.get_opts(&self.path(name), GetOptions::default()).await)? {
                Some(there) => {
                    anyhow::ensure!(there.meta.size <= SMALL, "it has {} bytes", there.meta.size);
                    Ok(Some(there.bytes().await?.to_vec()))
                }
                None => Ok(None),
            }
        })
    }

    fn length(&self, name: &str) -> Result<Option<u64>> {
        self.runtime.block_on(async { Ok(found(self.store.head(&self.path(name)).await)?.map(|there| there.size)) })
    }

    fn fetch(&self, name: &str, bytes: u64, to: &mut File, piece: &dyn Fn(u64)) -> Result<()> {
        let path = self.path(name);
        let mut had = 0;
        while had < bytes {
            let range = had..bytes.min(had + PIECE);
            let part = self.runtime.block_on(self.store.get_range(&path, range.clone()));
            let part = found(part)?.context("it is not there")?;
            anyhow::ensure!(part.len() as u64 == range.end - range.start, "{} bytes of {range:?} came", part.len());
            to.write_all(&part)?;
            piece(part.len() as u64);
            had = range.end;
        }
        Ok(())
    }

    fn send(&self, name: &str, from: &LocalPath, piece: &dyn Fn(u64)) -> Result<()> {
        let path = self.path(name);
        let file = wherefrom_artifact::open(from)?;
        let next = || -> std::io::Result<Vec<u8>> {
            let mut bytes = Vec::new();
            (&file).take(PIECE).read_to_end(&mut bytes)?;
            Ok(bytes)
        };
        self.runtime.block_on(async {
            let first = next()?;
            if (first.len() as u64) < PIECE {
                let bytes = first.len() as u64;
                taken(self.store.put_opts(&path, PutPayload::from(first), self.mode(PutMode::Overwrite)).await)?;
                piece(bytes);
                return Ok(());
            }
            let upload = taken(self.store.put_multipart_opts(&path, Default::default()).await)?;
            let mut upload = WriteMultipart::new_with_chunk_size(upload, PIECE as usize);
            let mut bytes = first;
            while !bytes.is_empty() {
                upload.wait_for_capacity(2).await?;
                upload.write(&bytes);
                piece(bytes.len() as u64);
                bytes = next()?;
            }
            upload.finish().await?;
            Ok(())
        })
    }

    fn create(&self, name: &str, bytes: &[u8]) -> Result<bool> {
        let payload = PutPayload::from(bytes.to_vec());
        let answer = self.runtime.block_on(self.store.put_opts(&self.path(name), payload, self.mode(PutMode::Create)));
        match answer {
            Err(Refusal::AlreadyExists { .. } | Refusal::Precondition { .. }) => Ok(false),
            answer => taken(answer).map(|_| true),
        }
    }

    fn remove(&self, name: &str) -> Result<()> {
        Ok(self.runtime.block_on(self.store.delete(&self.path(name)))?)
    }
}
