//! The tokens inside a tag of a template.

/// What a token is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Name,
    /// A number, or an expression that is finished.
    Operand,
    Text,
    Operator,
    Open,
    Close,
}

/// A token, with the white space before it.
#[derive(Debug, Clone)]
pub(super) struct Token {
    pub(super) kind: Kind,
    pub(super) space: String,
    pub(super) text: String,
}

/// Words that stand between operands.
const WORDS: [&str; 9] = ["and", "or", "not", "in", "is", "if", "else", "elif", "recursive"];

impl Token {
    /// A finished expression.
    pub(super) fn operand(text: String) -> Self {
        Self { kind: Kind::Operand, space: String::new(), text }
    }

    fn with(self, kind: Kind) -> Self {
        Self { kind, ..self }
    }

    fn is_word(&self) -> bool {
        self.kind == Kind::Name && WORDS.contains(&&self.text[..])
    }

    /// Whether it makes an expression one level deeper.
    pub(super) fn links(&self) -> bool {
        self.is_word()
            || self.kind == Kind::Open
            || (self.kind == Kind::Operator && ![",", ":"].contains(&&self.text[..]))
    }

    /// Whether a product ends at it, where `before` is the token before it.
    pub(super) fn ends_product(&self, before: Option<&Self>) -> bool {
        match &self.text[..] {
            // Of one operand.
            "+" | "-" => before
                .is_some_and(|before| before.kind != Kind::Operator && before.kind != Kind::Open && !before.is_word()),
            "**" | "*" | "/" | "//" | "%" | "." | "|" => false,
            _ => self.kind == Kind::Operator || self.is_word() || ["set", "print", "for"].contains(&&self.text[..]),
        }
    }
}

/// The tokens of a tag's inside.
pub(super) fn scan(text: &str) -> Result<Vec<Token>, String> {
    let mut tokens = Vec::new();
    let mut rest = text;
    loop {
        let start = rest.trim_start();
        let space = rest[..rest.len() - start.len()].to_string();
        let Some(first) = start.chars().next() else { return Ok(tokens) };
        let (kind, length) = match first {
            '\'' | '"' => (Kind::Text, quoted(start, first).ok_or("a text is not closed")?),
            '0'..='9' => (Kind::Operand, number(start)),
            '(' | '[' | '{' => (Kind::Open, 1),
            ')' | ']' | '}' => (Kind::Close, 1),
            _ if first.is_alphanumeric() || first == '_' => {
                let end = start.find(|c: char| !c.is_alphanumeric() && c != '_');
                (Kind::Name, end.unwrap_or(start.len()))
            }
            _ if ["**", "//", "==", "!=", "<=", ">="].iter().any(|operator| start.starts_with(operator)) => {
                (Kind::Operator, 2)
            }
            _ => (Kind::Operator, first.len_utf8()),
        };
        let mut text = start[..length].to_string();
        if kind == Kind::Text {
            text = quoted_again(&text);
        }
        // minijinja has no sign that changes nothing.
        if text != "+" || Token::operand(text.clone()).with(Kind::Operator).ends_product(tokens.last()) {
            tokens.push(Token { kind, space, text });
        }
        rest = &start[length..];
    }
}

/// A text whose escapes are Python's, with those alone that minijinja has.
fn quoted_again(text: &str) -> String {
    if !text.contains('\\') {
        return text.to_string();
    }
    let mut again = String::with_capacity(text.len());
    let mut rest = text.chars();
    while let Some(character) = rest.next() {
        if character != '\\' {
            again.push(character);
            continue;
        }
        let escape = rest.next().unwrap_or('\\');
        let code = |digits: usize, radix: u32| {
            let digits = rest.as_str().get(..digits)?;
            char::from_u32(u32::from_str_radix(digits, radix).ok()?)
        };
        let (found, used) = match escape {
            // Continued in the next line.
            '\n' => continue,
            'a' => (Some('\x07'), 0),
            'b' => (Some('\x08'), 0),
            'f' => (Some('\x0c'), 0),
            'n' => (Some('\n'), 0),
            'r' => (Some('\r'), 0),
            't' => (Some('\t'), 0),
            'v' => (Some('\x0b'), 0),
            'x' => (code(2, 16), 2),
            'u' => (code(4, 16), 4),
            'U' => (code(8, 16), 8),
            '0'..='7' => {
                let more = rest.as_str().bytes().take(2).take_while(|byte| (b'0'..=b'7').contains(byte)).count();
                let digits = format!("{escape}{}", &rest.as_str()[..more]);
                (u32::from_str_radix(&digits, 8).ok().and_then(char::from_u32), more)
            }
            _ => (None, 0),
        };
        match found {
            Some(found) => {
                rest = rest.as_str()[used..].chars();
                // What a quote or backslash stands for is written as one again.
                if matches!(found, '\\' | '\'' | '"') {
                    again.push('\\');
                }
                again.push(found);
            }
            None if matches!(escape, '\\' | '\'' | '"') => again.extend(['\\', escape]),
            None => again.extend(['\\', '\\', escape]),
        }
    }
    again
}

/// The length of a text in quotes.
fn quoted(text: &str, quote: char) -> Option<usize> {
    let mut escaped = false;
    for (index, character) in text.char_indices().skip(1) {
        match character {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            _ if character == quote => return Some(index + 1),
            _ => {}
        }
    }
    None
}

/// The length of a number.
fn number(text: &str) -> usize {
    let bytes = text.as_bytes();
    let digits =
        |from: usize| bytes[from..].iter().take_while(|byte| byte.is_ascii_alphanumeric() || **byte == b'_').count();
    let digit = |at: usize| bytes.get(at).is_some_and(u8::is_ascii_digit);
    let mut end = digits(0);
    if bytes.get(end) == Some(&b'.') && digit(end + 1) {
        end += 1 + digits(end + 1);
    }
    let exponent = matches!(bytes[end - 1], b'e' | b'E') && !text.starts_with("0x");
    if exponent && matches!(bytes.get(end), Some(b'+' | b'-')) && digit(end + 1) {
        end += 1 + digits(end + 1);
    }
    end
}
