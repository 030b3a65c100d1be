//! The page: one HTML file with its style, its script and its data inside.

use anyhow::Result;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use maud::{DOCTYPE, Markup, PreEscaped, html};
use serde::Serialize;
use serde_json::json;
use sha2::{Digest as _, Sha256};
use wherefrom_artifact::text::{BOUNDARY, influence_in, is_marked, significant};
use wherefrom_artifact::{bytes, grouped, visible};

use crate::Config;
use crate::gather::{Gathered, Summary};
use crate::header::{Header, Made};
use crate::statistics::PowerLaw;

const STYLE: &str = include_str!("../assets/report.css");
const SCRIPT: &str = include_str!("../assets/report.js");
/// Columns of the table of all queries: name in a download, meaning, heading.
const QUERY_COLUMNS: [(&str, &str, &str); 6] = [
    ("log_p", "log-probability of the completion (less that of what it is against), nats, and its tokens", "log p"),
    ("strongest_positive", "influence of the strongest proponent", "Strongest +"),
    ("strongest_negative", "influence of the strongest opponent", "Strongest −"),
    (
        "top_1_percent",
        "share of the positive influence that the strongest 1 % of the sequences with positive influence hold",
        "Top 1 %",
    ),
    (
        "participation_ratio",
        "participation ratio (Σx)² / Σx²: positive influence is as concentrated as if so many sequences had all of it, in equal parts",
        "Effective",
    ),
    (
        "power_law",
        "exponent of the power law of the tail, its standard error, and the p-value; below 0.1 the law is rejected",
        "Power law",
    ),
];

/// JSON that may stand inside a `<script>`: no `<` can end the element or begin a comment.
pub(crate) fn embedded(value: &impl Serialize) -> Result<String> {
    Ok(serde_json::to_string(value)?
        .replace('<', "\\u003c")
        .replace('\u{2028}', "\\u2028")
        .replace('\u{2029}', "\\u2029"))
}

/// What a browser lets the page do: its own style and its own script, and whatever that script loads, which is the files of
/// queries beside the page. Nothing else is fetched, run or sent, whatever a text should bring about.
fn policy() -> String {
    let digest = |text: &str| STANDARD.encode(Sha256::digest(text));
    format!(
        "default-src 'none'; script-src 'strict-dynamic' 'sha256-{}'; style-src 'sha256-{}'; base-uri 'none'; form-action 'none'",
        digest(SCRIPT),
        digest(STYLE)
    )
}

/// The whole file. `inline` is the JSON of the queries that lie in it.
pub(crate) fn page(
    config: &Config,
    header: &Header,
    gathered: &Gathered,
    summaries: &[Summary],
    inline: &[(u32, String)],
) -> Result<String> {
    let title = visible(&config.title);
    let unit = header.unit.as_deref().unwrap_or("the unit of the scores");
    let sign = header.sign.as_deref().unwrap_or("positive = one more copy raises log p(completion)");
    let study = embedded(&json!({
        "title": title,
        "grid": gathered.grid,
        "queries": summaries,
        "profile": average(summaries),
        "unit": header.unit,
        "sign": header.sign,
        "groupings": gathered.grouped.groupings(),
        "columns": gathered.columns.iter().map(|column| visible(&column.name)).collect::<Vec<_>>(),
    }))?;
    let markup = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta http-equiv="Content-Security-Policy" content=(policy());
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta name="color-scheme" content="light dark";
                title { (title) }
                style { (PreEscaped(STYLE)) }
            }
            body {
                a.skip href="#main" { "Skip to the results" }
                header {
                    h1 { (title) }
                    p.lead {
                        (grouped(summaries.len() as u64)) @if summaries.len() == 1 { " query" } @else { " queries" } ". " @if is_influence(unit) { "Influence in " } @else { "Not influence, but " } (visible(&influence_in(unit, Some(sign)))) "."
                    }
                    dl.facts {
                        @for (name, value) in &header.facts { div { dt { (name) } dd { (visible(value)) } } }
                    }
                }
                nav aria-label="Queries" {
                    label.find { span { "Search" } input type="search" id="find" placeholder="Queries and passages" autocomplete="off"; }
                    details id="browse" open {
                        summary { "Queries" }
                        a.all href="#all" { "All queries" }
                        div id="pager" {}
                        div id="queries" {
                            @for summary in summaries {
                                a href=(format!("#query-{}", summary.query)) title=(summary.excerpt) {
                                    span.number { (summary.query) } " " bdi { (summary.name) }
                                }
                            }
                        }
                    }
                    div id="found" role="region" aria-label="Passages found" aria-live="polite" {}
                }
                main id="main" tabindex="-1" {
                    p.lost id="lost" role="status" hidden {}
                    (missing(header, gathered, summaries))
                    section id="study" aria-labelledby="study-title" { (study_section(header, summaries)) }
                    article id="query" hidden {}
                    noscript { p.note { "The queries are drawn by a script, which this browser does not run." } }
                }
                script type="application/json" id="data-study" { (PreEscaped(study)) }
                @for (query, json) in inline {
                    script type="application/json" id=(format!("data-query-{query}")) { (PreEscaped(json)) }
                }
                script { (PreEscaped(SCRIPT)) }
            }
        }
    };
    Ok(markup.into_string())
}

/// Whether numbers of this unit say what a copy of a row does. A projection alone says how far the row lies along a direction.
fn is_influence(unit: &str) -> bool {
    !unit.starts_with("projection") || unit.contains("per added copy")
}

/// Mean of the queries' layer profiles.
fn average(summaries: &[Summary]) -> Option<Vec<f64>> {
    let profiles: Vec<_> = summaries.iter().filter_map(|summary| summary.profile.as_ref()).collect();
    let layers = profiles.first()?.len();
    Some(
        (0..layers)
            .map(|layer| profiles.iter().map(|profile| profile[layer]).sum::<f64>() / profiles.len() as f64)
            .collect(),
    )
}

fn study_section(header: &Header, summaries: &[Summary]) -> Markup {
    html! {
        div.top { h2 id="study-title" { "All queries" } div.buttons id="study-buttons" {} }
        div.scroll tabindex="0" role="region" aria-label="All queries, table" {
            table.queries {
                thead { tr {
                    th scope="col" data-name="query" { "Query" }
                    @for (name, title, text) in QUERY_COLUMNS { th.number scope="col" data-name=(name) { abbr title=(title) { (text) } } }
                } }
                tbody { @for summary in summaries { (query_row(summary)) } }
            }
        }
        @if summaries.iter().any(|summary| is_marked(&summary.text)) { p.note { (first_upper(BOUNDARY)) "." } }
        h3 { "Where in the model, average over all queries" }
        div id="average-profile" {}
        h3 id="artifacts" { "Artifacts and cost" }
        p { "Every number on this page is in one of these tables. Links open the folder beside this report's." }
        div.scroll tabindex="0" role="region" aria-label="Artifacts, table" {
            table.artifacts {
                thead { tr {
                    th scope="col" { "Kind" } th scope="col" { "Stage" } th scope="col" { "Key" }
                    th.number scope="col" { "Rows" } th.number scope="col" { "Size" }
                    th.number scope="col" { "Wall time" } th.number scope="col" { "Tokens / s" } th scope="col" { "Device" }
                } }
                tbody { @for made in &header.artifacts { (artifact_row(made)) } }
            }
        }
        @if header.lost > 0 {
            p.note { (header.lost) " artifacts before these are not in the store any more." }
        }
        details.lines {
            summary { "How to open them" }
            @for made in &header.artifacts {
                @if let Some(lines) = made.lines() {
                    p { (made.kind.name()) " " code { (&made.key[..made.key.len().min(12)]) } }
                    pre tabindex="0" { @for line in lines { (visible(&line)) "\n" } }
                }
            }
        }
    }
}

fn query_row(summary: &Summary) -> Markup {
    let distribution = summary.distribution.as_ref();
    let concentration = distribution.and_then(|found| found.concentration.as_ref());
    let law = distribution.and_then(|found| found.power_law.as_ref());
    html! {
        tr data-query=(summary.query) {
            th scope="row" {
                a href=(format!("#query-{}", summary.query)) { span.number { (summary.query) } " " bdi { (summary.name) } }
                p.excerpt dir="auto" { (summary.excerpt) }
            }
            td.number data-value=[summary.log_p] {
                @if let Some(log_p) = summary.log_p { (format!("{log_p:.2}").replace('-', "−")) small { " / " (summary.targets) } }
            }
            @for strongest in summary.strongest {
                td.number data-value=[strongest] { @if let Some(value) = strongest { (significant(value).replace('-', "−")) } }
            }
            td.number data-value=[concentration.map(|found| found.shares[1].share)] {
                @if let Some(found) = concentration { (format!("{:.1} %", 100.0 * found.shares[1].share)) }
            }
            td.number data-value=[concentration.map(|found| found.participation_ratio)] {
                @if let Some(found) = concentration { (format!("{:.1}", found.participation_ratio)) }
            }
            td.number data-value=[law.map(|law| law.alpha)] { @if let Some(law) = law { (power_law(law)) } }
        }
    }
}

fn power_law(law: &PowerLaw) -> Markup {
    html! {
        (format!("{:.2} ± {:.2}", law.alpha, law.alpha_error))
        small { " p " @if law.p * (law.samples as f64) < 1.0 { "< " (1.0 / law.samples as f64) } @else { (format!("= {:.2}", law.p)) } @if law.p < 0.1 { " (rejected)" } }
    }
}

fn artifact_row(made: &Made) -> Markup {
    let key = &made.key[..made.key.len().min(12)];
    html! {
        tr {
            th scope="row" { (made.kind.name()) }
            td { (visible(&made.stage)) }
            td { @if let Some(link) = &made.link { a href=(link) { code { (key) } } } @else { code { (key) } } }
            td.number { @if made.rows > 0 { (grouped(made.rows)) } }
            td.number { (bytes(made.bytes as f64)) }
            td.number { @if let Some(seconds) = made.seconds { (time(seconds)) } }
            td.number { @if let Some(rate) = made.tokens_per_second { (grouped(rate.round() as u64)) } }
            td { @if let Some(device) = &made.device { (visible(device)) } }
        }
    }
}

/// What is not shown, and which input of the step brings it.
fn missing(header: &Header, gathered: &Gathered, summaries: &[Summary]) -> Markup {
    let has = |found: fn(&Summary) -> bool| summaries.iter().any(found);
    let absent = [
        (
            gathered.grid.modules.is_empty(),
            "shares by token and by module",
            "details",
            "a second step of stage = \"score\", with the ranking as `candidates` and detail = true",
        ),
        (!gathered.has_queries(), "the tokens of the queries", "queries", "the step that tokenises the queries"),
        (
            !has(|summary| summary.log_p.is_some()),
            "the queries' log-probabilities",
            "losses",
            "a step of stage = \"losses\", with the queries as `tokens`",
        ),
        (
            !has(|summary| summary.distribution.is_some()),
            "distributions and shares of the total",
            "scores",
            "the step of stage = \"score\" that the ranking was made from",
        ),
        (
            !gathered.has_tokenizer(),
            "the words of the tokens",
            "tokenizer",
            "the path of a tokenizer.json, beside `inputs`",
        ),
    ];
    let absent: Vec<_> = absent.into_iter().filter(|(absent, ..)| *absent).collect();
    let what: Vec<&str> = absent.iter().map(|(_, what, ..)| *what).collect();
    html! {
        @if !absent.is_empty() {
            details.missing {
                summary { "Not on this page: " (what.join(", ")) }
                p { "The step `report` of the pipeline shows them when it is given" }
                ul { @for (_, what, role, from) in &absent { li { code { (role) } ", " (from) ": " (what) } } }
            }
        }
        @if header.unit.is_none() { p.note { "The ranking does not say the unit of its influences." } }
    }
}

/// A sentence of a note.
fn first_upper(text: &str) -> String {
    let mut characters = text.chars();
    characters.next().map_or_else(String::new, |first| first.to_uppercase().chain(characters).collect())
}

/// `0.4 s`, `12 min 5 s`, `3 h 20 min`.
fn time(seconds: f64) -> String {
    let whole = seconds.round() as u64;
    match whole {
        0..60 => format!("{seconds:.1} s"),
        60..3600 => format!("{} min {} s", whole / 60, whole % 60),
        _ => format!("{} h {} min", whole / 3600, whole % 3600 / 60),
    }
}
