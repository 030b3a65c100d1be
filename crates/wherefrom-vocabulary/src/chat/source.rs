//! The text of a template as minijinja takes it, and its limits.
//!
//! Jinja as `transformers` runs it has a tag of its own, `{% generation %}`, and Python's `%`, which formats text. Both are
//! put into words that minijinja has. What is assigned passes a filter that refuses deep values. Depth and length are
//! checked here because a parser that calls itself has no other end than that of its stack.

use super::rewrite::{assigned, iterated, parameters, remainders, written};
use super::tokens::{Kind, Token, scan};

/// Bytes of the longest template.
const LONGEST: usize = 1 << 20;
/// Blocks, and branches of one `if`, inside one another.
const BLOCKS: usize = 100;
/// Brackets inside one another in one tag.
const BRACKETS: usize = 64;
/// Operators in one tag.
const OPERATORS: usize = 1000;
/// Filter around what `{% generation %}` holds, and the variable that collects where it is.
pub(super) const GENERATION: &str = "wherefrom_generation";
pub(super) const SPANS: &str = "wherefrom_spans";
/// A template that minijinja takes.
pub(super) struct Source {
    pub(super) text: String,
    /// The template says itself what the assistant writes.
    pub(super) marks: bool,
    /// It asks whether the arguments of a call are text, so it takes them as they are.
    pub(super) takes_text_arguments: bool,
}

impl Source {
    /// Reads a template; what is refused is said.
    pub(super) fn new(template: &str) -> Result<Self, String> {
        if template.len() > LONGEST {
            return Err(format!("it has {} bytes and may have {LONGEST}", template.len()));
        }
        // As Jinja does before anything else.
        let template = template.replace("\r\n", "\n").replace('\r', "\n");
        let mut source =
            Self { text: String::with_capacity(template.len()), marks: false, takes_text_arguments: false };
        let (mut blocks, mut read) = (Vec::new(), 0);
        while let Some(start) = opener(&template[read..]) {
            let rest = &template[read + start..];
            let at = |what: String| format!("line {}: {what}", 1 + template[..read + start].matches('\n').count());
            source.text.push_str(&template[read..read + start]);
            let end = match verbatim(rest) {
                Some((end, raw)) => {
                    let (begin, inside) = rest[..end].split_at(raw);
                    source.text.push_str(begin);
                    // Jinja keeps a line that ends here, minijinja does not.
                    source.text.push_str(if inside.starts_with('\n') && !begin.ends_with("-%}") { "\n" } else { "" });
                    source.text.push_str(inside);
                    end
                }
                None => source.tag(rest, &mut blocks).map_err(at)?,
            };
            read += start + end;
        }
        source.text.push_str(&template[read..]);
        Ok(source)
    }

    /// Adds the tag that `text` begins with; its length.
    fn tag(&mut self, text: &str, blocks: &mut Vec<Open>) -> Result<usize, String> {
        let block = text.starts_with("{%");
        let (tag, end) = tag(text, if block { "%}" } else { "}}" }).ok_or("a tag is not closed")?;
        let tokens = scan(tag.inner)?;
        check(&tokens)?;
        supported(&tokens)?;
        self.takes_text_arguments |= asks_for_text_arguments(&tokens);
        if block {
            nest(blocks, &tokens)?;
        }
        self.push(&tag, block, tokens);
        Ok(end)
    }

    fn push(&mut self, tag: &Tag<'_>, block: bool, tokens: Vec<Token>) {
        let (opener, closer) = if block { ("{%", "%}") } else { ("{{", "}}") };
        let word = tokens.first().filter(|token| block && token.kind == Kind::Name).map(|token| &token.text[..]);
        let (left, right) = (tag.left, tag.right);
        // A frame of its own, as what a block of `transformers` sets is not seen outside.
        let inner = match word {
            Some("generation") => {
                self.marks = true;
                format!(" with %}}{{% filter {GENERATION}({SPANS}) ")
            }
            Some("endgeneration") => " endfilter %}{% endwith ".into(),
            Some("set") => written(assigned(remainders(tokens))),
            Some("for") => written(iterated(remainders(tokens))),
            Some("macro") => parameters(remainders(tokens)),
            _ => written(remainders(tokens)),
        };
        // What is rewritten keeps its lines, so that errors name the right one.
        let lines = tag.inner.matches('\n').count().saturating_sub(inner.matches('\n').count());
        self.text.push_str(&format!("{opener}{left}{inner}{} {right}{closer}", "\n".repeat(lines)));
    }
}

/// A tag's inside, and its signs about white space.
struct Tag<'a> {
    left: &'a str,
    inner: &'a str,
    right: &'a str,
}

/// Where the next tag or comment begins.
fn opener(text: &str) -> Option<usize> {
    let opens = |(at, _): &(usize, &str)| text[at + 1..].starts_with(['{', '%', '#']);
    text.match_indices('{').find(opens).map(|(at, _)| at)
}

/// The length of a comment or raw block that `text` begins with, and of its first tag.
fn verbatim(text: &str) -> Option<(usize, usize)> {
    if text.starts_with("{#") {
        return Some((text.find("#}").map_or(text.len(), |end| end + 2), 0));
    }
    let word = |text: &str, word: &str| {
        let inner = text.strip_prefix("{%")?;
        let inner = inner.strip_prefix(['-', '+']).unwrap_or(inner).trim_start().strip_prefix(word)?.trim_start();
        let inner = inner.strip_prefix(['-', '+']).unwrap_or(inner).strip_prefix("%}")?;
        Some(text.len() - inner.len())
    };
    let begin = word(text, "raw")?;
    let mut end = begin;
    loop {
        let Some(next) = text[end..].find("{%") else { return Some((text.len(), begin)) };
        end += next;
        match word(&text[end..], "endraw") {
            Some(length) => return Some((end + length, begin)),
            None => end += 2,
        }
    }
}

/// The tag that `text` begins with, and its length. Text in quotes and brackets hides what would close it.
fn tag<'a>(text: &'a str, closer: &str) -> Option<(Tag<'a>, usize)> {
    let signed = |text: &'a str| usize::from(text.starts_with(['-', '+']));
    let (bytes, left) = (text.as_bytes(), signed(&text[2..]));
    let (mut at, mut depth, mut quote) = (2 + left, 0_usize, None);
    while at < bytes.len() {
        let byte = bytes[at];
        match quote {
            Some(_) if byte == b'\\' => at += 1,
            Some(open) => quote = Some(open).filter(|&open| open != byte),
            None if depth == 0 && bytes[at..].starts_with(closer.as_bytes()) => {
                let right = usize::from(at > 2 + left && matches!(bytes[at - 1], b'-' | b'+'));
                let (inner, signs) = (&text[2 + left..at - right], &text[at - right..at]);
                return Some((Tag { left: &text[2..2 + left], inner, right: signs }, at + 2));
            }
            None => match byte {
                b'\'' | b'"' => quote = Some(byte),
                b'(' | b'[' | b'{' => depth += 1,
                b')' | b']' | b'}' => depth = depth.saturating_sub(1),
                _ => {}
            },
        }
        at += 1;
    }
    None
}

/// Refuses expressions that nest too deep.
fn check(tokens: &[Token]) -> Result<(), String> {
    let (mut depth, mut operators) = (0_usize, 0);
    for token in tokens {
        match token.kind {
            Kind::Open => depth += 1,
            Kind::Close => depth = depth.saturating_sub(1),
            _ => {}
        }
        operators += usize::from(token.links());
        if depth > BRACKETS {
            return Err(format!(
                "an expression is nested too deeply: more than {BRACKETS} brackets inside one another"
            ));
        }
        if operators > OPERATORS {
            return Err(format!("an expression is nested too deeply: more than {OPERATORS} operators in one tag"));
        }
    }
    Ok(())
}

/// Refuses what minijinja has otherwise, or not at all and without a word.
fn supported(tokens: &[Token]) -> Result<(), String> {
    let word = |at: usize| tokens.get(at).map(|token| &token.text[..]);
    if word(0) == Some("autoescape") && !matches!(word(1), Some("false" | "False")) {
        return Err("`autoescape` is not supported, but for `autoescape false`".into());
    }
    let names = |at: &usize| tokens[*at].kind == Kind::Name && (*at == 0 || word(*at - 1) != Some("."));
    match (0..tokens.len()).filter(names).find_map(|at| word(at).filter(|word| ["varargs", "kwargs"].contains(word))) {
        Some(word) => Err(format!("`{word}`, what a macro is given beside its parameters, is not supported")),
        None => Ok(()),
    }
}

/// A block that is open.
struct Open {
    word: String,
    branches: usize,
}

/// Follows which blocks are open.
fn nest(blocks: &mut Vec<Open>, tokens: &[Token]) -> Result<(), String> {
    let Some(word) = tokens.first().map(|token| &token.text[..]) else { return Ok(()) };
    let opens = ["if", "for", "macro", "call", "filter", "with", "block", "autoescape", "generation"];
    if opens.contains(&word) || (word == "set" && !tokens.iter().any(|token| token.text == "=")) {
        blocks.push(Open { word: word.into(), branches: 1 });
    } else if let ("elif", Some(block)) = (word, blocks.last_mut()) {
        block.branches += 1;
    } else if word.starts_with("end") {
        blocks.pop();
    } else if let "break" | "continue" = word
        && let Some(left) = blocks.iter().rev().find(|block| block.word != "if").filter(|block| block.word != "for")
    {
        // minijinja leaves the loop and not the block.
        return Err(format!("`{word}` inside `{}` inside a loop is not supported: put it after the block", left.word));
    }
    if blocks.iter().map(|block| block.branches).sum::<usize>() > BLOCKS {
        return Err(format!("blocks are nested too deeply: more than {BLOCKS} inside one another"));
    }
    Ok(())
}

/// `call.arguments is string`, and its like.
fn asks_for_text_arguments(tokens: &[Token]) -> bool {
    tokens.iter().enumerate().any(|(index, token)| {
        let mut rest = tokens[index + 1..].iter().map(|token| &token.text[..]);
        let test = rest.find(|text| !["]", "is", "not"].contains(text));
        token.text.trim_matches(['\'', '"']) == "arguments"
            && test.is_some_and(|test| ["string", "mapping"].contains(&test))
    })
}
