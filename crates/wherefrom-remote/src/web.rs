//! A web server: it is read, and nothing is sent to it.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::path::Path;
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use ureq::http::Response;
use ureq::{Agent, Body, Proxy};
use wherefrom_artifact::{Error, Remote, bad_input};

/// Bytes that are read at once.
const PIECE: usize = 1 << 20;
/// Bytes of a file that is read whole, at most: manifests.
const SMALL: u64 = 1 << 28;
/// How often a transfer is begun, from where the last one ended.
const TRIES: u32 = 5;
/// How long a connection, an answer and each piece of it may take.
const PATIENCE: Duration = Duration::from_secs(60);

#[derive(Debug)]
pub(crate) struct Web {
    agent: Agent,
    /// As it was given.
    base: String,
    /// Without a password.
    address: String,
}

impl Web {
    pub(crate) fn open(address: &str) -> Result<Self> {
        let uri: ureq::http::Uri =
            address.parse().map_err(|error| bad_input(format!("--remote {address}: no address ({error})")))?;
        let host = uri.authority().context("an address with a scheme has a host")?.as_str();
        // What stands before an @ is a password.
        let shown = address.replacen(host, host.rsplit('@').next().unwrap_or(host), 1);
        let agent = Agent::config_builder()
            .user_agent(concat!("wherefrom/", env!("CARGO_PKG_VERSION")))
            .http_status_as_error(false)
            .max_redirects(5)
            .proxy(if cfg!(test) { None } else { Proxy::try_from_env() })
            .timeout_connect(Some(PATIENCE))
            .timeout_recv_response(Some(PATIENCE))
            .timeout_per_read(Some(PATIENCE))
            .build()
            .into();
        Ok(Self { agent, base: address.into(), address: shown })
    }

    fn url(&self, name: &str) -> String {
        format!("{}/{name}", self.base)
    }

    /// The answer; none for 404. Anything else that is no success is no answer to the question whether a file is there.
    fn answer(&self, answer: Response<Body>) -> Result<Option<Response<Body>>> {
        match answer.status().as_u16() {
            200 | 206 => Ok(Some(answer)),
            404 => Ok(None),
            status @ (401 | 403) => Err(bad_input(format!("{} refuses with status {status}", self.address))),
            status @ (429 | 500..) => Err(Error::Busy(format!("{} answers with status {status}", self.address)).into()),
            status => bail!("{} answers with status {status}", self.address),
        }
    }

    /// Asks until there is an answer, with a pause that grows after each failure that may pass.
    fn patiently<T>(&self, mut ask: impl FnMut() -> Result<T>) -> Result<T> {
        for tried in 1.. {
            match ask() {
                Err(error) if tried < TRIES && passing(&error) => {
                    thread::sleep(Duration::from_millis(100 << (2 * tried)))
                }
                outcome => return outcome,
            }
        }
        bail!("no try is left")
    }
}

fn passing(error: &anyhow::Error) -> bool {
    error.is::<ureq::Error>() || error.is::<std::io::Error>() || matches!(error.downcast_ref(), Some(Error::Busy(_)))
}

impl Remote for Web {
    fn address(&self) -> &str {
        &self.address
    }

    fn read(&self, name: &str) -> Result<Option<Vec<u8>>> {
        self.patiently(|| {
            let Some(answer) = self.answer(self.agent.get(self.url(name)).call()?)? else { return Ok(None) };
            let mut bytes = Vec::new();
            answer.into_body().into_reader().take(SMALL).read_to_end(&mut bytes)?;
            Ok(Some(bytes))
        })
    }

    fn length(&self, name: &str) -> Result<Option<u64>> {
        self.patiently(|| {
            let Some(answer) = self.answer(self.agent.head(self.url(name)).call()?)? else { return Ok(None) };
            let length = answer.headers().get("content-length").and_then(|length| length.to_str().ok()?.parse().ok());
            length.map(Some).context("the server says no length")
        })
    }

    fn fetch(&self, name: &str, bytes: u64, to: &mut File, piece: &dyn Fn(u64)) -> Result<()> {
        let mut had = 0;
        self.patiently(|| {
            let request = self.agent.get(self.url(name)).header("range", format!("bytes={had}-"));
            let answer = self.answer(request.call()?)?.context("it is not there")?;
            // A server that knows no ranges begins at the beginning.
            let skip = if answer.status() == 206 { 0 } else { had };
            let mut body = answer.into_body().into_reader();
            std::io::copy(&mut body.by_ref().take(skip), &mut std::io::sink())?;
            let mut buffer = vec![0; PIECE];
            loop {
                let length = body.read(&mut buffer)?;
                if length == 0 {
                    break;
                }
                had += length as u64;
                if had > bytes {
                    bail!("it has more than {bytes} bytes");
                }
                to.write_all(&buffer[..length])?;
                piece(length as u64);
            }
            if had < bytes { Err(Error::Busy(format!("it ended after {had} of {bytes} bytes")).into()) } else { Ok(()) }
        })
    }

    fn send(&self, _name: &str, _from: &Path, _piece: &dyn Fn(u64)) -> Result<()> {
        self.create("", b"").map(drop)
    }

    fn create(&self, _name: &str, _bytes: &[u8]) -> Result<bool> {
        Err(bad_input(format!(
            "{} is read, and nothing is sent to a web server; push to a folder, s3://, gs:// or az://",
            self.address
        )))
    }

    fn remove(&self, _name: &str) -> Result<()> {
        self.create("", b"").map(drop)
    }
}
