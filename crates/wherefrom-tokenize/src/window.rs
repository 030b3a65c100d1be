//! One row to token windows: targets, special tokens, truncation, and the weighted segments of a query.

use wherefrom_artifact::Example;

use crate::chat::Chat;
use crate::encoder::Encoder;
use crate::row::{Content, Message, Row};
use crate::tokenize::{Config, Untargeted};

/// Rows to windows of at most `max` tokens a segment.
pub(crate) struct Windows<'a> {
    /// What a window is.
    pub(crate) config: &'a Config,
    /// `config.max_tokens`; no bound where windows are packed after.
    pub(crate) max: usize,
    /// Needed for rows of text.
    pub(crate) encoder: Option<&'a Encoder>,
    /// Needed for conversations.
    pub(crate) chat: Option<&'a Chat>,
}

/// A window and whether the row was longer.
#[derive(Debug, Clone)]
pub(crate) struct Window {
    /// The row of the artifact, without a number.
    pub(crate) example: Example,
    /// Tokens were left out.
    pub(crate) cut: bool,
}

impl Windows<'_> {
    /// The windows of a row whose name is `document` if it has none: one, or one a sample; or why there is none and what
    /// to do.
    pub(crate) fn windows(&self, row: Row, document: String) -> Result<Vec<Window>, String> {
        let samples = if let Content::Prompt { samples, .. } = &row.content { *samples } else { None };
        let mut window = self.window(row.content)?;
        let example = &mut window.example;
        if self.config.untargeted == Untargeted::Refuse && !example.target_mask.contains(&true) {
            return Err(
                "the row has no targets: all its tokens are given, or it has one token only, and position 0 can never \
                        be a target; give it more tokens, or set `untargeted = \"keep\"` if it is to be completed"
                    .into(),
            );
        }
        let id = row.id.unwrap_or(document);
        example.doc_starts = vec![0];
        let Some(samples) = samples else {
            example.docs = vec![id];
            return Ok(vec![window]);
        };
        let sample = |number| {
            let mut window = window.clone();
            window.example.docs = vec![format!("{id}/sample-{number}")];
            window
        };
        Ok((1..=samples).map(sample).collect())
    }

    fn window(&self, content: Content) -> Result<Window, String> {
        match content {
            Content::Text(text) => self.text(text),
            Content::Messages(messages) => self.messages(&messages),
            Content::Prompt { prompt, completion, contrast, .. } => self.prompt(prompt, completion, contrast),
            Content::Mean(items) => self.mean(items),
            Content::Ids { ids, mask } => self.ids(ids, mask),
        }
    }

    fn encoder(&self) -> Result<&Encoder, String> {
        self.encoder.ok_or_else(|| {
            "the row is text and there is no tokenizer; name a tokenizer.json, or give `input_ids`".into()
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
            return Err("the text is empty; give the row text or remove it".into());
        }
        let mut input_ids = [&encoder.prefix[..], &ids, &encoder.suffix].concat();
        let cut = input_ids.len() > self.max;
        input_ids.truncate(self.max);
        let target_mask = targets_from(1, input_ids.len());
        Ok(Window { example: Example { input_ids, target_mask, text, ..Example::default() }, cut })
    }

    /// The conversation as the chat template renders it, the assistant's turns its targets. Cut at the end; where that would
    /// leave out every target, at the beginning.
    fn messages(&self, messages: &[Message]) -> Result<Window, String> {
        let (encoder, chat) = (self.encoder()?, self.chat()?);
        if self.config.untargeted == Untargeted::Keep && messages.last().is_some_and(|last| last.role != "assistant") {
            return self.completed(chat.prompt(messages)?, None, None, &[]);
        }
        let rendered = chat.conversation(messages)?;
        let (ids, starts): (Vec<_>, Vec<_>) = encoder.encode_with_starts(&rendered.text)?.into_iter().unzip();
        let target = |place: usize| place > 0 && rendered.answers.iter().any(|answer| answer.contains(&starts[place]));
        let mask: Vec<_> = (0..ids.len()).map(target).collect();
        if !mask.contains(&true) {
            return Err("no turn of `messages` is the assistant's, so nothing is predicted; add an answer, or set \
                        `untargeted = \"keep\"` if the model is to write it"
                .into());
        }
        let start = first_kept(&mask, self.max).unwrap_or(0);
        let kept = start..ids.len().min(start.saturating_add(self.max));
        let mut target_mask = mask[kept.clone()].to_vec();
        target_mask[0] = false;
        let completion_start = rendered.answers.last().map_or(0, |answer| answer.start) as u32;
        let cut = kept.len() < ids.len();
        let input_ids = ids[kept].to_vec();
        let example = Example { input_ids, target_mask, completion_start, text: rendered.text, ..Example::default() };
        Ok(Window { example, cut })
    }

    /// A prompt and what follows it; with `chat` they are what a user asks and the assistant answers.
    fn prompt(&self, prompt: String, completion: Option<String>, contrast: Option<String>) -> Result<Window, String> {
        if !self.config.chat {
            let prefix = &self.encoder()?.prefix;
            return self.completed(prompt, completion, contrast, prefix);
        }
        let chat = self.chat()?;
        let asked = Message { role: "user".into(), content: prompt };
        let given = chat.prompt(std::slice::from_ref(&asked))?;
        let answer = |content: String| {
            let rendered = chat.conversation(&[asked.clone(), Message { role: "assistant".into(), content }])?;
            let end = rendered.answers.last().map_or(rendered.text.len(), |answer| answer.end);
            let text = rendered.text[..end].strip_prefix(&given[..]).map(str::to_string);
            text.ok_or_else(|| "the chat template changes the prompt once it is answered; give `messages`".to_string())
        };
        let (completion, contrast) = (completion.map(answer).transpose()?, contrast.map(answer).transpose()?);
        self.completed(given, completion, contrast, &[])
    }

    /// prefix + the end of the prompt + the whole completion; a rival completion gets the same prompt, in a segment of its
    /// own with weight -1.
    fn completed(
        &self,
        prompt: String,
        completion: Option<String>,
        contrast: Option<String>,
        prefix: &[u32],
    ) -> Result<Window, String> {
        let encoder = self.encoder()?;
        let prompt_ids = encoder.encode(&prompt)?;
        let completion_ids = encoder.encode(completion.as_deref().unwrap_or_default())?;
        if completion_ids.is_empty() && (self.config.untargeted == Untargeted::Refuse || contrast.is_some()) {
            return Err("the row has no completion tokens; give it a `completion`, or set `untargeted = \"keep\"` if it is to be \
                        completed"
                .into());
        }
        let rival_ids = contrast.as_ref().map(|contrast| encoder.encode(contrast)).transpose()?;
        if rival_ids.as_ref().is_some_and(Vec::is_empty) {
            return Err("`contrast` has no tokens; give it text or remove the key".into());
        }
        let longest = completion_ids.len().max(rival_ids.as_ref().map_or(0, Vec::len));
        let given = self.given(&prompt_ids, prefix, longest)?;
        if given.is_empty() && completion_ids.is_empty() {
            return Err("the prompt is empty; give the row text or remove it".into());
        }
        let piece = |completion_ids: &[u32], completion: &str| {
            let (input_ids, target_mask) = joined(&given, completion_ids);
            let completion_start = u32::try_from(prompt.len()).unwrap_or(0);
            Example {
                input_ids,
                target_mask,
                completion_start,
                text: prompt.clone() + completion,
                ..Example::default()
            }
        };
        let cut = given.len() < prefix.len() + prompt_ids.len();
        let own = piece(&completion_ids, completion.as_deref().unwrap_or_default());
        let (Some(rival_ids), Some(rival)) = (rival_ids, contrast) else { return Ok(Window { example: own, cut }) };
        let rival = piece(&rival_ids, &rival);
        if [&own, &rival].iter().any(|piece| !piece.target_mask.contains(&true)) {
            return Err("a completion of one token has nothing before it, and position 0 can never be a target; give the row a \
                        `prompt`"
                .into());
        }
        Ok(Window { example: weighted(vec![(own, 1.0), (rival, -1.0)]), cut })
    }

    /// The mean of n measurements: their segments with weights over n.
    fn mean(&self, items: Vec<Content>) -> Result<Window, String> {
        let share = 1.0 / items.len() as f32;
        let (mut pieces, mut cut) = (Vec::new(), false);
        for (index, item) in items.into_iter().enumerate() {
            let window = self.window(item).map_err(|what| format!("`mean[{index}]`: {what}"))?;
            cut |= window.cut;
            pieces.push((window.example, share));
        }
        Ok(Window { example: weighted(pieces), cut })
    }

    /// What comes before `completion` tokens: the prefix and as much of the prompt's end as there is room for.
    fn given(&self, prompt: &[u32], prefix: &[u32], completion: usize) -> Result<Vec<u32>, String> {
        let max = self.max;
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
        let max = self.max;
        let text = self.encoder.map_or(Ok(String::new()), |encoder| encoder.decode(&ids))?;
        let start = match &mask {
            Some(mask) => first_kept(mask, max)?,
            None => 0,
        };
        let kept = start..ids.len().min(start.saturating_add(max));
        let example = Example {
            target_mask: mask.map_or_else(|| targets_from(1, kept.len()), |mask| mask[kept.clone()].to_vec()),
            input_ids: ids[kept.clone()].to_vec(),
            text,
            ..Example::default()
        };
        Ok(Window { example, cut: kept.len() < ids.len() })
    }
}

/// Measurements as the segments of one row; each keeps its own weights, times that of its measurement.
fn weighted(pieces: Vec<(Example, f32)>) -> Example {
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

/// Where a window of `max` tokens begins that holds every target and a token before the first:
/// at the beginning, else so that it holds the end, else so that it ends with the last target.
fn first_kept(mask: &[bool], max: usize) -> Result<usize, String> {
    let targets = || (0..mask.len()).filter(|&position| mask[position]);
    let (Some(first), Some(last)) = (targets().next(), targets().next_back()) else { return Ok(0) };
    let starts = [0, mask.len().saturating_sub(max), (last + 1).saturating_sub(max)];
    starts.into_iter().find(|&start| start < first && last < start.saturating_add(max)).ok_or_else(|| {
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
