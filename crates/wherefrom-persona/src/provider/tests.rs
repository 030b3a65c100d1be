//! An endpoint on loopback that answers late, wrongly, too often asked, by half, or with the key in what it says.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use wherefrom_artifact::Error;
use wherefrom_tests::hub::{Answer, Request, Server, Then};

use super::{Endpoint, Question, Reply};

const KEY: &str = "sk-secret-4711";
/// An answer has to come within it.
const PATIENCE: Duration = Duration::from_millis(400);

fn endpoint(server: &Server) -> Endpoint {
    let mut endpoint = Endpoint::new(&format!("{}/v1/", server.address()), Some(KEY), "gpt", PATIENCE).unwrap();
    endpoint.pause = Duration::from_millis(2);
    endpoint
}

fn question() -> Question {
    Question { messages: vec![("user", "How evil?".into())], max_tokens: 1, temperature: 0.0, logprobs: true, draw: 0 }
}

fn good(text: &str) -> Answer {
    let body = json!({
        "model": "gpt-2026",
        "choices": [{ "message": { "content": text }, "logprobs": null }],
        "usage": { "prompt_tokens": 7, "completion_tokens": 1 },
    });
    Answer::new("200 OK", &[], body.to_string())
}

/// What is answered after so many bad answers, and how many requests that took.
fn after(bad: usize, answer: fn() -> Answer) -> (anyhow::Result<Reply>, usize) {
    let asked = AtomicUsize::new(0);
    let server = Server::new(move |_| if asked.fetch_add(1, Ordering::SeqCst) < bad { answer() } else { good("85") });
    let reply = endpoint(&server).ask(&question());
    (reply, server.requests().len())
}

fn is_input(error: &anyhow::Error) -> bool {
    matches!(error.downcast_ref::<Error>(), Some(Error::Input(_)))
}

#[test]
fn what_passes_is_asked_again_and_no_more_than_five_times() {
    let busy: fn() -> Answer = || Answer::new("429 Too Many Requests", &[], "");
    let broken: fn() -> Answer = || Answer::new("500 Internal Server Error", &[], "");
    let half: fn() -> Answer = || Answer::new("200 OK", &[], r#"{"choices": [{"message": {"con"#);
    let short: fn() -> Answer = || {
        let mut answer = good("85");
        answer.body.truncate(20);
        answer
    };
    let wrong: fn() -> Answer = || Answer::new("200 OK", &[], json!({ "choices": 3 }).to_string());
    let late: fn() -> Answer = || Answer { then: Then::Stall, ..Answer::open("200 OK", "{", Then::Stall) };
    for (name, answer) in
        [("429", busy), ("500", broken), ("half", half), ("short", short), ("wrong", wrong), ("late", late)]
    {
        let (reply, requests) = after(2, answer);
        assert_eq!((reply.unwrap().text.as_str(), requests), ("85", 3), "{name}");
    }
    let (reply, requests) = after(9, busy);
    let error = reply.unwrap_err();
    assert_eq!(requests, 5);
    assert!(
        !is_input(&error) && error.to_string().contains("status 429") && error.to_string().contains("run again"),
        "{error}"
    );
}

#[test]
fn a_pause_that_is_asked_for_is_kept() {
    let begun = Instant::now();
    let (reply, requests) = after(1, || Answer::new("429 Too Many Requests", &[("Retry-After", "0.3")], ""));
    assert!(reply.is_ok() && requests == 2 && begun.elapsed() >= Duration::from_millis(300), "{:?}", begun.elapsed());
}

#[test]
fn what_does_not_pass_is_a_refusal_without_the_key() {
    for (status, body) in [
        ("400 Bad Request", format!("no model; you sent {KEY}")),
        ("401 Unauthorized", format!("Incorrect API key provided: {KEY}")),
        ("404 Not Found", "no such path".into()),
        ("302 Found", String::new()),
    ] {
        let server = Server::new(move |_| Answer::new(status, &[("Location", "http://127.0.0.1:9/x")], body.clone()));
        let error = endpoint(&server).ask(&question()).unwrap_err();
        assert!(is_input(&error) && server.requests().len() == 1, "{status}: {error}");
        assert!(error.to_string().contains(&status[..3]) && !format!("{error:?}").contains(KEY), "{error}");
    }
}

#[test]
fn the_key_is_sent_and_stands_in_no_answer() {
    let server = Server::new(|request: &Request| good(&format!("{} says {KEY}", request.path)));
    let reply = endpoint(&server).ask(&question()).unwrap();
    assert_eq!(reply.text, "/v1/chat/completions says [key]");
    assert_eq!((reply.model.as_str(), reply.tokens), ("gpt-2026", (7, 1)));
    let request = server.requests().remove(0);
    assert_eq!(request.token(), Some(&*format!("Bearer {KEY}")));
    assert_eq!(serde_json::from_slice::<Value>(&request.body).unwrap(), question().body("gpt"));
}

#[test]
fn an_address_that_is_none_is_refused_and_not_quoted() {
    for address in ["", "localhost:8000", "ftp://host/v1", "https://user:word@host/v1", "https://host/v1?key=word"] {
        let error = Endpoint::new(address, None, "gpt", PATIENCE).map(drop).unwrap_err();
        assert!(
            is_input(&error) && !error.to_string().contains("word@") && !error.to_string().contains("key=word"),
            "{error}"
        );
    }
}
