//! An endpoint with the chat completions of OpenAI: where it is and what it knows one by come from the environment.
//!
//! What passes (429, 5xx, a connection that breaks, no answer in time, half an answer) is tried again, five times in all, after a
//! pause that doubles, moved about at random, or as long as the answer says; what does not is a refusal. The key goes to the
//! endpoint and nowhere else: redirects are not followed, and it is taken out of every text that comes back.

use std::io::Read as _;
use std::time::{Duration, SystemTime};

use anyhow::{Result, anyhow};
use ureq::http::HeaderValue;
use ureq::http::header::{AUTHORIZATION, CONTENT_TYPE, HeaderMap, RETRY_AFTER};
use ureq::{Agent, Proxy};
use wherefrom_artifact::bad_input;
use wherefrom_linalg::random::uniform;

use crate::provider::question::{Question, Reply};

/// Where it is, and what it knows one by.
const ADDRESS: &str = "OPENAI_BASE_URL";
const KEY: &str = "OPENAI_API_KEY";
/// Where it is if nobody says.
const OPENAI: &str = "https://api.openai.com/v1";
/// How often a question is asked.
const TRIES: u32 = 5;
/// The first pause; the next are twice as long each.
const PAUSE: Duration = Duration::from_secs(1);
/// Longest pause that an answer may ask for.
const LONGEST_PAUSE: Duration = Duration::from_secs(300);
/// Largest answer.
const LARGEST: u64 = 4 << 20;
/// Characters of an answer that a message quotes.
const QUOTED: usize = 300;
/// What stands for the key.
const HIDDEN: &str = "[key]";

/// An endpoint and a model on it.
pub(crate) struct Endpoint {
    agent: Agent,
    address: String,
    key: Option<Key>,
    model: String,
    /// The first pause.
    pub(crate) pause: Duration,
}

/// What it knows one by.
struct Key {
    text: String,
    header: HeaderValue,
}

/// Why there is no answer.
enum Trouble {
    /// It may pass; after so long, where that is said.
    Passing(String, Option<Duration>),
    /// It will not.
    Lasting(String),
}

impl Endpoint {
    /// The endpoint that the environment names; an answer and each piece of it have to come within `patience`.
    ///
    /// # Errors
    /// [`wherefrom_artifact::Error::Input`] for an address that is none, and for a key that is missing or cannot be sent.
    pub(crate) fn from_env(model: &str, patience: Duration) -> Result<Self> {
        let set = |name: &str| std::env::var(name).ok().filter(|value| !value.trim().is_empty());
        let (address, key) = (set(ADDRESS), set(KEY));
        if address.is_none() && key.is_none() {
            return Err(bad_input(format!(
                "provider = \"endpoint\" asks {OPENAI}, which wants a key: set {KEY}, or {ADDRESS} to an endpoint of your own"
            )));
        }
        Self::new(address.as_deref().unwrap_or(OPENAI), key.as_deref(), model, patience)
    }

    /// The endpoint at an address.
    ///
    /// # Errors
    /// As [`Endpoint::from_env`].
    pub(crate) fn new(address: &str, key: Option<&str>, model: &str, patience: Duration) -> Result<Self> {
        let uri: Option<ureq::http::Uri> = address.trim().parse().ok();
        let plain = uri.as_ref().is_some_and(|uri| {
            let scheme = uri.scheme_str().is_some_and(|scheme| ["http", "https"].contains(&scheme));
            scheme
                && uri.query().is_none()
                && uri.authority().is_some_and(|authority| !authority.as_str().contains('@'))
        });
        if !plain {
            return Err(bad_input(format!(
                "{ADDRESS} is no address of the kind https://HOST/v1, without a user or a password in it; mend it"
            )));
        }
        let key = match key.map(str::trim) {
            None => None,
            Some(text) => {
                let mut header = HeaderValue::try_from(format!("Bearer {text}"))
                    .map_err(|_| bad_input(format!("{KEY} has characters that no key has; mend it")))?;
                header.set_sensitive(true);
                Some(Key { text: text.into(), header })
            }
        };
        let agent = Agent::config_builder()
            .user_agent(concat!("wherefrom/", env!("CARGO_PKG_VERSION")))
            .http_status_as_error(false)
            .max_redirects(0)
            .proxy(if cfg!(test) { None } else { Proxy::try_from_env() })
            .timeout_global(Some(patience))
            .build()
            .into();
        let address = format!("{}/chat/completions", address.trim().trim_end_matches('/'));
        Ok(Self { agent, address, key, model: model.into(), pause: PAUSE })
    }

    /// The model that is asked.
    pub(crate) fn model(&self) -> &str {
        &self.model
    }

    /// Asks, again where it failed in a way that may pass.
    ///
    /// # Errors
    /// [`wherefrom_artifact::Error::Input`] for what the endpoint refuses, and an error without a remedy where it does not
    /// answer at all.
    pub(crate) fn ask(&self, question: &Question) -> Result<Reply> {
        let body = serde_json::to_vec(&question.body(&self.model))?;
        let mut pause = self.pause;
        let mut what = String::new();
        for attempt in 1..=TRIES {
            let wanted = match self.once(&body) {
                Ok(reply) => return Ok(reply),
                Err(Trouble::Lasting(what)) => return Err(bad_input(what)),
                Err(Trouble::Passing(said, wanted)) => {
                    what = said;
                    wanted
                }
            };
            if attempt < TRIES {
                std::thread::sleep(
                    wanted.unwrap_or(Duration::ZERO).min(LONGEST_PAUSE).max(pause.mul_f64(0.5 + chance())),
                );
                pause *= 2;
            }
        }
        Err(anyhow!("the endpoint did not answer in {TRIES} tries: {what}; what it has answered is kept: run again"))
    }

    fn once(&self, body: &[u8]) -> Result<Reply, Trouble> {
        let passing = |what: String| Trouble::Passing(self.hidden(&what), None);
        let mut request = self.agent.post(&self.address).header(CONTENT_TYPE, "application/json");
        if let Some(key) = &self.key {
            request = request.header(AUTHORIZATION, key.header.clone());
        }
        let (head, answer) = match request.send(body) {
            Ok(response) => response.into_parts(),
            Err(error) => return Err(passing(error.to_string())),
        };
        let mut bytes = Vec::new();
        let read = answer.into_reader().take(LARGEST + 1).read_to_end(&mut bytes);
        let status = head.status.as_u16();
        match status {
            200 => {}
            429 | 408 | 500..=599 => {
                return Err(Trouble::Passing(format!("it answers with status {status}"), retry_after(&head.headers)));
            }
            // What it says then may well be about the key.
            401 | 403 => {
                return Err(Trouble::Lasting(format!(
                    "the endpoint answers with status {status}: it does not take the key; mend {KEY}, or {ADDRESS}"
                )));
            }
            _ => {
                let said: String = String::from_utf8_lossy(&bytes).chars().take(QUOTED).collect();
                return Err(Trouble::Lasting(self.hidden(&format!(
                    "the endpoint answers with status {status} ({said}); mend {ADDRESS} or endpoint-model = {:?}",
                    self.model
                ))));
            }
        }
        read.map_err(|error| passing(format!("its answer broke off ({error})")))?;
        if bytes.len() as u64 > LARGEST {
            return Err(passing(format!("its answer has more than {} MB", LARGEST >> 20)));
        }
        let reply = Reply::parse(&bytes).map_err(|what| passing(format!("its answer cannot be read: {what}")))?;
        Ok(Reply { text: self.hidden(&reply.text), model: self.hidden(&reply.model), ..reply })
    }

    /// A text without the key.
    fn hidden(&self, text: &str) -> String {
        match &self.key {
            Some(key) if !key.text.is_empty() => text.replace(&key.text, HIDDEN),
            _ => text.into(),
        }
    }
}

/// What an answer says of when to ask again, in seconds.
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let seconds: f64 = headers.get(RETRY_AFTER)?.to_str().ok()?.trim().parse().ok()?;
    (0.0..=LONGEST_PAUSE.as_secs_f64()).contains(&seconds).then(|| Duration::from_secs_f64(seconds))
}

/// A number in [0, 1) that differs from time to time: many that failed at once do not ask again at once.
fn chance() -> f64 {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    uniform(now.subsec_nanos().into(), std::process::id().into(), now.as_secs())
}
