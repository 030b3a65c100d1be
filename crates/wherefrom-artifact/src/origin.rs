//! What artifacts that meet in a stage must agree on: the checkpoint they are of, the tokens that their example and query
//! numbers count, and the basis that their values are in.
//!
//! An artifact states its origin in its manifest, and what it does not state is never held against it. Of what another
//! program wrote that is what the inputs of its step agree on.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::error::Error;
use crate::kinds::Kind;
use crate::manifest::Manifest;

/// The `eigenbasis` of what has none: of a lambda in the standard basis, and of what is made with one.
const STANDARD: &str = "standard";

/// What an artifact goes back to; each a key or a digest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Fact {
    /// The checkpoint.
    Model,
    /// The tokens whose rows `example` numbers.
    Tokens,
    /// The tokens whose rows `query` numbers.
    Queries,
    /// The eigenbasis of its values.
    Eigenbasis,
    /// The coordinates that are kept.
    Coordinates,
}

impl Fact {
    fn name(self) -> &'static str {
        match self {
            Self::Model => "model",
            Self::Tokens => "tokens",
            Self::Queries => "queries",
            Self::Eigenbasis => "eigenbasis",
            Self::Coordinates => "coordinates",
        }
    }
}

/// What an artifact states.
pub type Origin = BTreeMap<Fact, String>;

/// An artifact in a role of a stage.
#[derive(Debug, Clone)]
pub struct Wired<'a> {
    /// The role.
    pub role: &'a str,
    /// What it is.
    pub kind: Kind,
    /// Its key.
    pub key: String,
    /// What it states.
    pub origin: Origin,
}

impl<'a> Wired<'a> {
    /// The artifact of that manifest in a role.
    pub fn new(role: &'a str, manifest: &Manifest) -> Self {
        Self { role, kind: manifest.kind, key: manifest.key.clone(), origin: manifest.origin() }
    }

    /// What it says to the others in its role: its own key, and that of its origin which counts there.
    fn says(&self) -> Origin {
        self.kind.says(self)
    }

    /// These, as far as it states them.
    pub(crate) fn stated(&self, facts: &[Fact]) -> Origin {
        self.origin.clone().into_iter().filter(|(fact, _)| facts.contains(fact)).collect()
    }

    /// Its own key, and these as far as it states them.
    pub(crate) fn own(&self, fact: Fact, rest: &[Fact]) -> Origin {
        let mut said = self.stated(rest);
        said.insert(fact, self.key.clone());
        said
    }

    /// Rows of the queries' tokens are the queries of what follows.
    pub(crate) fn numbered(&self) -> Origin {
        let mut said = self.stated(&[Fact::Model]);
        said.extend(self.origin.get(&Fact::Tokens).map(|tokens| (Fact::Queries, tokens.clone())));
        said
    }
}

/// What the step itself states: the model that it runs, and whether it works without an eigenbasis.
pub fn of_step(model: Option<&str>, standard: bool) -> Origin {
    let basis = standard.then(|| (Fact::Eigenbasis, STANDARD.to_string()));
    model.map(|model| (Fact::Model, model.into())).into_iter().chain(basis).collect()
}

/// What the inputs of a step agree on with each other and with the step.
///
/// # Errors
/// [`Error::Mismatch`] where two of them do not: both are named.
pub fn agreed(wired: &[Wired<'_>], step: Origin) -> Result<Origin, Error> {
    let name = |input: &Wired<'_>| format!("input `{}` ({} {})", input.role, input.kind.name(), input.key);
    let inputs = wired.iter().map(|input| (name(input), input.says()));
    let mut agreed: BTreeMap<Fact, (String, String)> = BTreeMap::new();
    for (who, origin) in inputs.chain([("the step".into(), step)]) {
        for (fact, value) in origin {
            match agreed.get(&fact) {
                Some((before, known)) if *known != value => {
                    let [first, other] = [(before, known), (&who, &value)].map(|(who, value)| side(who, fact, value));
                    return Err(Error::Mismatch(format!(
                        "what does not belong together: {first}, {other}; wire them to steps with the same {}",
                        fact.name()
                    )));
                }
                Some(_) => {}
                None => drop(agreed.insert(fact, (who.clone(), value))),
            }
        }
    }
    Ok(agreed.into_iter().map(|(fact, (_, value))| (fact, value)).collect())
}

/// What none of the inputs contradicts: all that is known of what another program makes of them.
pub fn common(wired: &[Wired<'_>], step: Origin) -> Origin {
    let mut common: BTreeMap<Fact, Option<String>> = BTreeMap::new();
    let inputs = wired.iter().flat_map(|input| {
        let mut said = input.says();
        let taken = said.get(&Fact::Queries).is_some_and(|queries| input.origin.get(&Fact::Tokens) == Some(queries));
        if taken && !input.origin.contains_key(&Fact::Queries) && !["queries", "gradients"].contains(&input.role) {
            // Rows of queries or of training tokens: nobody knows.
            said.remove(&Fact::Queries);
        }
        said
    });
    for (fact, value) in inputs.chain(step) {
        let known = common.entry(fact).or_insert_with(|| Some(value.clone()));
        if known.as_ref() != Some(&value) {
            *known = None;
        }
    }
    common.into_iter().filter_map(|(fact, value)| Some((fact, value?))).collect()
}

/// One of two that disagree.
fn side(who: &str, fact: Fact, value: &str) -> String {
    match value {
        STANDARD => format!("{who} is without an eigenbasis"),
        _ => format!("{who} has the {} {value}", fact.name()),
    }
}

impl Manifest {
    /// What the artifact states: as it was sealed, or where that says nothing, as far as its recipe does.
    pub fn origin(&self) -> Origin {
        let (recipe, mut origin) = (&self.recipe, self.origin.clone());
        // The roles of another program's step mean what they mean to it.
        if origin.is_empty() && recipe.stage != "external" {
            origin = of_step(recipe.model.as_deref(), recipe.stage == "lambda");
            let facts = [Fact::Tokens, Fact::Eigenbasis, Fact::Coordinates, Fact::Queries];
            let known = facts.into_iter().filter_map(|fact| Some((fact, recipe.inputs.get(fact.name())?.clone())));
            // Elsewhere the role takes gradients, or what is made of them.
            origin.extend(known.filter(|(fact, _)| *fact != Fact::Queries || self.kind == Kind::Candidates));
        }
        kept(self.kind, origin)
    }
}

/// What an artifact of the kind states, of what its inputs agree on.
pub fn kept(kind: Kind, mut origin: Origin) -> Origin {
    origin.retain(|fact, _| kind.states().contains(fact));
    origin
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A consistent study: what each kind of artifact in it states, in a role.
    fn wired(role: &'static str, kind: Kind) -> Wired<'static> {
        let facts = [
            (Fact::Model, "model"),
            (Fact::Tokens, if role == "gradients" || role == "losses" { "asked" } else { "corpus" }),
            (Fact::Queries, "asked"),
            (Fact::Eigenbasis, "basis"),
            (Fact::Coordinates, "chosen"),
        ];
        let tokens = if kind == Kind::Gradients { "asked" } else { facts[1].1 };
        let mut origin: Origin = facts.into_iter().map(|(fact, value)| (fact, value.into())).collect();
        origin.insert(Fact::Tokens, tokens.into());
        let key = match (kind, role) {
            (Kind::Tokens, "queries") => "asked",
            (Kind::Tokens, _) => "corpus",
            (Kind::Eigenbasis, _) => "basis",
            (Kind::Coordinates, _) => "chosen",
            _ => "another",
        };
        Wired { role, kind, key: key.into(), origin: kept(kind, origin) }
    }

    /// Stages by their roles, whether they run a model, and what two of their inputs, or one and the model, state.
    #[allow(clippy::type_complexity, reason = "a table of its own")]
    const STAGES: &[(&[(&str, Kind)], bool, &[(Fact, usize)])] = {
        use Fact::{Coordinates, Eigenbasis, Model, Queries, Tokens};
        &[
            (&[("tokens", Kind::Tokens)], true, &[]),
            (&[("tokens", Kind::Tokens), ("eigenbasis", Kind::Eigenbasis)], true, &[(Model, 2)]),
            (&[("queries", Kind::Tokens), ("tokens", Kind::Tokens)], false, &[]),
            (
                &[("gradients", Kind::Gradients), ("eigenbasis", Kind::Eigenbasis), ("lambda", Kind::Lambda)],
                false,
                &[(Model, 3), (Eigenbasis, 2)],
            ),
            (
                &[
                    ("gradients", Kind::Gradients),
                    ("tokens", Kind::Tokens),
                    ("eigenbasis", Kind::Eigenbasis),
                    ("lambda", Kind::Lambda),
                ],
                true,
                &[(Model, 4), (Eigenbasis, 2)],
            ),
            (
                &[("tokens", Kind::Tokens), ("eigenbasis", Kind::Eigenbasis), ("lambda", Kind::Lambda)],
                true,
                &[(Model, 3), (Eigenbasis, 2)],
            ),
            (
                &[("tokens", Kind::Tokens), ("eigenbasis", Kind::Eigenbasis), ("coordinates", Kind::Coordinates)],
                true,
                &[(Model, 3), (Eigenbasis, 2)],
            ),
            (
                &[
                    ("queries", Kind::Gradients),
                    ("index", Kind::Index),
                    ("coordinates", Kind::Coordinates),
                    ("eigenbasis", Kind::Eigenbasis),
                    ("lambda", Kind::Lambda),
                ],
                false,
                &[(Model, 5), (Eigenbasis, 4), (Coordinates, 2)],
            ),
            (
                &[("queries", Kind::Preconditioned), ("tokens", Kind::Tokens), ("candidates", Kind::Candidates)],
                true,
                &[(Model, 2), (Queries, 2), (Tokens, 2)],
            ),
            (
                &[("queries", Kind::Preconditioned), ("tokens", Kind::Tokens), ("candidates", Kind::Ranking)],
                true,
                &[(Model, 2), (Queries, 2), (Tokens, 2)],
            ),
            (&[("scores", Kind::Scores), ("tokens", Kind::Tokens)], false, &[(Tokens, 2)]),
            (&[("scores", Kind::Details), ("tokens", Kind::Tokens)], false, &[(Tokens, 2)]),
            (
                &[
                    ("ranking", Kind::Ranking),
                    ("tokens", Kind::Tokens),
                    ("details", Kind::Details),
                    ("queries", Kind::Tokens),
                    ("losses", Kind::Losses),
                    ("scores", Kind::Scores),
                    ("columns", Kind::Columns),
                ],
                false,
                &[(Model, 4), (Tokens, 5), (Queries, 5), (Eigenbasis, 3)],
            ),
        ]
    };

    #[test]
    fn every_pair_of_inputs_that_states_one_thing_has_to_agree_on_it() {
        for (roles, runs, shared) in STAGES {
            let inputs: Vec<_> = roles.iter().map(|&(role, kind)| wired(role, kind)).collect();
            let step = of_step(runs.then_some("model"), false);
            agreed(&inputs, step.clone()).unwrap_or_else(|error| panic!("{roles:?}: {error}"));
            let mut stated: BTreeMap<Fact, Vec<usize>> = BTreeMap::new();
            for (place, input) in inputs.iter().enumerate() {
                input.says().into_keys().for_each(|fact| stated.entry(fact).or_default().push(place));
            }
            for &(fact, times) in *shared {
                let places = &stated[&fact];
                assert_eq!(places.len() + usize::from(step.contains_key(&fact)), times, "{roles:?}: {fact:?}");
                for &place in places {
                    // The only one of another study.
                    let mut others = inputs.clone();
                    let key = [Fact::Tokens, Fact::Queries, Fact::Eigenbasis, Fact::Coordinates].contains(&fact);
                    let own = key && !others[place].origin.contains_key(&fact)
                        || others[place].key == "basis" && fact == Fact::Eigenbasis
                        || others[place].key == "chosen" && fact == Fact::Coordinates;
                    let numbered =
                        [Kind::Gradients, Kind::Losses].contains(&others[place].kind) && fact == Fact::Queries;
                    if numbered {
                        others[place].origin.insert(Fact::Tokens, "else".into());
                    } else if own {
                        others[place].key = "else".into();
                    } else {
                        others[place].origin.insert(fact, "else".into());
                    }
                    let error = agreed(&others, step.clone()).unwrap_err().to_string();
                    let named = format!("input `{}`", inputs[place].role);
                    assert!(error.contains(&named) && error.contains("else"), "{roles:?}, {fact:?}: {error}");
                    let both = error.matches("input `").count() + error.matches("the step").count();
                    assert_eq!(both, 2, "both are named: {error}");
                    // What states nothing is taken.
                    if !own {
                        others[place].origin.clear();
                        agreed(&others, step.clone()).unwrap();
                    }
                }
            }
            let alone = stated.iter().filter(|(fact, places)| places.len() + usize::from(step.contains_key(fact)) > 1);
            assert_eq!(alone.count(), shared.len(), "{roles:?}: {stated:?}");
        }
    }

    #[test]
    fn a_lambda_in_the_standard_basis_meets_no_eigenbasis() {
        let standard = Wired { origin: of_step(None, true), ..wired("lambda", Kind::Lambda) };
        let gradients = wired("gradients", Kind::Gradients);
        agreed(&[gradients.clone(), standard.clone()], of_step(None, true)).unwrap();
        let error = agreed(&[gradients.clone(), wired("eigenbasis", Kind::Eigenbasis), standard], Origin::new());
        assert!(error.unwrap_err().to_string().contains("is without an eigenbasis"));
        let fitted = wired("lambda", Kind::Lambda);
        assert!(agreed(&[gradients, fitted], of_step(None, true)).is_err());
    }

    #[test]
    fn of_another_program_is_known_what_its_inputs_agree_on() {
        let mut other = wired("more", Kind::Scores);
        other.origin.insert(Fact::Model, "larger".into());
        let found = common(&[wired("scores", Kind::Scores), other], Origin::new());
        assert_eq!(found.get(&Fact::Model), None, "two models were mixed");
        assert_eq!(found.get(&Fact::Tokens).map(String::as_str), Some("corpus"));
        let gradients = common(&[wired("train", Kind::Gradients)], Origin::new());
        assert_eq!(gradients.get(&Fact::Queries), None, "nobody knows whose");
    }
}
