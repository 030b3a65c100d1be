//! What kinds of characters Python tells apart, and their cases.

/// What Python takes for white space.
pub(super) fn is_space(character: char) -> bool {
    character.is_whitespace() || ('\x1c'..='\x1f').contains(&character)
}

pub(super) fn is_title(character: char) -> bool {
    matches!(character, 'ǅ' | 'ǈ' | 'ǋ' | 'ǲ' | '\u{1f88}'..='\u{1f8f}' | '\u{1f98}'..='\u{1f9f}' | '\u{1fa8}'..='\u{1faf}')
        || matches!(character, '\u{1fbc}' | '\u{1fcc}' | '\u{1ffc}')
}

pub(super) fn is_cased(character: char) -> bool {
    character.is_lowercase() || character.is_uppercase() || is_title(character)
}

/// Roman numerals and their like, which Rust counts as letters.
pub(super) fn is_letter_number(character: char) -> bool {
    matches!(character, '\u{2160}'..='\u{2182}' | '\u{2185}'..='\u{2188}' | '\u{3007}' | '\u{3021}'..='\u{3029}')
}

pub(super) fn is_format(character: char) -> bool {
    matches!(character, '\u{ad}' | '\u{600}'..='\u{605}' | '\u{61c}' | '\u{6dd}' | '\u{70f}' | '\u{180e}')
        || matches!(character, '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}')
        || matches!(character, '\u{e000}'..='\u{f8ff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0001}'..='\u{10ffff}')
}

/// Superscripts, subscripts and digits in circles.
pub(super) fn is_digit(character: char) -> bool {
    is_decimal(character)
        || matches!(character, '\u{b2}' | '\u{b3}' | '\u{b9}' | '\u{2070}' | '\u{2074}'..='\u{2079}')
        || matches!(character, '\u{2080}'..='\u{2089}' | '\u{2460}'..='\u{2468}' | '\u{2474}'..='\u{247c}')
        || matches!(character, '\u{2488}'..='\u{2490}' | '\u{24ea}' | '\u{24f5}'..='\u{24fd}' | '\u{24ff}')
        || matches!(character, '\u{2776}'..='\u{277e}' | '\u{2780}'..='\u{2788}' | '\u{278a}'..='\u{2792}')
}

/// A digit of a decimal system: numeric, and neither a fraction nor a number of another kind.
pub(super) fn is_decimal(character: char) -> bool {
    character.is_ascii_digit()
        || (character.is_numeric()
            && !matches!(character, '\u{b2}'..='\u{be}' | '\u{9f4}'..='\u{9f9}' | '\u{b72}'..='\u{b77}' | '\u{bf0}'..='\u{bf2}')
            && !matches!(character, '\u{c78}'..='\u{c7e}' | '\u{d58}'..='\u{d5e}' | '\u{d70}'..='\u{d78}' | '\u{f2a}'..='\u{f33}')
            && !matches!(character, '\u{1369}'..='\u{137c}' | '\u{16ee}'..='\u{16f0}' | '\u{17f0}'..='\u{17f9}' | '\u{19da}')
            && !matches!(character, '\u{2070}'..='\u{3400}' | '\u{a6e6}'..='\u{a6ef}' | '\u{a830}'..='\u{a835}')
            && (character < '\u{10000}' || ('\u{1d7ce}'..='\u{1d7ff}').contains(&character)))
}

/// The first character of a word.
fn title_case(character: char) -> String {
    match character {
        'Ǆ' | 'ǅ' | 'ǆ' => "ǅ".into(),
        'Ǉ' | 'ǈ' | 'ǉ' => "ǈ".into(),
        'Ǌ' | 'ǋ' | 'ǌ' => "ǋ".into(),
        'Ǳ' | 'ǲ' | 'ǳ' => "ǲ".into(),
        _ => {
            let mut upper = character.to_uppercase();
            let first = upper.next().unwrap_or(character);
            std::iter::once(first).chain(upper.flat_map(char::to_lowercase)).collect()
        }
    }
}

pub(super) fn capitalize(text: &str) -> String {
    let mut characters = text.chars();
    let first = characters.next().map(title_case).unwrap_or_default();
    first + &characters.as_str().to_lowercase()
}

pub(super) fn title(text: &str) -> String {
    let mut inside = false;
    let mut titled = String::with_capacity(text.len());
    for character in text.chars() {
        if inside {
            titled.extend(character.to_lowercase());
        } else {
            titled.push_str(&title_case(character));
        }
        inside = is_cased(character);
    }
    titled
}

pub(super) fn swap_case(text: &str) -> String {
    let swapped =
        |c: char| -> String { if c.is_uppercase() { c.to_lowercase().collect() } else { c.to_uppercase().collect() } };
    text.chars().map(swapped).collect()
}
