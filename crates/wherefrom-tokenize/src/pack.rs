//! Documents side by side in windows of `max-tokens`, and long ones in pieces.
//!
//! A document that does not fit into what is left of a window begins the next. One that is longer than a window is split;
//! each piece begins with the last token of the one before, so that every target has something before it and is a target
//! once. Nothing else is put before a piece: training on concatenated text has no beginning of text there either.

use wherefrom_artifact::Example;
use wherefrom_vocabulary::Encoder;

use crate::tokenize::Attend;

/// Windows in the making.
pub(crate) struct Packer<'a> {
    max: usize,
    attend: Attend,
    encoder: Option<&'a Encoder>,
    open: Example,
    /// Windows that are full.
    pub(crate) full: Vec<Example>,
}

impl<'a> Packer<'a> {
    pub(crate) fn new(max: usize, attend: Attend, encoder: Option<&'a Encoder>) -> Self {
        Self { max, attend, encoder, open: Example::default(), full: Vec::new() }
    }

    /// Adds a document, whole or in pieces.
    pub(crate) fn add(&mut self, document: Example) -> Result<(), String> {
        if document.input_ids.len() <= self.max {
            self.place(document);
            return Ok(());
        }
        for piece in pieces(&document, self.max, self.encoder)? {
            self.place(Example { docs: document.docs.clone(), rows: document.rows.clone(), ..piece });
        }
        Ok(())
    }

    /// Puts a piece of at most `max` tokens into the open window, or into a new one.
    fn place(&mut self, piece: Example) {
        if self.open.input_ids.len() + piece.input_ids.len() > self.max {
            self.close();
        }
        let open = &mut self.open;
        if !open.input_ids.is_empty() {
            open.text.push('\n');
        }
        open.doc_starts.push(open.input_ids.len() as u32);
        open.docs.extend(piece.docs);
        open.rows.extend(piece.rows);
        open.input_ids.extend(piece.input_ids);
        open.target_mask.extend(piece.target_mask);
        open.text.push_str(&piece.text);
    }

    /// Ends the open window.
    pub(crate) fn close(&mut self) {
        let mut window = std::mem::take(&mut self.open);
        if window.doc_starts.len() > 1 && self.attend == Attend::Document {
            window.segments = window.doc_starts.clone();
        }
        if !window.input_ids.is_empty() {
            self.full.push(window);
        }
    }
}

/// The pieces of a document of more than `max` tokens that have targets, without a name; their texts are decoded.
pub(crate) fn pieces(document: &Example, max: usize, encoder: Option<&Encoder>) -> Result<Vec<Example>, String> {
    let tokens = document.input_ids.len();
    let (mut pieces, mut start) = (Vec::new(), 0);
    while start + 1 < tokens {
        let kept = start..(start + max).min(tokens);
        start = kept.end - 1;
        let mut target_mask = document.target_mask[kept.clone()].to_vec();
        target_mask[0] = false;
        if target_mask.contains(&true) {
            let input_ids = document.input_ids[kept].to_vec();
            let text = encoder.map_or(Ok(String::new()), |encoder| encoder.decode(&input_ids))?;
            pieces.push(Example { input_ids, target_mask, text, ..Example::default() });
        }
    }
    Ok(pieces)
}
