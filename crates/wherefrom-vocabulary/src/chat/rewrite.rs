//! Tags in words that minijinja has: Python's `%`, defaults that name other parameters, and filters that refuse what is
//! assigned or iterated over.

use super::tokens::{Kind, Token};

/// Filter for `%`.
pub(super) const REMAINDER: &str = "wherefrom_remainder";
/// Filter for what is assigned.
pub(super) const ASSIGNED: &str = "wherefrom_assigned";

/// Filter for what is iterated over.
pub(super) const ITERATED: &str = "wherefrom_iterated";

/// `set name = value`, the value through the filter that refuses deep ones.
pub(super) fn assigned(mut tokens: Vec<Token>) -> Vec<Token> {
    if let Some(equals) = tokens.iter().position(|token| token.text == "=") {
        let value = written(tokens.split_off(equals + 1));
        tokens.push(Token::operand(format!(" ({})|{ASSIGNED} ", value.trim())));
    }
    tokens
}

/// `macro name(a, b=default)`: a default may name what comes before it, which minijinja does not know there yet.
pub(super) fn parameters(tokens: Vec<Token>) -> String {
    let (mut depth, mut names, mut late, mut start) = (0_usize, Vec::new(), Vec::new(), None);
    for (index, token) in tokens.iter().enumerate() {
        let ends = depth == 1 && (token.kind == Kind::Close || token.text == ",");
        if let (true, Some(from)) = (ends, start) {
            let default: &[Token] = &tokens[from..index];
            // An operator that is rewritten is one token.
            let names_one = |name: &&String| default.iter().any(|token| token.text.contains(&name[..]));
            if names[..names.len() - 1].iter().any(|name| names_one(&name)) {
                late.push((names[names.len() - 1].clone(), from - 1..index));
            }
            start = None;
        }
        match token.kind {
            Kind::Open => depth += 1,
            Kind::Close => depth = depth.saturating_sub(1),
            Kind::Name if depth == 1 && start.is_none() => names.push(token.text.clone()),
            Kind::Operator if depth == 1 && start.is_none() && token.text == "=" && !names.is_empty() => {
                start = Some(index + 1);
            }
            _ => {}
        }
    }
    let kept = |index: &usize| !late.iter().any(|(_, range)| range.contains(index));
    let head = (0..tokens.len()).filter(kept).map(|index| tokens[index].clone()).collect();
    let set = |(name, range): &(String, std::ops::Range<usize>)| {
        let default = written(tokens[range.start + 1..range.end].to_vec());
        format!(" %}}{{% if {name} is undefined %}}{{% set {name} = ({}) %}}{{% endif", default.trim())
    };
    written(head) + &late.iter().map(set).collect::<String>()
}

/// `for name in values`, the values through the filter that refuses what Python cannot iterate over.
pub(super) fn iterated(mut tokens: Vec<Token>) -> Vec<Token> {
    let mut depth = 0_usize;
    let (mut start, mut end) = (None, tokens.len());
    for (index, token) in tokens.iter().enumerate() {
        match (token.kind, &token.text[..]) {
            (Kind::Open, _) => depth += 1,
            (Kind::Close, _) => depth = depth.saturating_sub(1),
            (Kind::Name, "in") if depth == 0 && start.is_none() => start = Some(index + 1),
            (Kind::Name, "if" | "recursive") if depth == 0 && start.is_some() => {
                end = index;
                break;
            }
            _ => {}
        }
    }
    let Some(start) = start.filter(|&start| start < end) else { return tokens };
    let values = written(tokens[start..end].to_vec());
    tokens.splice(start..end, [Token::operand(format!(" ({})|{ITERATED}", values.trim()))]);
    tokens
}

/// `left % right` as `(left)|remainder(right)`, from the innermost brackets out and from left to right.
pub(super) fn remainders(mut tokens: Vec<Token>) -> Vec<Token> {
    loop {
        let mut depth = 0_usize;
        let mut found: Option<(usize, usize)> = None;
        for (index, token) in tokens.iter().enumerate() {
            match token.kind {
                Kind::Open => depth += 1,
                Kind::Close => depth = depth.saturating_sub(1),
                _ if token.text == "%" && found.is_none_or(|(_, deepest)| depth > deepest) => {
                    found = Some((index, depth));
                }
                _ => {}
            }
        }
        let Some((at, _)) = found else { return tokens };
        let (start, end) = (left(&tokens, at), right(&tokens, at));
        let (left, right) = (tokens[start..at].to_vec(), tokens[at + 1..end].to_vec());
        let text = format!(" ({})|{REMAINDER}({})", written(left).trim(), written(right).trim());
        tokens.splice(start..end, [Token::operand(text)]);
    }
}

/// Where the left operand of the `%` at `at` begins: products are read from left to right.
fn left(tokens: &[Token], at: usize) -> usize {
    let (mut start, mut depth) = (at, 0_usize);
    while start > 0 {
        let token = &tokens[start - 1];
        match token.kind {
            Kind::Close => depth += 1,
            Kind::Open if depth == 0 => break,
            Kind::Open => depth -= 1,
            _ if depth == 0 && token.ends_product(tokens[..start - 1].last()) => break,
            _ => {}
        }
        start -= 1;
    }
    start
}

/// Where the right operand of the `%` at `at` ends.
fn right(tokens: &[Token], at: usize) -> usize {
    let (mut end, mut depth, mut test) = (at + 1, 0_usize, false);
    while let Some(token) = tokens.get(end) {
        let factor = ["*", "/", "//", "%"].contains(&&token.text[..]);
        match token.kind {
            Kind::Open => depth += 1,
            Kind::Close if depth == 0 => break,
            Kind::Close => depth -= 1,
            // A test belongs to the operand before it.
            _ if token.text == "is" || (test && token.text == "not") => {}
            _ if depth == 0 && (factor || token.ends_product(tokens[..end].last())) => break,
            _ => {}
        }
        test = token.text == "is";
        end += 1;
    }
    end
}

/// The text of tokens.
pub(super) fn written(tokens: Vec<Token>) -> String {
    tokens.into_iter().map(|token| token.space + &token.text).collect()
}
