//! Means of the residual stream over the tokens of answers, summed in float64.

use std::ops::Range;

use anyhow::Result;
use wherefrom_artifact::{Example, Over};
use wherefrom_model::Site;
use wherefrom_pass::Corpus;

/// What is known of some examples.
pub(crate) struct Means {
    /// Of each example [over, sites, width], row-major.
    pub(crate) rows: Vec<Vec<f32>>,
    /// ‖h‖₂ of every token, by site.
    pub(crate) norms: Vec<Vec<f32>>,
    /// Width of the stream.
    pub(crate) width: usize,
}

/// Reads the stream of every example, which has a target.
pub(crate) fn means(corpus: &Corpus<'_>, examples: &[Example], sites: &[Site], over: &[Over]) -> Result<Means> {
    let mut means = Means { rows: vec![Vec::new(); examples.len()], norms: vec![Vec::new(); sites.len()], width: 0 };
    corpus.batches(examples, |group, batch| {
        corpus.model.residual_streams(batch, sites, &mut |site, stream| {
            let width = stream.dims()[1];
            let stream: Vec<f32> = stream.into_data().try_into_vec().map_err(|error| anyhow::anyhow!("{error:?}"))?;
            let number = sites.iter().position(|known| *known == site).unwrap_or_default();
            means.width = width;
            means.norms[number].extend(stream.chunks_exact(width).map(|token| norm(token) as f32));
            for (&index, tokens) in group.iter().zip(batch.tokens.sequences.iter()) {
                let row = &mut means.rows[index];
                row.resize(over.len() * sites.len() * width, 0.0);
                let stream = &stream[tokens.start * width..tokens.end * width];
                for (place, over) in over.iter().enumerate() {
                    let mean = mean(stream, width, &examples[index].target_mask, *over);
                    let start = (place * sites.len() + number) * width;
                    row[start..start + width].copy_from_slice(&mean);
                }
            }
            Ok(())
        })
    })?;
    Ok(means)
}

/// ‖x‖₂, summed in float64.
pub(crate) fn norm(values: &[f32]) -> f64 {
    values.iter().map(|&value| f64::from(value).powi(2)).sum::<f64>().sqrt()
}

/// The mean of a stream [tokens, width] over the tokens that `over` means; of none, as of a prompt without a token, zeros.
pub(crate) fn mean(stream: &[f32], width: usize, targets: &[bool], over: Over) -> Vec<f32> {
    let first = targets.iter().position(|&target| target).unwrap_or(targets.len());
    let span: Range<usize> = match over {
        Over::ResponseAvg => 0..targets.len(),
        Over::PromptAvg => 0..first,
        Over::PromptLast => first.saturating_sub(1)..first.max(1),
    };
    let counts = |token: &usize| over != Over::ResponseAvg || targets[*token];
    let tokens = span.filter(counts).map(|token| &stream[token * width..][..width]);
    wherefrom_pass::mean(tokens, width).collect()
}
