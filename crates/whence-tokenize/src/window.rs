//! One row to one token window: targets, special tokens, truncation.

use whence_artifact::Example;

use crate::encoder::Encoder;
use crate::row::{Content, Row};
use crate::tokenize::{Config, Untargeted};

/// Rows to windows of at most `config.max_tokens` tokens.
pub(crate) struct Windows<'a> {
    /// What a window is.
    pub(crate) config: &'a Config,
    /// Needed for rows of text.
    pub(crate) encoder: Option<&'a Encoder>,
}

/// A window and whether the row was longer.
#[derive(Debug)]
pub(crate) struct Window {
    /// The row of the artifact.
    pub(crate) example: Example,
    /// Tokens were left out.
    pub(crate) cut: bool,
}

impl Windows<'_> {
    /// The window of row `number`, or why there is none and what to do.
    pub(crate) fn window(&self, row: Row, number: u64) -> Result<Window, String> {
        let mut window = match row.content {
            Content::Text(text) => self.text(text)?,
            Content::Prompt { prompt, completion, contrast } => self.prompt(prompt, completion, contrast)?,
            Content::Ids { ids, mask } => self.ids(ids, mask)?,
        };
        let example = &mut window.example;
        if self.config.untargeted == Untargeted::Refuse && !example.target_mask.contains(&true) {
            return Err(
                "the row has no targets: all its tokens are given, or it has one token only, and position 0 can never \
                        be a target; give it more tokens, or set `untargeted = \"keep\"` if it is to be completed"
                    .into(),
            );
        }
        example.example = number;
        example.docs = vec![row.id.unwrap_or_else(|| format!("row {number}"))];
        example.doc_starts = vec![0];
        Ok(window)
    }

    fn encoder(&self) -> Result<&Encoder, String> {
        self.encoder.ok_or_else(|| {
            "the row is text and there is no tokenizer; name a tokenizer.json, or give `input_ids`".into()
        })
    }

    /// prefix + text + suffix, cut at the end.
    fn text(&self, text: String) -> Result<Window, String> {
        let encoder = self.encoder()?;
        let ids = encoder.encode(&text)?;
        if ids.is_empty() {
            return Err("the text is empty; give the row text or remove it".into());
        }
        let mut input_ids = [&encoder.prefix[..], &ids, &encoder.suffix].concat();
        let cut = input_ids.len() > self.config.max_tokens;
        input_ids.truncate(self.config.max_tokens);
        let target_mask = targets_from(1, input_ids.len());
        Ok(Window { example: Example { input_ids, target_mask, text, ..Example::default() }, cut })
    }

    /// prefix + the end of the prompt + the whole completion; a rival completion gets the same prompt.
    fn prompt(&self, prompt: String, completion: Option<String>, contrast: Option<String>) -> Result<Window, String> {
        let encoder = self.encoder()?;
        let prompt_ids = encoder.encode(&prompt)?;
        let completion_ids = encoder.encode(completion.as_deref().unwrap_or_default())?;
        if completion_ids.is_empty() && (self.config.untargeted == Untargeted::Refuse || contrast.is_some()) {
            return Err("the row has no completion tokens; give it a `completion`, or set `untargeted = \"keep\"` if it is to be \
                        completed"
                .into());
        }
        let contrast_ids = contrast.as_ref().map(|contrast| encoder.encode(contrast)).transpose()?;
        if contrast_ids.as_ref().is_some_and(Vec::is_empty) {
            return Err("`contrast` has no tokens; give it text or remove the key".into());
        }
        let longest = completion_ids.len().max(contrast_ids.as_ref().map_or(0, Vec::len));
        let given = self.given(&prompt_ids, &encoder.prefix, longest)?;
        if given.is_empty() && completion_ids.is_empty() {
            return Err("the prompt is empty; give the row text or remove it".into());
        }
        let (input_ids, target_mask) = joined(&given, &completion_ids);
        let completion_start = u32::try_from(prompt.len()).unwrap_or(0);
        let text = prompt.clone() + &completion.unwrap_or_default();
        let mut example = Example { input_ids, target_mask, completion_start, text, ..Example::default() };
        if let (Some(rival_ids), Some(rival)) = (contrast_ids, contrast) {
            let own = example.target_mask.contains(&true);
            example.segments = vec![0, example.input_ids.len() as u32];
            example.weights = vec![1.0, -1.0];
            example.segment_texts = vec![example.text.clone(), prompt + &rival];
            let (ids, mask) = joined(&given, &rival_ids);
            if !own || !mask.contains(&true) {
                return Err(
                    "a completion of one token has nothing before it, and position 0 can never be a target; give the \
                            row a `prompt`"
                        .into(),
                );
            }
            example.input_ids.extend(ids);
            example.target_mask.extend(mask);
        }
        Ok(Window { cut: given.len() < encoder.prefix.len() + prompt_ids.len(), example })
    }

    /// What comes before `completion` tokens: the prefix and as much of the prompt's end as there is room for.
    fn given(&self, prompt: &[u32], prefix: &[u32], completion: usize) -> Result<Vec<u32>, String> {
        let max = self.config.max_tokens;
        let before = prefix.len() + prompt.len();
        // One token before the completion makes all of it a target.
        if completion + before.min(1) > max {
            return Err(format!(
                "the completion has {completion} tokens, its prompt {before}, and max-tokens = {max} must hold the whole \
                 completion and one token before it; set max-tokens to {} or more, or shorten the completion",
                completion + before.min(1)
            ));
        }
        let room = max - completion;
        let prefix = &prefix[..prefix.len().min(room)];
        let kept = prompt.len().min(room - prefix.len());
        Ok([prefix, &prompt[prompt.len() - kept..]].concat())
    }

    /// Tokens as given, cut at the end, or at the beginning where targets would be lost.
    fn ids(&self, ids: Vec<u32>, mask: Option<Vec<bool>>) -> Result<Window, String> {
        let max = self.config.max_tokens;
        let text = self.encoder.map_or(Ok(String::new()), |encoder| encoder.decode(&ids))?;
        let start = match &mask {
            Some(mask) => first_kept(mask, max)?,
            None => 0,
        };
        let kept = start..ids.len().min(start + max);
        let example = Example {
            target_mask: mask.map_or_else(|| targets_from(1, kept.len()), |mask| mask[kept.clone()].to_vec()),
            input_ids: ids[kept.clone()].to_vec(),
            text,
            ..Example::default()
        };
        Ok(Window { example, cut: kept.len() < ids.len() })
    }
}

/// Where a window of `max` tokens begins that holds every target and a token before the first:
/// at the beginning, else so that it holds the end, else so that it ends with the last target.
fn first_kept(mask: &[bool], max: usize) -> Result<usize, String> {
    let targets = || (0..mask.len()).filter(|&position| mask[position]);
    let (Some(first), Some(last)) = (targets().next(), targets().next_back()) else { return Ok(0) };
    let starts = [0, mask.len().saturating_sub(max), (last + 1).saturating_sub(max)];
    starts.into_iter().find(|&start| start < first && last < start + max).ok_or_else(|| {
        format!(
            "the targets lie from position {first} to {last} of {} tokens and do not fit in max-tokens = {max} with one token \
             before them; set max-tokens to {} or more, or shorten `target_mask`",
            mask.len(),
            last - first + 2
        )
    })
}

/// Tokens and targets of a completion after what is given; never a target at position 0.
fn joined(given: &[u32], completion: &[u32]) -> (Vec<u32>, Vec<bool>) {
    let ids = [given, completion].concat();
    let mask = targets_from(given.len().max(1), ids.len());
    (ids, mask)
}

fn targets_from(first: usize, tokens: usize) -> Vec<bool> {
    (0..tokens).map(|position| position >= first).collect()
}
