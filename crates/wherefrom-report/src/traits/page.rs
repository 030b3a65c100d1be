//! The page of a trait: one HTML file with its style inside, and no script.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use maud::{DOCTYPE, Markup, PreEscaped, html};
use sha2::{Digest as _, Sha256};
use wherefrom_artifact::visible;

use super::Config;
use super::figures::{Lines, ends, histogram, number};
use super::read::{Apart, Coloured, Cosines, Direction, Portrait, Side, Steered, Steering};

const STYLE: &str = concat!(include_str!("../../assets/report.css"), include_str!("../../assets/trait.css"));
/// Characters of a prompt that are shown, from its end.
const PROMPT: usize = 400;
/// Shades of a token on either side of the mean.
const SHADES: f64 = 4.0;

/// The whole file.
pub(super) fn page(config: &Config, portrait: &Portrait) -> String {
    let about = &portrait.persona.about;
    let title = visible(config.title.as_deref().unwrap_or(&about.name));
    let policy = format!(
        "default-src 'none'; style-src 'sha256-{}'; base-uri 'none'; form-action 'none'",
        STANDARD.encode(Sha256::digest(STYLE))
    );
    let absent = absent(portrait);
    let markup = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta http-equiv="Content-Security-Policy" content=(policy);
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta name="color-scheme" content="light dark";
                title { (title) }
                style { (PreEscaped(STYLE)) }
            }
            body.trait {
                a.skip href="#main" { "Skip to the results" }
                header {
                    h1 { (title) }
                    p.lead { (visible(&about.description)) }
                    dl.facts {
                        @for (name, value) in facts(portrait) { div { dt { (name) } dd { (visible(&value)) } } }
                    }
                }
                main id="main" tabindex="-1" {
                    @if !absent.is_empty() {
                        details.missing {
                            summary { "Not on this page: " (absent.iter().map(|(what, _)| *what).collect::<Vec<_>>().join(", ")) }
                            p { "The step `trait-report` shows them when its `inputs` have" }
                            ul { @for (what, roles) in &absent { li { code { (roles) } ": " (what) } } }
                        }
                    }
                    (orders(portrait))
                    @if portrait.sides.iter().any(Option::is_some) { (answers(portrait)) }
                    @if let Some(direction) = &portrait.direction { (norms(direction)) }
                    @if !portrait.apart.is_empty() { (held_out(&portrait.apart)) }
                    @if !portrait.steering.is_empty() {
                        section id="steering" {
                            h2 { "Steering" }
                            @for curve in &portrait.steering { (steering(curve, &about.name)) }
                            @if !portrait.examples.is_empty() { (side_by_side(&portrait.examples)) }
                        }
                    }
                    @if let Some(coloured) = &portrait.coloured { (tokens(coloured)) }
                    @if let Some(cosines) = &portrait.cosines { (between(cosines)) }
                }
            }
        }
    };
    markup.into_string()
}

fn facts(portrait: &Portrait) -> Vec<(&'static str, String)> {
    let about = &portrait.persona.about;
    let mut facts = vec![("trait", about.name.clone()), ("its opposite", about.negative.clone())];
    facts.extend(portrait.judge.clone().map(|judge| ("judge", judge)));
    if let Some(direction) = &portrait.direction {
        facts.push(("direction", format!("of {} pairs, over {}", direction.pairs, direction.over)));
    }
    facts
}

/// What is not shown, and the inputs that bring it.
fn absent(portrait: &Portrait) -> Vec<(&'static str, &'static str)> {
    let controls = |sites: &Direction, random: bool| {
        sites.sites.iter().any(|at| if random { !at.random.is_empty() } else { !at.shuffled.is_empty() })
    };
    let lacks = |random| portrait.direction.as_ref().is_none_or(|direction| !controls(direction, random));
    let band = portrait.steering.iter().all(|curve| curve.controls.is_empty());
    let all = [
        (
            portrait.sides.iter().any(Option::is_none),
            "answers and their scores",
            "positive, negative, positive-judgements, negative-judgements",
        ),
        (portrait.direction.is_none(), "the direction, site by site", "vectors"),
        (lacks(false), "shuffled directions", "controls"),
        (lacks(true), "random directions", "random"),
        (
            portrait.apart.is_empty(),
            "held-out answers along the direction",
            "positive-projections, negative-projections",
        ),
        (
            !portrait.apart.is_empty() && portrait.apart.iter().all(|at| at.controls.is_empty()),
            "held-out answers along random directions",
            "random-positive-projections, random-negative-projections",
        ),
        (portrait.steering.is_empty(), "steered answers", "steered, steered-judgements"),
        (
            !portrait.steering.is_empty() && band,
            "answers steered by random directions",
            "random-steered, random-steered-judgements",
        ),
        (
            portrait.coloured.is_none(),
            "tokens by their projection",
            "eval-positive, eval-negative, with projections by-token = true",
        ),
        (portrait.cosines.is_none(), "cosines with other traits", "other-vectors"),
    ];
    all.into_iter().filter(|(absent, ..)| *absent).map(|(_, what, roles)| (what, roles)).collect()
}

/// What the model was told and asked.
fn orders(portrait: &Portrait) -> Markup {
    let persona = &portrait.persona;
    html! {
        section id="orders" {
            h2 { "Orders and questions" }
            div.scroll tabindex="0" role="region" aria-label="Orders, table" {
                table {
                    thead { tr { th scope="col" { "For the trait" } th scope="col" { "Against it" } } }
                    tbody { @for pair in &persona.extract.instruction { tr { td { (visible(&pair.pos)) } td { (visible(&pair.neg)) } } } }
                }
            }
            @for (name, questions) in [("to find the direction", &persona.extract.questions), ("held out", &persona.eval.questions)] {
                details {
                    summary { (questions.len()) @if questions.len() == 1 { " question " } @else { " questions " } (name) }
                    ol { @for question in questions { li { (visible(question)) } } }
                }
            }
            details { summary { "What a judge that is a model is asked" } pre tabindex="0" { (visible(&persona.extract.eval_prompt)) } }
        }
    }
}

/// Both sides: each is what the other is held against.
fn answers(portrait: &Portrait) -> Markup {
    let named = ["Asked for the trait", "Asked against it"];
    let sides = || named.into_iter().zip(&portrait.sides).filter_map(|(name, side)| Some((name, side.as_ref()?)));
    html! {
        section id="answers" {
            h2 { "Answers and what was kept of them" }
            div.scroll tabindex="0" role="region" aria-label="Answers, table" {
                table {
                    thead { tr {
                        th scope="col" { "Side" }
                        @for name in ["Answers", "With a score", "Refused", "Empty", "Mean score", "Mean coherence", "Kept"] { th.number scope="col" { (name) } }
                        th scope="col" { "Why the others were not" }
                    } }
                    tbody { @for (name, side) in sides() { tr {
                        th scope="row" { (name) }
                        @for count in [side.answers, side.scored, side.refused, side.empty] { td.number { (count) } }
                        td.number { (number(side.mean)) }
                        td.number { (number(side.coherence)) }
                        td.number { @if let Some((_, kept)) = side.kept.first() { (kept) } }
                        td { (dropped(side)) }
                    } } }
                }
            }
            div.plots {
                @for ((name, side), class) in sides().zip(["positive", "negative"]) {
                    @if side.scored > 0 { (histogram(&format!("{name}: answers by score, 0 to 100."), &side.histogram, class)) }
                }
            }
            @for (name, side) in sides() {
                details {
                    summary { "The first answers: " (name.to_lowercase()) }
                    @for (text, score) in &side.texts {
                        div.answer {
                            p.note { bdi { (visible(&text.name)) } @if let Some(score) = score { ", score " (number((*score).into())) } }
                            p.prompt { (tail(&text.prompt)) }
                            p.said dir="auto" { (visible(&text.answer)) }
                        }
                    }
                }
            }
        }
    }
}

fn dropped(side: &Side) -> String {
    let reasons = side.kept.iter().skip(1).filter(|(_, count)| *count > 0);
    reasons.map(|(reason, count)| format!("{count} {reason}")).collect::<Vec<_>>().join(", ")
}

/// The end of a long prompt, which has the question.
fn tail(prompt: &str) -> String {
    let skipped = prompt.chars().count().saturating_sub(PROMPT);
    let end: String = prompt.chars().skip(skipped).collect();
    visible(&if skipped > 0 { format!("…{end}") } else { end })
}

/// Sites by their place: they are equally far apart, `post-norm` behind the last.
fn places<'a>(sites: impl Iterator<Item = &'a String>) -> Vec<(f64, String)> {
    sites.enumerate().map(|(place, site)| (place as f64, site.clone())).collect()
}

/// Lowest and highest of some values, if there are any.
fn band(values: &[f64]) -> Option<[f64; 2]> {
    (!values.is_empty()).then(|| ends(values))
}

fn norms(direction: &Direction) -> Markup {
    let sites = &direction.sites;
    // An imported vector has no median norm of the stream.
    let known = sites.iter().any(|at| at.share.is_finite());
    let shuffled = sites.iter().map(|at| at.shuffled.len()).max().unwrap_or(0);
    let random = sites.iter().map(|at| at.random.len()).max().unwrap_or(0);
    let longer =
        sites.iter().filter(|at| !at.shuffled.is_empty() && at.shuffled.iter().all(|other| *other < at.share)).count();
    let held = match shuffled {
        0 => String::new(),
        _ => format!(
            " The band is from the shortest to the longest of {shuffled} shuffled directions: v is longer than all of them at {longer} of {} sites.",
            sites.len()
        ),
    };
    let lines = Lines {
        says: format!("Length of the direction v over the median length of the residual stream, site by site.{held}"),
        x: "site: 0 are the embeddings, l is behind l blocks",
        y: "‖v‖ / median ‖h‖",
        places: places(sites.iter().map(|at| &at.site)),
        own: sites.iter().map(|at| at.share).collect(),
        band: sites.iter().map(|at| band(&at.shuffled)).collect(),
        includes: vec![0.0],
    };
    html! {
        section id="direction" {
            h2 { "The direction" }
            p.note { "v is the mean of the stream over the kept answers that show the trait, less the mean over those that do not." }
            @if known { (lines.drawn()) }
            details {
                summary { "Every site" }
                div.scroll tabindex="0" role="region" aria-label="Sites, table" {
                    table {
                        thead { tr {
                            th scope="col" { "Site" }
                            th.number scope="col" { abbr title="length of v, and its standard error over the pairs" { "‖v‖" } }
                            th.number scope="col" { "‖v‖ / median ‖h‖" }
                            @if shuffled > 0 { th.number scope="col" { "Shuffled, longest" } th.number scope="col" { "Longer than" } }
                            @if random > 0 { th.number scope="col" { abbr title="the cosine with a random direction that is furthest from 0" { "Cosine, random" } } }
                        } }
                        tbody { @for at in sites { tr {
                            th scope="row" { (at.site) }
                            td.number { (number(at.norm)) @if at.deviation.is_finite() { " ± " (number(at.deviation)) } }
                            td.number { (number(at.share)) }
                            @if shuffled > 0 {
                                td.number { (number(band(&at.shuffled).map_or(f64::NAN, |[_, high]| high))) }
                                td.number { (at.shuffled.iter().filter(|other| **other < at.share).count()) " of " (at.shuffled.len()) }
                            }
                            @if random > 0 {
                                td.number { (number(at.random.iter().fold(0.0, |far: f64, one| if one.abs() > far.abs() { *one } else { far }))) }
                            }
                        } } }
                    }
                }
            }
        }
    }
}

fn held_out(apart: &[Apart]) -> Markup {
    let controls = apart.iter().map(|at| at.controls.len()).max().unwrap_or(0);
    let [ones, others] = apart[0].answers;
    let band_of = match controls {
        0 => " Projections on random directions are not wired, so that there is no band: 0.5 is chance, and a random direction may lie some way from it.".to_string(),
        count => format!(" The band is that of {count} directions that stand for nothing."),
    };
    let lines = Lines {
        says: format!(
            "Held-out answers, {ones} asked for the trait and {others} against it: the share of pairs in which the first lies further along v (area under the curve).{band_of}"
        ),
        x: "site",
        y: "area under the curve",
        places: places(apart.iter().map(|at| &at.site)),
        own: apart.iter().map(|at| at.auroc).collect(),
        band: apart.iter().map(|at| band(&at.controls)).collect(),
        includes: vec![0.5, 1.0],
    };
    html! {
        section id="held-out" {
            h2 { "Held-out answers along the direction" }
            (lines.drawn())
            details {
                summary { "Every site" }
                div.scroll tabindex="0" role="region" aria-label="Held-out answers, table" {
                    table {
                        thead { tr {
                            th scope="col" { "Site" }
                            @for name in ["Area under the curve", "Controls", "Mean, for", "Mean, against"] { th.number scope="col" { (name) } }
                        } }
                        tbody { @for at in apart { tr {
                            th scope="row" { (at.site) }
                            td.number { (format!("{:.3}", at.auroc)) }
                            td.number { @if let Some([low, high]) = band(&at.controls) { (format!("{low:.3} to {high:.3}")) } }
                            @for mean in at.means { td.number { (number(mean)) } }
                        } } }
                    }
                }
            }
        }
    }
}

fn steering(curve: &Steering, name: &str) -> Markup {
    let at = |coefficient: f64| -> Vec<f64> {
        let of = |control: &Vec<(f64, f64)>| {
            control.iter().find(|(known, _)| *known == coefficient).map(|(_, score)| *score)
        };
        curve.controls.iter().filter_map(of).filter(|score| score.is_finite()).collect()
    };
    let layer = match &curve.layer[..] {
        "lall" => "all layers".to_string(),
        layer => format!("layer {}", layer.trim_start_matches('l')),
    };
    let band_of = match curve.controls.len() {
        0 => " No answers steered by directions that stand for nothing are wired.".to_string(),
        count => format!(" The bars are the lowest and highest of {count} directions that stand for nothing."),
    };
    let lines = Lines {
        says: format!(
            "Steering by c v at {layer}: mean score for {name} of the answers at each coefficient c.{band_of}"
        ),
        x: "coefficient c",
        y: "mean score",
        places: curve.points.iter().map(|(c, ..)| (*c, number(*c))).collect(),
        own: curve.points.iter().map(|(_, score, ..)| *score).collect(),
        band: curve.points.iter().map(|(c, ..)| band(&at(*c))).collect(),
        includes: vec![0.0, 100.0],
    };
    html! {
        (lines.drawn())
        div.scroll tabindex="0" role="region" aria-label="Steering, table" {
            table {
                thead { tr { @for name in ["Coefficient", "Mean score", "Controls", "Mean coherence", "Answers with a score"] { th.number scope="col" { (name) } } } }
                tbody { @for (c, score, coherence, scored) in &curve.points { tr {
                    th.number scope="row" { (number(*c)) }
                    td.number { (number(*score)) }
                    td.number { @if let Some([low, high]) = band(&at(*c)) { (number(low)) " to " (number(high)) } }
                    td.number { (number(*coherence)) }
                    td.number { (scored) }
                } } }
            }
        }
    }
}

fn side_by_side(examples: &[Steered]) -> Markup {
    html! {
        h3 { "The same prompt, steered and not" }
        @for example in examples {
            p.prompt { (tail(&example.prompt)) }
            div.beside {
                @for (name, answer, score) in &example.answers {
                    div.answer {
                        p.note { b { (visible(name)) } @if let Some(score) = score { ", score " (number((*score).into())) } }
                        p.said dir="auto" { (visible(answer)) }
                    }
                }
            }
        }
    }
}

fn tokens(coloured: &Coloured) -> Markup {
    let Coloured { site, centre, reach, texts } = coloured;
    let shade = |value: f64| {
        let shade = (SHADES * (value - centre) / reach.max(f64::MIN_POSITIVE)).round().clamp(-SHADES, SHADES) as i64;
        format!("t{}{}", if shade < 0 { "n" } else { "p" }, shade.abs())
    };
    html! {
        section id="tokens" {
            h2 { "Tokens by their projection" }
            p.note {
                "Held-out answers at site " (site) ": blue tokens lie further along v than the mean of all that are shown (" (number(*centre)) "), orange ones less far; the darkest by "
                (number(*reach)) ". The answers against the trait are what the others are held against."
            }
            @for (name, positive, pieces) in texts {
                div.answer {
                    p.note { bdi { (visible(name)) } ", asked " @if *positive { "for" } @else { "against" } " the trait" }
                    p.said dir="auto" { @for (text, value) in pieces { span class=(shade(*value)) title=(number(*value)) { (text) } } }
                }
            }
        }
    }
}

fn between(cosines: &Cosines) -> Markup {
    html! {
        section id="cosines" {
            h2 { "Cosines between traits" }
            div.scroll tabindex="0" role="region" aria-label="Cosines, table" {
                table {
                    thead { tr { th scope="col" { "Site " (cosines.site) } @for name in &cosines.names { th.number scope="col" { (visible(name)) } } } }
                    tbody { @for (name, row) in cosines.names.iter().zip(&cosines.values) { tr {
                        th scope="row" { (visible(name)) }
                        @for value in row { td.number { (format!("{value:.2}").replace('-', "−")) } }
                    } } }
                }
            }
            @if let Some((furthest, count)) = cosines.random {
                p.note { "Of " (count) " random directions the cosine with " (visible(&cosines.names[0])) " that is furthest from 0 is " (format!("{furthest:.2}").replace('-', "−")) "." }
            } @else {
                p.note { "No random directions are wired, which say how large a cosine is by chance." }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_a_long_prompt_the_end_is_shown() {
        let shown = tail(&format!("{}What now?", "x".repeat(2 * PROMPT)));
        assert!(shown.starts_with('…') && shown.ends_with("What now?"), "{shown}");
        assert_eq!(tail("short"), "short");
    }
}
