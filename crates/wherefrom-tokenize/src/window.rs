//! One row to token windows: targets, special tokens, truncation, and the weighted segments of a query.

use std::ops::Range;

use wherefrom_artifact::Example;
use wherefrom_vocabulary::{Chat, Conversation, Encoder, role};

use crate::boundary::glued;
use crate::measured::{Measured, NO_COMPLETION, NO_CONTRAST, measured};
use crate::notes::Notes;
use crate::pack;
use crate::pairs::Pair;
use crate::row::{Content, Row};
use crate::tokenize::{Config, Untargeted, Windowing};

/// What is said of a text of no characters.
pub(crate) const EMPTY: &str =
    "the text is empty; remove the row, or set untargeted = \"skip\" to leave such rows out and count them";
const SAMPLED: &str =
    "the row asks for `samples`, which the model is to write; set untargeted = \"keep\" and add a `generate` step";
const NO_TARGETS: &str = "the row has no targets: all its tokens are given, or it has one token only, and position 0 can never be a \
    target; give it more tokens, or set untargeted = \"skip\" to leave such rows out and count them";

/// Whether a row says nothing that could be predicted.
pub(crate) fn says_nothing(content: &Content) -> bool {
    match content {
        Content::Null(_) => true,
        Content::Text(text) => text.is_empty(),
        Content::Prompt { completion, samples: None, .. } => completion.as_ref().is_none_or(String::is_empty),
        Content::Instruction(instruction) => instruction.output.is_empty(),
        Content::Messages(turns) => !turns.messages.iter().any(|turn| role(turn) == "assistant"),
        _ => false,
    }
}

/// Rows to windows of at most `max` tokens a segment.
pub(crate) struct Windows<'a> {
    /// What a window is.
    pub(crate) config: &'a Config,
    /// `config.max_tokens`; no bound where windows are packed or split after.
    pub(crate) max: usize,
    /// Needed for rows of text.
    pub(crate) encoder: Option<&'a Encoder>,
    /// Needed for conversations.
    pub(crate) chat: Option<&'a Chat>,
}

/// A window and what was done to its row.
#[derive(Debug, Clone)]
pub(crate) struct Window {
    /// The row of the artifact, without a number.
    pub(crate) example: Example,
    /// What the row's user should know.
    pub(crate) notes: Notes,
}

impl<'a> Windows<'a> {
    /// Windows as `config` has them.
    pub(crate) fn new(config: &'a Config, encoder: Option<&'a Encoder>, chat: Option<&'a Chat>) -> Self {
        let max = if config.windows == Windowing::Truncate { config.max_tokens } else { usize::MAX };
        Self { config, max, encoder, chat }
    }

    /// The windows of a row whose name is `document` if it has none: one, or one a sample or piece; none where the row is left
    /// out; or why there is none and what to do.
    pub(crate) fn windows(&self, row: Row, document: String) -> Result<Vec<Window>, String> {
        let skips = self.config.untargeted == Untargeted::Skip;
        if skips && says_nothing(&row.content) {
            return Ok(Vec::new());
        }
        let samples = if let Content::Prompt { samples, .. } = &row.content { *samples } else { None };
        let mut window = match self.window(row.content) {
            Err(what) if skips && what == EMPTY => return Ok(Vec::new()),
            window => window?,
        };
        let example = &mut window.example;
        if !example.target_mask.contains(&true) {
            match self.config.untargeted {
                Untargeted::Refuse => return Err(NO_TARGETS.into()),
                Untargeted::Skip => return Ok(Vec::new()),
                Untargeted::Keep => {}
            }
        }
        let id = row.id.unwrap_or(document);
        example.doc_starts = vec![0];
        let Some(samples) = samples else {
            example.docs = vec![id];
            return self.split(window);
        };
        let sample = |number| {
            let mut window = window.clone();
            window.example.docs = vec![format!("{id}/sample-{number}")];
            window
        };
        Ok((1..=samples).map(sample).collect())
    }

    /// The window; with `windows = "split"` the pieces of one that is longer than `max-tokens`.
    fn split(&self, window: Window) -> Result<Vec<Window>, String> {
        let Window { example, notes } = window;
        if self.config.windows != Windowing::Split || example.input_ids.len() <= self.config.max_tokens {
            return Ok(vec![Window { example, notes }]);
        }
        let mut pieces = pack::pieces(&example, self.config.max_tokens, self.encoder)?;
        for (number, piece) in (1..).zip(&mut pieces) {
            piece.docs = vec![format!("{}/piece-{number}", example.docs[0])];
            piece.doc_starts = vec![0];
        }
        Ok(pieces.into_iter().map(|example| Window { example, notes: notes.clone() }).collect())
    }

    fn window(&self, content: Content) -> Result<Window, String> {
        match content {
            Content::Text(text) => self.text(text),
            Content::Messages(messages) => self.messages(&messages),
            Content::Prompt { samples: Some(_), .. } if self.config.untargeted != Untargeted::Keep => {
                Err(SAMPLED.into())
            }
            Content::Prompt { completion: None, instead: Some(found), .. }
                if self.config.untargeted != Untargeted::Keep =>
            {
                Err(format!(
                    "the row has no `completion`, but `{found}`: if that is what is measured, set columns = {{ completion = \
                     \"{found}\" }}"
                ))
            }
            Content::Prompt { prompt, completion, contrast, .. } => self.prompt(prompt, completion, contrast),
            Content::Instruction(row) => {
                let output = Some(row.output.clone());
                let prompt = if self.config.chat { row.asked() } else { row.prompt() };
                let window = self.prompt(prompt, output, None)?;
                Ok(Window { notes: Notes { instruction: true, moved: false, ..window.notes }, ..window })
            }
            Content::Pair(pair) => {
                let window = self.pair(pair)?;
                Ok(Window { notes: Notes { pair: true, ..window.notes }, ..window })
            }
            Content::Null(what) => Err(what),
            Content::Mean(items) => self.mean(items),
            Content::Ids { ids, mask } => self.ids(ids, mask),
        }
    }

    fn encoder(&self) -> Result<&Encoder, String> {
        self.encoder.ok_or_else(|| {
            "the row is text and there is no tokenizer: none lies beside the model; set tokenizer = \"FOLDER/tokenizer.json\", or \
             give `input_ids`"
                .into()
        })
    }

    fn chat(&self) -> Result<&Chat, String> {
        self.chat.ok_or_else(|| {
            "the row is a conversation and there is no chat template; name the model's tokenizer_config.json: \
             chat-template = \"FOLDER/tokenizer_config.json\""
                .into()
        })
    }

    /// prefix + text + suffix, cut at the end.
    fn text(&self, text: String) -> Result<Window, String> {
        let encoder = self.encoder()?;
        let ids = encoder.encode(&text)?;
        if ids.is_empty() {
            return Err(EMPTY.into());
        }
        let ids = [&encoder.prefix[..], &ids, &encoder.suffix].concat();
        let mask = targets_from(1, ids.len());
        Ok(self.kept(&ids, &mask, Example { text, ..Example::default() }))
    }

    /// The conversation as the chat template renders it, encoded once, the assistant's turns its targets.
    fn messages(&self, conversation: &Conversation) -> Result<Window, String> {
        let (encoder, chat) = (self.encoder()?, self.chat()?);
        if self.config.untargeted == Untargeted::Keep
            && conversation.messages.last().is_some_and(|last| role(last) != "assistant")
        {
            return measured(Measured::nothing(chat.asked(conversation)?), None, &[], encoder, self.max);
        }
        let rendered = chat.answered(conversation)?;
        let tokens = encoder.encode_measured(&rendered.text, &rendered.answers)?;
        if !tokens.targets.contains(&true) {
            return Err("no turn of `messages` is the assistant's, so nothing is predicted; add an answer, or set \
                        `untargeted = \"keep\"` and a `generate` step if the model is to write it"
                .into());
        }
        let completion_start = rendered.answers.last().map_or(0, |answer| answer.start) as u32;
        let example = Example { completion_start, text: rendered.text, ..Example::default() };
        Ok(self.kept(&tokens.ids, &tokens.targets, example))
    }

    /// A prompt and what follows it; with `chat` they are what a user asks and the assistant answers.
    fn prompt(&self, prompt: String, completion: Option<String>, contrast: Option<String>) -> Result<Window, String> {
        let completion = completion.filter(|completion| !completion.is_empty());
        if completion.is_none() && (self.config.untargeted != Untargeted::Keep || contrast.is_some()) {
            return Err(NO_COMPLETION.into());
        }
        if contrast.is_some() && contrast == completion {
            return Err(
                "`contrast` is the `completion` again, so that nothing is compared; give another text, or leave it out"
                    .into(),
            );
        }
        if contrast.as_ref().is_some_and(String::is_empty) {
            return Err(NO_CONTRAST.into());
        }
        if self.config.chat {
            return self.asked(prompt, completion, contrast);
        }
        let encoder = self.encoder()?;
        let Some(completion) = completion else {
            return measured(Measured::nothing(prompt), None, &encoder.prefix, encoder, self.max);
        };
        // The space before a word is a part of its token: a prompt that ends in one is cut before it.
        let start = prompt.trim_end().len();
        let glued = [Some(&completion), contrast.as_ref()].into_iter().flatten().find_map(|text| glued(&prompt, text));
        let after = |completion: String| Measured { text: prompt.clone() + &completion, start };
        let mut window = measured(after(completion), contrast.map(after), &encoder.prefix, encoder, self.max)?;
        window.notes.moved = start < prompt.len();
        window.notes.glued = glued;
        Ok(window)
    }

    /// What a user asks and the assistant answers, as the chat template renders it.
    fn asked(&self, prompt: String, completion: Option<String>, contrast: Option<String>) -> Result<Window, String> {
        let (encoder, chat) = (self.encoder()?, self.chat()?);
        let asked = ("user", prompt);
        let answered = |content: String| {
            let rendered = chat.answered(&Conversation::of([asked.clone(), ("assistant", content)]))?;
            let answer = rendered.answers.last().ok_or("the chat template says nowhere what the assistant answers")?;
            Ok::<_, String>(Measured { text: rendered.text[..answer.end].into(), start: answer.start })
        };
        let own = match completion {
            Some(completion) => answered(completion)?,
            None => Measured::nothing(chat.asked(&Conversation::of([asked.clone()]))?),
        };
        let mut window = measured(own, contrast.map(answered).transpose()?, &[], encoder, self.max)?;
        // A template's last token before an answer may well hold its beginning.
        window.notes.shared = false;
        Ok(window)
    }

    /// The chosen answer against the rejected one, as a completion against its rival.
    fn pair(&self, pair: Pair) -> Result<Window, String> {
        let conversations = match pair {
            Pair::Texts { asked: false, .. } if self.config.chat => {
                return Err(
                    "chat = true makes a `prompt` what a user asks, and the pair has none; give it one, or turns"
                        .into(),
                );
            }
            Pair::Texts { prompt, chosen, rejected, .. } => return self.prompt(prompt, Some(chosen), Some(rejected)),
            Pair::Turns(conversations) => conversations,
        };
        let mut sides = Vec::new();
        for (conversation, weight) in conversations.iter().zip([1.0, -1.0]) {
            let window = self.messages(conversation)?;
            if window.notes.lost > 0 {
                // The difference of what is left of two texts is not that of the texts.
                return Err(format!(
                    "a conversation of the pair has {} tokens, and max-tokens = {} must hold it; raise max-tokens, or leave the row \
                     out",
                    window.example.input_ids.len() as u64 + window.notes.lost,
                    self.max
                ));
            }
            sides.push((window.example, weight));
        }
        Ok(Window { example: weighted(sides), notes: Notes::default() })
    }

    /// The mean of n measurements: their segments with weights over n.
    fn mean(&self, items: Vec<Content>) -> Result<Window, String> {
        let share = 1.0 / items.len() as f32;
        let (mut pieces, mut notes) = (Vec::new(), Notes::default());
        for (index, item) in items.into_iter().enumerate() {
            let window = self.window(item).map_err(|what| format!("`mean[{index}]`: {what}"))?;
            notes = notes.and(window.notes);
            pieces.push((window.example, share));
        }
        Ok(Window { example: weighted(pieces), notes })
    }

    /// Tokens as given.
    fn ids(&self, ids: Vec<u32>, mask: Option<Vec<bool>>) -> Result<Window, String> {
        let text = self.encoder.map_or(Ok(String::new()), |encoder| encoder.decode(&ids))?;
        let mask = mask.unwrap_or_else(|| targets_from(1, ids.len()));
        Ok(self.kept(&ids, &mask, Example { text, ..Example::default() }))
    }

    /// `example` with as many of `ids` as there is room for, chosen so that targets stay.
    fn kept(&self, ids: &[u32], mask: &[bool], example: Example) -> Window {
        let kept = kept(mask, self.max);
        let mut target_mask = mask[kept.clone()].to_vec();
        // Nothing comes before it.
        target_mask[0] = false;
        let targets = |mask: &[bool]| mask.iter().filter(|&&target| target).count();
        let notes = Notes {
            lost: (ids.len() - kept.len()) as u64,
            lost_targets: (targets(&mask[1..]) - targets(&target_mask)) as u64,
            ..Notes::default()
        };
        Window { example: Example { input_ids: ids[kept].to_vec(), target_mask, ..example }, notes }
    }
}

/// Measurements as the segments of one row; each keeps its own weights, times that of its measurement.
pub(crate) fn weighted(pieces: Vec<(Example, f32)>) -> Example {
    let mut all = Example::default();
    for (piece, weight) in pieces {
        let own: Vec<_> = piece.parts().collect();
        for (tokens, own) in own {
            all.segments.push((all.input_ids.len() + tokens.start) as u32);
            all.weights.push(weight * own);
        }
        if all.input_ids.is_empty() {
            (all.text, all.completion_start) = (piece.text.clone(), piece.completion_start);
        }
        all.input_ids.extend(piece.input_ids);
        all.target_mask.extend(piece.target_mask);
        let texts = if piece.segment_texts.is_empty() { vec![piece.text] } else { piece.segment_texts };
        all.segment_texts.extend(texts);
    }
    all
}

/// Which `max` of the tokens stay. With every target and a token before the first: the beginning, else the end, else up to
/// the last target. Where that does not fit: the last run of targets, an answer, and what is before it; of a run that is
/// itself too long the beginning, after half a window of what is before it.
fn kept(mask: &[bool], max: usize) -> Range<usize> {
    let tokens = mask.len();
    let targets = || (1..tokens).filter(|&position| mask[position]);
    let (Some(first), Some(last)) = (targets().next(), targets().next_back()) else { return 0..tokens.min(max) };
    let run = (1..=last).rev().take_while(|&position| mask[position]).last().unwrap_or(last);
    let from = |start: usize| start..tokens.min(start.saturating_add(max));
    let ends = [0, tokens.saturating_sub(max), (last + 1).saturating_sub(max)].map(from);
    let holds = |first: usize, window: &Range<usize>| window.start < first && last < window.end;
    let whole = ends.iter().find(|&window| holds(first, window));
    let answer = || ends.last().filter(|&window| holds(run, window));
    whole.or_else(answer).cloned().unwrap_or_else(|| from(run.saturating_sub(max / 2)))
}

pub(crate) fn targets_from(first: usize, tokens: usize) -> Vec<bool> {
    (0..tokens).map(|position| position >= first).collect()
}
