//! A prompt and what is measured after it, encoded as the one text that they are, as a training row of the same text is.

use wherefrom_artifact::Example;
use wherefrom_vocabulary::Encoder;

use crate::notes::Notes;
use crate::window::{Window, targets_from, weighted};

pub(crate) const NO_COMPLETION: &str = "the row has no completion tokens; give it a `completion`; only where the model itself \
    is to write one, set `untargeted = \"keep\"` and add a `generate` step";
pub(crate) const NO_CONTRAST: &str = "`contrast` has no tokens; give it text or remove the key";
const NOTHING_BEFORE: &str = "nothing comes before the completion: the tokenizer puts no token before a text and has none that \
    is known to begin or end one, and position 0 can never be a target; give the row a `prompt`, or `input_ids`";

/// A text of which the end is measured.
pub(crate) struct Measured {
    pub(crate) text: String,
    /// Byte where what is measured begins.
    pub(crate) start: usize,
}

impl Measured {
    /// All of the text is given, and the model is to go on from it.
    pub(crate) fn nothing(text: String) -> Self {
        Self { start: text.len(), text }
    }
}

/// Its tokens.
struct Piece {
    of: Measured,
    ids: Vec<u32>,
    /// Tokens before the first that is measured.
    given: usize,
    /// The first that is measured begins before `start`.
    shared: bool,
}

impl Piece {
    fn new(of: Measured, encoder: &Encoder) -> Result<Self, String> {
        let measured = of.start..of.text.len();
        let tokens = encoder.encode_measured(&of.text, std::slice::from_ref(&measured))?;
        let first = tokens.targets.iter().position(|&target| target);
        let shared = first.is_some_and(|first| tokens.starts[first] < of.start);
        Ok(Self { given: first.unwrap_or(tokens.ids.len()), shared, ids: tokens.ids, of })
    }

    fn completion(&self) -> usize {
        self.ids.len() - self.given
    }
}

/// `prefix`, the text before what is measured, and what is measured, its targets, in at most `max` tokens: a long prompt
/// loses its beginning, then a long completion its end. A rival gets a segment of its own with weight -1; its prompt loses
/// as much. Where nothing is given, the text begins with the tokenizer's token for that.
pub(crate) fn measured(
    own: Measured,
    rival: Option<Measured>,
    prefix: &[u32],
    encoder: &Encoder,
    max: usize,
) -> Result<Window, String> {
    let own = Piece::new(own, encoder)?;
    let rival = rival.map(|rival| Piece::new(rival, encoder)).transpose()?;
    if own.completion() == 0 && own.of.start < own.of.text.len() {
        return Err(NO_COMPLETION.into());
    }
    if rival.as_ref().is_some_and(|rival| rival.completion() == 0) {
        return Err(NO_CONTRAST.into());
    }
    let pair = || [Some(&own), rival.as_ref()].into_iter().flatten();
    let most = |count: fn(&Piece) -> usize| pair().map(count).max().unwrap_or(0);
    let (given, completion) = (most(|piece| piece.given), most(Piece::completion));
    let begun = prefix.is_empty() && pair().any(|piece| piece.given == 0);
    let prefix = if begun { vec![encoder.start.ok_or(NOTHING_BEFORE)?] } else { prefix.to_vec() };
    let room = if completion < max { max - completion } else { max / 2 };
    let kept = &prefix[..prefix.len().min(room)];
    let dropped = given.saturating_sub(room - kept.len());
    // The difference of what is left of two texts is not that of the texts.
    if rival.is_some() && (completion >= max || kept.is_empty() && pair().any(|piece| piece.given <= dropped)) {
        let least = pair().map(|piece| piece.given).min().unwrap_or(0);
        return Err(format!(
            "the completion has {completion} tokens, its prompt {}, and max-tokens = {max} must hold the whole completion, or \
             its rival, and one token before it; set max-tokens to {} or more, or shorten the completion",
            prefix.len() + given,
            completion + 1 + given - least,
        ));
    }
    let mut notes = Notes { begun, shared: pair().any(|piece| piece.shared), ..Notes::default() };
    let mut example = |Piece { of, ids, given, .. }: Piece| {
        let dropped = dropped.min(given);
        let mut input_ids = [kept, &ids[dropped..]].concat();
        notes.lost_targets += input_ids.len().saturating_sub(max) as u64;
        input_ids.truncate(max);
        notes.lost += (prefix.len() + ids.len() - input_ids.len()) as u64;
        Example {
            target_mask: targets_from(kept.len() + given - dropped, input_ids.len()),
            input_ids,
            completion_start: u32::try_from(of.start).unwrap_or(0),
            text: of.text,
            ..Example::default()
        }
    };
    let own = example(own);
    let example = match rival.map(&mut example) {
        Some(rival) => weighted(vec![(own, 1.0), (rival, -1.0)]),
        None => own,
    };
    Ok(Window { example, notes })
}
