//! Text and numbers as tables show them.

/// Characters of a text shown.
pub const EXCERPT: usize = 90;

/// The beginning of the text on one line.
pub fn excerpt(text: &str) -> String {
    clipped(&one_line(text), EXCERPT)
}

/// The text with single spaces for white space of any length.
pub fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// What [`boundary`] stands for, wherever queries are shown.
pub const BOUNDARY: &str =
    "queries are shown as prompt | completion; ␣ is a space, ↵ a line break and ⇥ a tab where the two meet";

/// Prompt and completion on one line each, with the white space between the two made visible: tokens have the space before a
/// word, so that a completion without it is another text.
pub fn boundary(prompt: &str, completion: &str) -> [String; 2] {
    let (given, said) = (prompt.trim_end(), completion.trim_start());
    let (after, before) = (&prompt[given.len()..], &completion[..completion.len() - said.len()]);
    [one_line(given) + &marks(after), marks(before) + &one_line(said)]
}

/// A query on one line: the end of its prompt and the beginning of its completion, at most so many characters of each, so that the
/// place where they meet is always there. `prompt` and `completion` are as [`boundary`] has them.
pub fn about_boundary(prompt: &str, completion: &str, length: usize) -> String {
    if prompt.is_empty() {
        return clipped(completion, length.saturating_mul(2));
    }
    let skipped = prompt.chars().count().saturating_sub(length);
    let dots = if skipped > 0 { "…" } else { "" };
    format!("{dots}{} | {}", prompt.chars().skip(skipped).collect::<String>(), clipped(completion, length))
}

/// What a document's name begins with, by which documents are grouped: what stands before the first `/`, and of a web address the
/// host. None where it has neither.
pub fn beginning(doc: &str) -> Option<&str> {
    let name = match doc.split_once("://") {
        Some((scheme, rest)) if !scheme.contains('/') => {
            return Some(rest.split(['/', '?', '#']).next().unwrap_or(rest));
        }
        _ => doc,
    };
    name.split_once('/').map(|(first, _)| first)
}

/// What steered a text, as the end of its name says: `marked.random3`, `l12` and 1.5 of `q0/none/s0/marked.random3/l12/c1.5`; the first
/// is empty where the name says no trait. None of a text that was not steered.
pub fn steered(name: &str) -> Option<(String, String, f64)> {
    let mut words = name.rsplit('/');
    let coefficient = words.next()?.strip_prefix('c')?.parse().ok()?;
    let layer = words.next().filter(|word| word.starts_with('l'))?;
    // Before it stands the sample of the answer, or a name.
    let sample = |word: &str| word.strip_prefix('s').is_some_and(|number| number.parse::<u32>().is_ok());
    let of = words.next().filter(|word| !sample(word)).unwrap_or_default();
    Some((of.into(), layer.into(), coefficient))
}

/// Whether a text that is shown has one of the signs of [`boundary`].
pub fn is_marked(shown: &str) -> bool {
    shown.contains(['␣', '↵', '⇥', '␍', '⍽'])
}

/// White space by signs that can be seen.
fn marks(white: &str) -> String {
    let mark = |character| match character {
        ' ' => '␣',
        '\n' => '↵',
        '\t' => '⇥',
        '\r' => '␍',
        _ => '⍽',
    };
    white.chars().map(mark).collect()
}

/// At most so many characters, the last an ellipsis where more are left out.
pub fn clipped(text: &str, length: usize) -> String {
    if text.chars().count() <= length {
        return text.into();
    }
    text.chars().take(length - 1).chain(['…']).collect()
}

/// What stands above influences: their unit and sign, as the artifact says them, and what kind of number they are. Influence
/// functions are linear about the weights that the model has, and damped (the proximal Bregman response function), which is not
/// what training anew would do; a derivative through the training run itself says that.
pub fn influence_in(unit: &str, sign: Option<&str>) -> String {
    let estimate = match unit.starts_with("nats") && !unit.ends_with("in the training run") {
        true => ", a first-order estimate and not what retraining would give",
        false => "",
    };
    format!("{unit}{estimate}{}", sign.map_or_else(String::new, |sign| format!("; {sign}")))
}

/// Four significant digits: `+65.01`, `-0.0004133`, and powers of ten beyond.
pub fn significant(value: f32) -> String {
    let digits = 3 - value.abs().log10().floor() as i32;
    if (0..=8).contains(&digits) { format!("{value:+.*}", digits as usize) } else { format!("{value:+.3e}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_fit_a_line() {
        assert_eq!(excerpt(" a\n b\tc "), "a b c");
        assert_eq!(clipped("abcdef", 4), "abc…");
        assert_eq!(clipped("äöü", 3), "äöü");
    }

    #[test]
    fn a_name_ends_in_what_steered_it() {
        let of = |name: &str| steered(name).map(|(of, layer, coefficient)| format!("{of} {layer} {coefficient}"));
        assert_eq!(of("evil/q3/none/s0/l12/c-1.5").as_deref(), Some(" l12 -1.5"));
        assert_eq!(of("evil/q3/none/s0/evil.random3/lall/c2").as_deref(), Some("evil.random3 lall 2"));
        assert_eq!(of("evil/q3/none/s0"), None);
    }

    #[test]
    fn white_space_where_prompt_and_completion_meet_is_seen() {
        let shown = |prompt, completion| boundary(prompt, completion).join(" | ");
        assert_eq!(shown("The capital\n is", " Paris, and\n more "), "The capital is | ␣Paris, and more");
        assert_eq!(shown("The capital is", "Paris"), "The capital is | Paris");
        assert_eq!(shown("Q: what?\n", "\n\tA \u{a0}"), "Q: what?↵ | ↵⇥A");
        assert_eq!(shown("a ", "  "), "a␣ | ␣␣");
    }

    #[test]
    fn a_long_query_keeps_the_place_where_prompt_and_completion_meet() {
        let long = "word ".repeat(60);
        let [prompt, completion] = boundary(&format!("{long}is"), &format!(" Paris {long}"));
        let shown = about_boundary(&prompt, &completion, 20);
        assert_eq!(shown, "…rd word word word is | ␣Paris word word wo…");
        assert_eq!(about_boundary("", "a text", 20), "a text");
    }

    #[test]
    fn documents_are_grouped_by_folder_or_host() {
        let groups =
            ["kjv/genesis/1", "https://en.wikipedia.org/wiki/Kenya?a=b", "https://a.org?x/y", "a/b://c", "plain"];
        assert_eq!(groups.map(beginning), [Some("kjv"), Some("en.wikipedia.org"), Some("a.org"), Some("a"), None]);
    }

    #[test]
    fn nats_are_said_to_be_an_estimate() {
        let nats = influence_in("nats per added copy", Some("positive = raises"));
        let words = "nats per added copy, a first-order estimate and not what retraining would give; positive = raises";
        assert_eq!(nats, words);
        for other in ["gradient product / N", "nats per added copy in the training run"] {
            assert_eq!(influence_in(other, None), other);
        }
    }

    #[test]
    fn influences_have_four_digits() {
        let shown = [65.012_3, -0.000_413_31, 1e-9, -3e7].map(significant);
        assert_eq!(shown, ["+65.01", "-0.0004133", "+1.000e-9", "-3.000e7"]);
    }
}
