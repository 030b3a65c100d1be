//! Which experts see which tokens, with which weights, and how these depend on the router's logits.
//!
//! Of the logits z of a token the k largest are chosen. With p = softmax(z) over all experts a chosen one weighs p_e; normalised
//! it weighs p_e over the sum of the chosen, which is a softmax over their logits alone.

use std::ops::Range;

use wherefrom_linalg::kernels::Ragged;

use crate::batch::TokenRows;

/// The choices of a batch's tokens.
pub(crate) struct Routing {
    /// How many experts see a token.
    pub(crate) chosen: usize,
    /// Of each choice, one token after the other: the expert.
    expert: Vec<usize>,
    /// Its weight.
    pub(crate) weights: Vec<f32>,
    /// p of every token and expert, where weights are of the softmax over all.
    probabilities: Option<Vec<f32>>,
    /// Choices by expert, and by token within.
    pub(crate) entries: Vec<usize>,
    /// The experts in use, in order.
    pub(crate) parts: Vec<Part>,
    count: usize,
}

/// An expert in use.
pub(crate) struct Part {
    pub(crate) expert: usize,
    /// Its entries.
    pub(crate) entries: Range<usize>,
    /// Its tokens, one for each.
    pub(crate) tokens: TokenRows,
}

impl Routing {
    /// logits [rows, count]; of equal ones the first is chosen.
    pub(crate) fn new(logits: &[f32], count: usize, chosen: usize, normalised: bool, tokens: &TokenRows) -> Self {
        let rows = logits.len() / count;
        let (mut expert, mut weights) = (Vec::with_capacity(rows * chosen), Vec::with_capacity(rows * chosen));
        let mut probabilities = Vec::new();
        let mut by_expert = vec![Vec::new(); count];
        for (row, logits) in logits.chunks_exact(count).enumerate() {
            let mut order: Vec<usize> = (0..count).collect();
            let largest_first = |&a: &usize, &b: &usize| logits[b].total_cmp(&logits[a]).then(a.cmp(&b));
            if chosen < count {
                order.select_nth_unstable_by(chosen, largest_first);
                order.truncate(chosen);
            }
            order.sort_unstable_by(largest_first);
            let over = |experts: &mut dyn Iterator<Item = usize>| {
                let powers: Vec<_> = experts.map(|e| f64::from(logits[e] - logits[order[0]]).exp()).collect();
                let sum: f64 = powers.iter().sum();
                powers.into_iter().map(|power| (power / sum) as f32).collect::<Vec<_>>()
            };
            if normalised {
                weights.extend(over(&mut order.iter().copied()));
            } else {
                let all = over(&mut (0..count));
                weights.extend(order.iter().map(|&e| all[e]));
                probabilities.extend(all);
            }
            for (choice, &e) in order.iter().enumerate() {
                by_expert[e].push(row * chosen + choice);
            }
            expert.extend(order);
        }
        let (mut entries, mut parts) = (Vec::with_capacity(rows * chosen), Vec::new());
        for (expert, own) in by_expert.into_iter().enumerate().filter(|(_, own)| !own.is_empty()) {
            let first = entries.len();
            let rows: Vec<_> = own.iter().map(|choice| choice / chosen).collect();
            entries.extend(own);
            parts.push(Part { expert, entries: first..entries.len(), tokens: among(tokens, &rows) });
        }
        let probabilities = (!normalised).then_some(probabilities);
        Self { chosen, expert, weights, probabilities, entries, parts, count }
    }

    /// How the weights move where the logits do, entry by entry: of softmaxes w, w (t - w . t).
    ///
    /// t [rows, count]
    pub(crate) fn weights_tangent(&self, t: &[f32]) -> Vec<f32> {
        let mut moved = vec![0.0; self.expert.len()];
        for (row, t) in t.chunks_exact(self.count).enumerate() {
            let own = self.choices(row);
            let mean: f32 = match &self.probabilities {
                Some(p) => p[row * self.count..][..self.count].iter().zip(t).map(|(p, t)| p * t).sum(),
                None => own.clone().map(|choice| self.weights[choice] * t[self.expert[choice]]).sum(),
            };
            for choice in own {
                moved[choice] = self.weights[choice] * (t[self.expert[choice]] - mean);
            }
        }
        self.entries.iter().map(|&choice| moved[choice]).collect()
    }

    /// From gradients at the weights, entry by entry, to those at the logits [rows, count]: w (d - w . d), of all experts where
    /// the softmax is over all.
    pub(crate) fn logits_backward(&self, d: &[f32]) -> Vec<f32> {
        let mut by_choice = vec![0.0; self.expert.len()];
        self.entries.iter().zip(d).for_each(|(&choice, &d)| by_choice[choice] = d);
        let mut logits = vec![0.0; self.expert.len() / self.chosen * self.count];
        for (row, logits) in logits.chunks_exact_mut(self.count).enumerate() {
            let own = self.choices(row);
            let mean: f32 = own.clone().map(|choice| self.weights[choice] * by_choice[choice]).sum();
            if let Some(p) = &self.probabilities {
                logits.iter_mut().zip(&p[row * self.count..]).for_each(|(logit, p)| *logit = -p * mean);
            }
            for choice in own {
                logits[self.expert[choice]] = self.weights[choice] * (by_choice[choice] - mean);
            }
        }
        logits
    }

    fn choices(&self, row: usize) -> Range<usize> {
        row * self.chosen..(row + 1) * self.chosen
    }
}

/// Some rows of a batch, ascending.
fn among(tokens: &TokenRows, rows: &[usize]) -> TokenRows {
    let mut rest = rows.iter().peekable();
    let lengths: Vec<usize> = (tokens.sequences.iter())
        .map(|own| std::iter::from_fn(|| rest.next_if(|row| **row < own.end)).count())
        .collect();
    TokenRows { sequences: Ragged::new(lengths), positions: rows.iter().map(|&row| tokens.positions[row]).collect() }
}
