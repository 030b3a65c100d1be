//! Requests to the hub. Nothing that a server answers is believed further than this:
//!
//! - the token goes to the endpoint's origin (scheme, host and port), and no further once a redirect has left it;
//! - redirects are followed here, a few of them, to http and https alone and never from https to http;
//! - a connection, an answer and each piece of a body have to come in time.

use std::io::{self, Read};
use std::time::{Duration, Instant};

use ureq::http::header::{AUTHORIZATION, CONTENT_RANGE, HeaderMap, LOCATION, RANGE};
use ureq::http::{HeaderValue, Uri};
use ureq::{Agent, BodyReader, Proxy};

use crate::cache::Hub;

/// Redirects of one request.
const REDIRECTS: u32 = 5;
/// Bytes of a body that have to come in [`Hub::patience`]; less is a body that has stalled.
const LEAST: u64 = 10 << 10;

/// Why a request brought nothing, or not all.
#[derive(Debug)]
pub(crate) enum Trouble {
    /// The server's refusal: status and `X-Error-Code`.
    Status(u16, String),
    /// It did not come in time.
    Stalled(Duration),
    /// The connection could not be made, or broke: it may pass.
    Broken(String),
    /// What is wrong with the answer, and will not pass.
    Refused(String),
    /// The cache cannot be written.
    Disk(io::Error),
}

impl std::fmt::Display for Trouble {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Status(status, _) => write!(f, "the hub answers with status {status}"),
            Self::Stalled(patience) => write!(
                f,
                "next to nothing came for {:.0} s; a larger HF_HUB_DOWNLOAD_TIMEOUT waits longer",
                patience.as_secs_f64()
            ),
            Self::Broken(what) | Self::Refused(what) => f.write_str(what),
            Self::Disk(error) => error.fmt(f),
        }
    }
}

/// How far redirects may lead.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reach {
    /// To the endpoint alone: for names, sizes and digests, which everything else is judged by.
    Endpoint,
    /// To other hosts, too, without the token: for content, which is compared with its digest.
    Anywhere,
}

/// Scheme, host and port.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Origin(String, String, u16);

impl Origin {
    /// Of an address that can be asked for: http or https, with a host and without a password.
    fn of(address: &Uri) -> Option<Self> {
        let scheme = address.scheme_str()?.to_ascii_lowercase();
        let standard = match &*scheme {
            "http" => 80,
            "https" => 443,
            _ => return None,
        };
        let authority = address.authority()?;
        let host = authority.host().to_ascii_lowercase();
        let plain = !host.is_empty() && !authority.as_str().contains('@');
        plain.then(|| Self(scheme, host, authority.port_u16().unwrap_or(standard)))
    }
}

/// The endpoint, and what is needed to ask it.
#[derive(Debug)]
pub(crate) struct Client {
    agent: Agent,
    origin: Origin,
    token: Option<HeaderValue>,
    patience: Duration,
}

/// An answer that is no refusal.
pub(crate) struct Answer {
    /// Where it came from at last.
    pub(crate) address: Uri,
    pub(crate) headers: HeaderMap,
    /// Whether it is a part of what was asked for, and from which byte on.
    pub(crate) part: Option<u64>,
    pub(crate) body: Body,
}

impl Client {
    /// A client for the hub's endpoint.
    ///
    /// # Errors
    /// An endpoint that is no address, or a token that cannot be sent.
    pub(crate) fn new(hub: &Hub) -> Result<Self, Trouble> {
        let origin = hub.endpoint.parse().ok().as_ref().and_then(Origin::of).ok_or_else(|| {
            Trouble::Refused("HF_ENDPOINT is no address of the kind https://HOST; unset or mend it".into())
        })?;
        let token = hub.token.as_ref().map(|token| HeaderValue::try_from(format!("Bearer {token}"))).transpose();
        let mut token = token.map_err(|_| {
            Trouble::Refused("the token of HF_TOKEN or `hf auth login` has characters no token has".into())
        })?;
        token.iter_mut().for_each(|token| token.set_sensitive(true));
        let agent = Agent::config_builder()
            .user_agent(concat!("wherefrom/", env!("CARGO_PKG_VERSION")))
            .http_status_as_error(false)
            .max_redirects(0)
            // Tests are between here and here.
            .proxy(if cfg!(test) { None } else { Proxy::try_from_env() })
            .timeout_resolve(Some(hub.patience))
            .timeout_connect(Some(hub.patience))
            .timeout_send_request(Some(hub.patience))
            .timeout_recv_response(Some(hub.patience))
            .timeout_per_read(Some(hub.patience))
            .timeout_per_write(Some(hub.patience))
            .build()
            .into();
        Ok(Self { agent, origin, token, patience: hub.patience })
    }

    /// Asks for `address` from the byte `from` on.
    ///
    /// # Errors
    /// [`Trouble`]; also for a redirect that leads nowhere, too far, or out of `reach`.
    pub(crate) fn get(&self, address: &str, from: u64, reach: Reach) -> Result<Answer, Trouble> {
        let no_address = || Trouble::Refused(format!("`{address}` is no address"));
        let mut at: Uri = address.parse().map_err(|_| no_address())?;
        let mut home = true;
        for _ in 0..=REDIRECTS {
            let origin = Origin::of(&at).ok_or_else(no_address)?;
            home &= origin == self.origin;
            if !home && reach == Reach::Endpoint {
                return Err(Trouble::Refused(format!(
                    "it sends on to {}://{}; set HF_ENDPOINT to that if it is to be trusted",
                    origin.0, origin.1
                )));
            }
            let mut request = self.agent.get(&at).header("accept-encoding", "identity");
            if let Some(token) = self.token.as_ref().filter(|_| home) {
                request = request.header(AUTHORIZATION, token);
            }
            if from > 0 {
                request = request.header(RANGE, format!("bytes={from}-"));
            }
            let (head, body) = request.call().map_err(|error| self.trouble(error))?.into_parts();
            let status = head.status.as_u16();
            match status {
                200 | 206 => {
                    let part = (status == 206).then(|| start(&head.headers).unwrap_or(from));
                    let body =
                        Body { body: body.into_reader(), patience: self.patience, since: Instant::now(), came: 0 };
                    return Ok(Answer { address: at, headers: head.headers, part, body });
                }
                301 | 302 | 303 | 307 | 308 => {
                    let location = head.headers.get(LOCATION).and_then(|value| value.to_str().ok());
                    at = location.and_then(|location| next(&at, location)).ok_or_else(|| {
                        let place = location.map_or_else(|| "without a place".into(), |text| format!("to `{text}`"));
                        Trouble::Refused(format!("it answers with a redirect {place}, which is not followed"))
                    })?;
                }
                _ => {
                    let code = head.headers.get("x-error-code").and_then(|code| code.to_str().ok());
                    return Err(Trouble::Status(status, code.unwrap_or_default().into()));
                }
            }
        }
        Err(Trouble::Refused(format!("it redirects more than {REDIRECTS} times")))
    }

    /// The body of a listing, of at most `limit` bytes.
    ///
    /// # Errors
    /// A body that is longer, or did not come.
    pub(crate) fn text(&self, body: Body, limit: u64) -> Result<Vec<u8>, Trouble> {
        let mut bytes = Vec::new();
        let end = Instant::now() + 6 * self.patience;
        let mut body = body.take(limit + 1);
        let mut buffer = vec![0; 64 << 10];
        loop {
            match body.read(&mut buffer).map_err(|error| self.trouble(error.into()))? {
                0 => return Ok(bytes),
                _ if Instant::now() > end => return Err(Trouble::Stalled(6 * self.patience)),
                read => bytes.extend_from_slice(&buffer[..read]),
            }
            if bytes.len() as u64 > limit {
                return Err(Trouble::Refused(format!("its list of files is longer than {} MB", limit >> 20)));
            }
        }
    }

    pub(crate) fn trouble(&self, error: ureq::Error) -> Trouble {
        match error {
            ureq::Error::Timeout(_) => Trouble::Stalled(self.patience),
            ureq::Error::Io(error) if error.kind() == io::ErrorKind::TimedOut => Trouble::Stalled(self.patience),
            error => Trouble::Broken(error.to_string()),
        }
    }
}

/// A body that has to come at some pace.
pub(crate) struct Body {
    body: BodyReader<'static>,
    patience: Duration,
    since: Instant,
    came: u64,
}

impl Read for Body {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.body.read(buffer)?;
        self.came += read as u64;
        if read > 0 && self.since.elapsed() > self.patience {
            if self.came < LEAST {
                return Err(io::ErrorKind::TimedOut.into());
            }
            (self.since, self.came) = (Instant::now(), 0);
        }
        Ok(read)
    }
}

/// The first byte of a part, of `Content-Range: bytes 100-199/200`.
fn start(headers: &HeaderMap) -> Option<u64> {
    headers.get(CONTENT_RANGE)?.to_str().ok()?.strip_prefix("bytes ")?.split_once('-')?.0.parse().ok()
}

/// Where `location` leads from `at`; none if that is not to be followed.
pub(crate) fn next(at: &Uri, location: &str) -> Option<Uri> {
    let (scheme, authority) = (at.scheme_str()?, at.authority()?);
    let has_scheme = location.find([':', '/', '?', '#']).is_some_and(|end| location[end..].starts_with(':'));
    let text = if has_scheme {
        location.to_string()
    } else if location.starts_with("//") {
        format!("{scheme}:{location}")
    } else if location.starts_with('/') {
        format!("{scheme}://{authority}{location}")
    } else {
        let folder = at.path().rsplit_once('/').map_or("", |(folder, _)| folder);
        format!("{scheme}://{authority}{folder}/{location}")
    };
    let next: Uri = text.split('#').next()?.parse().ok()?;
    let Origin(to, ..) = Origin::of(&next)?;
    (to == "https" || scheme.eq_ignore_ascii_case("http")).then_some(next)
}

/// The `rel="next"` of `Link` headers: where a listing goes on.
pub(crate) fn next_page(answer: &Answer) -> Option<Result<String, Trouble>> {
    let links = answer.headers.get_all("link").iter().filter_map(|value| value.to_str().ok());
    let link = links.flat_map(|value| value.split(',')).find(|link| link.contains("rel=\"next\""))?;
    let target = link.split_once('<').and_then(|(_, rest)| rest.split_once('>')).map(|(target, _)| target);
    let to = target.and_then(|target| next(&answer.address, target));
    Some(to.map(|to| to.to_string()).ok_or_else(|| Trouble::Refused("its list of files goes on nowhere".into())))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn joined(at: &str, location: &str) -> Option<String> {
        next(&at.parse().unwrap(), location).map(|uri| uri.to_string())
    }

    #[test]
    fn redirects_lead_where_they_say_or_nowhere() {
        let at = "https://hub.co/o/n/resolve/c/a.json";
        for (location, to) in [
            ("/api/x?y=1#z", Some("https://hub.co/api/x?y=1")),
            ("//cdn.co/x", Some("https://cdn.co/x")),
            ("b.json", Some("https://hub.co/o/n/resolve/c/b.json")),
            ("HTTPS://cdn.co:444/x", Some("https://cdn.co:444/x")),
            ("http://hub.co/x", None),
            ("file:///etc/passwd", None),
            ("ftp://hub.co/x", None),
            ("https://user:word@cdn.co/x", None),
            ("https://", None),
            ("https:x", None),
            ("javascript:alert(1)", None),
            ("https://cdn.co/a b", None),
        ] {
            assert_eq!(joined(at, location).as_deref(), to, "{location}");
        }
        assert_eq!(joined("http://127.0.0.1:1/x", "http://localhost:2/x").as_deref(), Some("http://localhost:2/x"));
    }

    #[test]
    fn an_origin_is_scheme_host_and_port() {
        let of = |text: &str| Origin::of(&text.parse().unwrap());
        assert_eq!(of("https://HUB.co/a"), of("https://hub.co:443/b"));
        for other in ["http://hub.co", "https://hub.co:444", "https://hub.co.evil", "https://127.0.0.1"] {
            assert_ne!(of("https://hub.co"), of(other), "{other}");
        }
        assert_eq!(of("ftp://hub.co"), None);
    }
}
