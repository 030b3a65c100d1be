//! Text made safe to show: what has no shape of its own gets one.

/// Control characters as their pictures, and characters that turn the direction of text as `‹U+202E›`, so that a passage can
/// neither hide anything nor turn what stands beside it. Line feeds and tabs stay.
pub(crate) fn visible(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '\n' | '\t' => shown.push(character),
            '\0'..='\u{1f}' => shown.push(picture(character as u32)),
            '\u{7f}' => shown.push('\u{2421}'),
            '\u{80}'..='\u{9f}'
            | '\u{200b}'
            | '\u{200e}'
            | '\u{200f}'
            | '\u{2028}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}'
            | '\u{feff}'
            | '\u{fff0}'..='\u{fffb}' => shown.push_str(&format!("‹U+{:04X}›", character as u32)),
            _ => shown.push(character),
        }
    }
    shown
}

/// U+2400 and on are pictures of U+0000 and on.
fn picture(control: u32) -> char {
    char::from_u32(0x2400 + control).unwrap_or('\u{fffd}')
}
