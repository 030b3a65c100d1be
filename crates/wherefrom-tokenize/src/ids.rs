//! Rows of tokens made elsewhere: `input_ids` with a mask of targets, or with the columns that a training pipeline leaves.
//!
//! `labels`, `completion_mask`, `assistant_masks` and `target_mask` speak of the token at their own place: it is predicted.
//! `attention_mask` is 0 where a token is padding, which is removed.

use wherefrom_vocabulary::ordered::{Json, Object};

/// The label of a token that is not predicted.
const IGNORED: i64 = -100;
/// Masks whose 1 says that the token at its place is predicted.
pub(crate) const MASKS: [&str; 2] = ["completion_mask", "assistant_masks"];
/// Numbers of the documents of a packed row; with one document they say nothing.
pub(crate) const PACKED: [&str; 4] = ["seq_lengths", "cu_seqlens", "segment_ids", "document_ids"];
/// What else stands beside `input_ids` and is read here.
pub(crate) const BESIDE: [&str; 5] = ["attention_mask", "labels", "position_ids", "token_type_ids", "loss_mask"];

/// Tokens and, where the row says so, which of them are targets.
///
/// # Errors
/// What is wrong and what to do.
pub(crate) fn tokens(map: &Object, ids: &str, mask: &str) -> Result<(Vec<u32>, Option<Vec<bool>>), String> {
    let numbers = list(map, ids)?;
    if numbers.is_empty() {
        return Err(format!("`{ids}` is empty; give the row tokens or remove it"));
    }
    let id = |(index, item): (usize, &Json)| {
        item.as_u64().and_then(|id| u32::try_from(id).ok()).ok_or_else(|| {
            format!("`{ids}[{index}]` is {}; make it a token number from 0 to {}", item.shown(), u32::MAX)
        })
    };
    let numbers: Vec<u32> = numbers.iter().enumerate().map(id).collect::<Result<_, _>>()?;
    if map.contains_key("loss_mask") {
        return Err("`loss_mask` means one thing in some programs and another, shifted by one, in others; give `target_mask`, true \
                    where the token at its own place is predicted, and remove it"
            .into());
    }
    let tokens = numbers.len();
    let targets = targets(map, &numbers, mask)?;
    let Some(real) = real(map, tokens)? else {
        unpacked(map, 0..tokens)?;
        return Ok((numbers, targets));
    };
    unpacked(map, real.clone())?;
    let lost = |mask: &Vec<bool>| (0..tokens).find(|place| mask[*place] && !real.contains(place));
    if let Some(place) = targets.as_ref().and_then(lost) {
        return Err(format!("token {place} is padding by `attention_mask` and a target; make it one of the two"));
    }
    // What comes first has nothing before it any more.
    let first_given = |mut mask: Vec<bool>| {
        mask[0] = false;
        mask
    };
    Ok((numbers[real.clone()].to_vec(), targets.map(|mask| first_given(mask[real].to_vec()))))
}

/// Which tokens every mask and `labels` call targets; nothing where there are none.
fn targets(map: &Object, ids: &[u32], mask: &str) -> Result<Option<Vec<bool>>, String> {
    let mut all: Option<Vec<bool>> = None;
    if map.contains_key(mask) {
        let own = flags(map, mask, ids.len())?;
        if own[0] {
            return Err(format!(
                "`{mask}` is true at position 0, which can never be a target: nothing comes before it; make it false"
            ));
        }
        all = Some(own);
    }
    if map.contains_key("labels") {
        let own = labels(map, ids)?;
        if let Some(place) = all.as_ref().and_then(|all| (0..ids.len()).find(|&place| all[place] != own[place])) {
            return Err(format!("`{mask}` and `labels` differ at position {place}; keep one of them"));
        }
        all = Some(own);
    }
    for beside in MASKS.into_iter().filter(|beside| map.contains_key(*beside)) {
        let mut own = flags(map, beside, ids.len())?;
        own[0] = false;
        all = Some(match all {
            None => own,
            Some(all) => all.iter().zip(&own).map(|(one, other)| *one && *other).collect(),
        });
    }
    Ok(all)
}

/// Targets are where a label is the token at its own place.
fn labels(map: &Object, ids: &[u32]) -> Result<Vec<bool>, String> {
    let items = whole(map, "labels", ids.len())?;
    let mut targets = Vec::with_capacity(ids.len());
    for (place, item) in items.iter().enumerate() {
        let label = item.as_i64().ok_or_else(|| format!("`labels[{place}]` is {}; make it a number", item.shown()))?;
        if label != IGNORED && label != i64::from(ids[place]) {
            let shifted = ids.get(place + 1).is_some_and(|next| label == i64::from(*next));
            let remedy = if shifted { ": these look shifted by one, and `labels` are not" } else { "" };
            return Err(format!(
                "`labels[{place}]` is {label} and its token {}; make it that token, or {IGNORED} where it is not predicted{remedy}",
                ids[place]
            ));
        }
        targets.push(place > 0 && label != IGNORED);
    }
    Ok(targets)
}

/// The tokens that are no padding; nothing where nothing is said of it.
fn real(map: &Object, tokens: usize) -> Result<Option<std::ops::Range<usize>>, String> {
    if !map.contains_key("attention_mask") {
        return Ok(None);
    }
    let key = "attention_mask";
    let numbers = whole(map, key, tokens)?;
    if let Some(place) = numbers.iter().position(|item| item.as_u64().is_some_and(|number| number > 1)) {
        return Err(format!(
            "`{key}[{place}]` is {}, as of several documents in a row; give a row for each, or `windows = \"pack\"`",
            numbers[place].shown()
        ));
    }
    let mask = flags(map, key, tokens)?;
    let first = mask.iter().position(|real| *real);
    let last = mask.iter().rposition(|real| *real);
    let (Some(first), Some(last)) = (first, last) else {
        return Err(format!("`{key}` is 0 everywhere: the row is padding; remove it"));
    };
    if let Some(gap) = mask[first..=last].iter().position(|real| !*real) {
        return Err(format!(
            "`{key}[{}]` is 0 between tokens where it is 1; padding lies before or after them: mend it",
            first + gap
        ));
    }
    Ok(Some(first..last + 1))
}

/// Refuses rows that are several documents, which would be read as one.
fn unpacked(map: &Object, real: std::ops::Range<usize>) -> Result<(), String> {
    const REMEDY: &str = "give a row for each document (`windows = \"pack\"` packs them again)";
    if map.contains_key("position_ids") {
        let items = list(map, "position_ids")?;
        let at = |place: usize| items.get(place).and_then(Json::as_u64);
        let first = at(real.start);
        let counted =
            |place: usize| first.and_then(|first| at(place)?.checked_sub(first)) == Some((place - real.start) as u64);
        if let Some(place) = real.clone().find(|place| !counted(*place)) {
            return Err(format!(
                "`position_ids` do not count on at position {place}, as of several documents; {REMEDY}"
            ));
        }
        // Positions that begin elsewhere are those of padding before, or of nothing that is read here.
        if first != Some(0) && first != Some(real.start as u64) {
            return Err(format!("`position_ids` begin at {}; a row begins at 0: mend them", first.unwrap_or_default()));
        }
    }
    if map.contains_key("token_type_ids") {
        let items = list(map, "token_type_ids")?;
        if let Some(place) = items.iter().position(|item| item.as_u64() != Some(0)) {
            return Err(format!(
                "`token_type_ids[{place}]` is {}, which no causal model reads; remove the column",
                items[place].shown()
            ));
        }
    }
    for key in PACKED.into_iter().filter(|key| map.contains_key(*key)) {
        let items = list(map, key)?;
        let several = match key {
            "seq_lengths" => items.len() > 1,
            "cu_seqlens" => items.len() > 2,
            _ => items.get(real.clone()).is_some_and(|items| items.windows(2).any(|pair| pair[0] != pair[1])),
        };
        if several {
            return Err(format!("`{key}` tells of several documents in the row; {REMEDY}"));
        }
    }
    Ok(())
}

fn flags(map: &Object, key: &str, tokens: usize) -> Result<Vec<bool>, String> {
    let flag = |(index, item): (usize, &Json)| match (item.as_bool(), item.as_u64()) {
        (Some(flag), _) => Ok(flag),
        (_, Some(0)) => Ok(false),
        (_, Some(1)) => Ok(true),
        _ => Err(format!("`{key}[{index}]` is {}; make it true or false", item.shown())),
    };
    whole(map, key, tokens)?.iter().enumerate().map(flag).collect()
}

/// A list with an entry for each token.
fn whole<'a>(map: &'a Object, key: &str, tokens: usize) -> Result<&'a [Json], String> {
    let items = list(map, key)?;
    if items.len() != tokens {
        return Err(format!("`{key}` has {} entries for {tokens} `input_ids`; give one for each token", items.len()));
    }
    Ok(items)
}

/// The items of a list.
pub(crate) fn list<'a>(map: &'a Object, key: &str) -> Result<&'a [Json], String> {
    match &map[key] {
        Json::Array(items) => Ok(items),
        other => Err(format!("`{key}` is {}; make it a list", other.name())),
    }
}
