//! Text made safe to show: what has no shape of its own gets one.

/// A text in which nothing is hidden, and which turns nothing that stands beside it: control characters as their pictures
/// (`␛`), and whatever else has no shape, changes the direction of text, or stands for no character, as `‹U+202E›`. Line feeds
/// and tabs stay; so do joiners and variation selectors where a script or an emoji needs them.
pub fn visible(text: &str) -> String {
    visible_after(None, text)
}

/// As [`visible`], of a text that follows the character `before`.
pub fn visible_after(mut before: Option<char>, text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '\n' | '\t' | ' '..='~' => shown.push(character),
            '\0'..='\u{1f}' => shown.push(picture(character as u32)),
            '\u{7f}' => shown.push('\u{2421}'),
            _ if hidden(before, character) => shown.push_str(&format!("‹U+{:04X}›", character as u32)),
            _ => shown.push(character),
        }
        before = Some(character);
    }
    shown
}

/// U+2400 and on are pictures of U+0000 and on.
fn picture(control: u32) -> char {
    char::from_u32(0x2400 + control).unwrap_or('\u{fffd}')
}

/// Whether a character beyond ASCII cannot be seen where it stands.
fn hidden(before: Option<char>, character: char) -> bool {
    match character {
        '\u{200c}' | '\u{200d}' => {
            !before.is_some_and(|before| before == '\u{fe0f}' || joins(before) || pictures(before))
        }
        '\u{fe0e}' | '\u{fe0f}' => !before.is_some_and(pictures),
        '\u{fe00}'..='\u{fe0d}' => !before.is_some_and(|before| varies(before) || pictures(before)),
        '\u{e0100}'..='\u{e01ef}' => !before.is_some_and(varies),
        '\u{180b}'..='\u{180d}' | '\u{180f}' => !matches!(before, Some('\u{1820}'..='\u{18aa}')),
        // Letters and marks by their category, and blank all the same.
        '\u{34f}' | '\u{115f}' | '\u{1160}' | '\u{17b4}' | '\u{17b5}' | '\u{3164}' | '\u{ffa0}' => true,
        // Blank, and known to be.
        '\u{a0}' | '\u{1680}' | '\u{2000}'..='\u{200a}' | '\u{202f}' | '\u{205f}' | '\u{3000}' => false,
        // Format characters that have a shape.
        '\u{600}'..='\u{605}'
        | '\u{6dd}'
        | '\u{70f}'
        | '\u{890}'
        | '\u{891}'
        | '\u{8e2}'
        | '\u{110bd}'
        | '\u{110cd}' => false,
        _ => !printable(character),
    }
}

/// What the standard library prints as it is: no control or format character, separator, private use, or code point without a
/// character.
fn printable(character: char) -> bool {
    // After a letter, so that marks which combine with it are not counted as unprintable.
    let mut buffer = [b'a', 0, 0, 0, 0];
    let length = character.encode_utf8(&mut buffer[1..]).len();
    std::str::from_utf8(&buffer[..=length]).is_ok_and(|text| text.escape_debug().nth(1) == Some(character))
}

/// Letters whose shape depends on joiners after them: Arabic, Syriac, the scripts of India, Myanmar, Khmer, Mongolian.
fn joins(character: char) -> bool {
    matches!(character, '\u{620}'..='\u{dff}' | '\u{1000}'..='\u{109f}' | '\u{1780}'..='\u{17ff}' | '\u{1820}'..='\u{18aa}' | '\u{a840}'..='\u{abff}' | '\u{fb50}'..='\u{fdff}' | '\u{fe70}'..='\u{fefc}' | '\u{11000}'..='\u{11fff}')
        && printable(character)
}

/// Symbols, among them emoji, and what a keycap is made of.
fn pictures(character: char) -> bool {
    matches!(character, '0'..='9' | '#' | '*' | '\u{a9}' | '\u{ae}' | '\u{203c}' | '\u{2049}' | '\u{2122}' | '\u{2139}' | '\u{2190}'..='\u{2bff}' | '\u{3030}' | '\u{303d}' | '\u{3297}' | '\u{3299}' | '\u{1f000}'..='\u{1faff}')
}

/// Ideographs and mathematical signs.
fn varies(character: char) -> bool {
    matches!(character, '\u{2200}'..='\u{22ff}' | '\u{3001}'..='\u{9fff}' | '\u{f900}'..='\u{faff}' | '\u{ff01}'..='\u{ff60}' | '\u{20000}'..='\u{3ffff}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_of_any_script_stays() {
        for text in [
            "plain, with a tab\tand a line\n",
            "e\u{301} déjà vu naïve Ünïcödé ½ € “quotes” — …",
            "שָׁלוֹם العَرَبِيَّة فارسی می\u{200c}خواهم क्\u{200d}ष தமிழ் ไทย 한국어 日本語 中文 葛\u{e0100} ∩\u{fe00}",
            "👩\u{200d}👩\u{200d}👧 ❤\u{fe0f} 👍🏽 1\u{fe0f}\u{20e3} 🇰🇪 ☂\u{fe0e} 🏳\u{fe0f}\u{200d}🌈",
            "a\u{a0}b 1\u{202f}000 全角\u{3000}空白 \u{fffd}",
        ] {
            assert_eq!(visible(text), text);
        }
    }

    #[test]
    fn what_has_no_shape_is_named() {
        for (text, shown) in [
            ("\u{1b}[31m\u{7}\r\0\u{7f}", "␛[31m␇␍␀␡"),
            ("\u{9b}31m\u{85}", "‹U+009B›31m‹U+0085›"),
            ("a\u{202e}b\u{2066}c\u{2069}\u{200f}\u{61c}", "a‹U+202E›b‹U+2066›c‹U+2069›‹U+200F›‹U+061C›"),
            ("\u{e0041}\u{e007f}\u{e0001}", "‹U+E0041›‹U+E007F›‹U+E0001›"),
            ("🏴\u{e0067}\u{e0062}", "🏴‹U+E0067›‹U+E0062›"),
            (
                "a\u{200b}\u{2060}\u{feff}\u{ad}\u{34f}\u{180e}\u{2062}",
                "a‹U+200B›‹U+2060›‹U+FEFF›‹U+00AD›‹U+034F›‹U+180E›‹U+2062›",
            ),
            ("a\u{200d}b\u{200c}", "a‹U+200D›b‹U+200C›"),
            ("a\u{fe0f}x\u{fe01}", "a‹U+FE0F›x‹U+FE01›"),
            ("😀\u{fe0f}\u{fe0f}\u{fe0e}\u{e0101}", "😀\u{fe0f}‹U+FE0F›‹U+FE0E›‹U+E0101›"),
            ("字\u{e0101}\u{e0102}", "字\u{e0101}‹U+E0102›"),
            ("می\u{200c}\u{200c}\u{200d}", "می\u{200c}‹U+200C›‹U+200D›"),
            ("\u{fff9}a\u{fffa}b\u{fffb}", "‹U+FFF9›a‹U+FFFA›b‹U+FFFB›"),
            ("\u{2028}\u{2029}", "‹U+2028›‹U+2029›"),
            ("\u{378}\u{e000}\u{fdd0}\u{10ffff}\u{10fffe}", "‹U+0378›‹U+E000›‹U+FDD0›‹U+10FFFF›‹U+10FFFE›"),
            ("\u{3164}\u{ffa0}\u{115f}\u{1d173}\u{1bca0}", "‹U+3164›‹U+FFA0›‹U+115F›‹U+1D173›‹U+1BCA0›"),
        ] {
            assert_eq!(visible(text), shown);
        }
    }

    /// Nothing that Unicode says may be ignored in display is left, wherever it stands; and what is shown is shown again alike.
    #[test]
    fn nothing_ignorable_is_left_after_a_letter() {
        let ignorable = [
            0xad..=0xad,
            0x34f..=0x34f,
            0x61c..=0x61c,
            0x115f..=0x1160,
            0x17b4..=0x17b5,
            0x180b..=0x180f,
            0x200b..=0x200f,
            0x202a..=0x202e,
            0x2060..=0x206f,
            0x3164..=0x3164,
            0xfe00..=0xfe0f,
            0xfeff..=0xfeff,
            0xffa0..=0xffa0,
            0xfff0..=0xfff8,
            0x1bca0..=0x1bca3,
            0x1d173..=0x1d17a,
            0xe0000..=0xe0fff,
        ];
        for character in ignorable.into_iter().flatten().filter_map(char::from_u32) {
            for before in ["", "a", "é", "\u{202e}"] {
                let shown = visible(&format!("{before}{character}b"));
                assert!(!shown.contains(character), "U+{:04X} after {before:?}", character as u32);
                assert_eq!(visible(&shown), shown);
            }
        }
    }

    #[test]
    fn a_text_in_pieces_is_shown_as_the_whole() {
        let text = "👩\u{200d}👧 a\u{200d} می\u{200c}خ";
        let mut before = None;
        let pieces: String = text
            .chars()
            .map(|character| {
                let shown = visible_after(before, &character.to_string());
                before = Some(character);
                shown
            })
            .collect();
        assert_eq!(pieces, visible(text));
    }
}
