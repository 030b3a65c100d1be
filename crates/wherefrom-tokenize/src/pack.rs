//! Documents side by side in windows of `max-tokens`.
//!
//! A document that does not fit into what is left of a window begins the next. One that is longer than a window is split;
//! each piece begins with the last token of the one before, so that every target has something before it and is a target
//! once.

use wherefrom_artifact::Example;

use crate::encoder::Encoder;
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

    /// Adds a document, whole or in pieces; says whether it was split.
    pub(crate) fn add(&mut self, document: Example) -> Result<bool, String> {
        let tokens = document.input_ids.len();
        if tokens <= self.max {
            self.place(document);
            return Ok(false);
        }
        let mut start = 0;
        while start + 1 < tokens {
            let kept = start..(start + self.max).min(tokens);
            let mut target_mask = document.target_mask[kept.clone()].to_vec();
            target_mask[0] = false;
            let next = kept.end - 1;
            if target_mask.contains(&true) {
                let input_ids = document.input_ids[kept].to_vec();
                let text = self.encoder.map_or(Ok(String::new()), |encoder| encoder.decode(&input_ids))?;
                self.place(Example { docs: document.docs.clone(), input_ids, target_mask, text, ..Example::default() });
            }
            start = next;
        }
        Ok(true)
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
