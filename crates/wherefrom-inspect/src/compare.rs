//! What two rankings, or the scores that they are taken from, have in common, and what moved between them.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::Path;
use std::sync::Arc;

use anyhow::Result;
use serde::Serialize;
use serde_json::Value;
use wherefrom_artifact::origin::Fact;
use wherefrom_artifact::text::{clipped, one_line, significant};
use wherefrom_artifact::{
    Artifact, ArtifactKind, Details, Example, Kind, Lineage, Manifest, Ranked, Ranking, Row, Score, Scores, Store,
    Tokens, bad_input, open_any,
};

use crate::spearman::spearman;

/// What moved most, of each query.
const MOVERS: usize = 3;
/// Queries whose movers are listed as text.
const QUERIES: usize = 20;
/// Fewest examples that are correlated.
const FEWEST: usize = 3;
/// Characters of a name that are shown.
const NAME: usize = 44;

/// Two rankings, or scores, side by side.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Compared {
    /// Keys of the two.
    pub keys: [String; 2],
    /// Their kinds.
    pub kinds: [&'static str; 2],
    /// What was different in the making: `precondition: damping {"relative":0.1} -> {"relative":0.01}`.
    pub differences: Vec<String>,
    /// How many of the strongest of each sign are the top.
    pub top: usize,
    /// Each query that both have.
    pub queries: Vec<Comparison>,
    /// Queries that only one has.
    pub unmatched: usize,
}

/// A query in two rankings.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Comparison {
    /// Its number in the first.
    pub query: u32,
    /// Its name, if the store still has the queries.
    pub name: String,
    /// How many of the top positive examples both have, and of the negative ones, each out of how many.
    pub overlap: [(usize, usize); 2],
    /// Spearman's correlation of the influences of examples that both rank; none where they are fewer than three.
    pub spearman: Option<f64>,
    /// How many examples both rank.
    pub common: usize,
    /// What of either top moved most.
    pub movers: Vec<Mover>,
}

/// An example that moved.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Mover {
    /// Its documents.
    pub doc: String,
    /// Its number in the corpus of the first ranking that has it.
    pub example: u64,
    /// Its rank in each, with the sign of its influence; none where it is not ranked.
    pub ranks: [Option<i64>; 2],
    /// Its influence in each.
    pub influences: [Option<f32>; 2],
}

/// An example in its place. Ranks start at 1 in each sign.
struct Place {
    example: u64,
    /// Its documents, joined; empty where nothing says which they are.
    doc: Arc<str>,
    positive: bool,
    rank: u32,
    influence: f32,
}

/// A ranking, read.
struct Read {
    manifest: Manifest,
    rows: BTreeMap<u32, Vec<Place>>,
    /// Names of the queries, and their texts, by which they are told where they are of other tokens.
    queries: BTreeMap<u32, (String, [Vec<String>; 2])>,
}

impl Read {
    fn new(store: &Store, folder: &Path) -> Result<Self> {
        let manifest = open_any(folder)?;
        let rows = match manifest.kind {
            Kind::Ranking => listed(&Artifact::open(folder)?)?,
            Kind::Scores => sorted(store, &Artifact::<Scores>::open(folder)?)?,
            Kind::Details => sorted(store, &Artifact::<Details>::open(folder)?)?,
            other => {
                return Err(bad_input(format!(
                    "{} is {}, and rankings or scores are compared, or two artifacts of vectors, projections or judgements",
                    folder.display(),
                    other.name()
                )));
            }
        };
        let outside = BTreeMap::new();
        let queries = Lineage::new(store, &outside).queries(folder);
        let queries = queries.and_then(|tokens| tokens.rows::<Example>().ok()).into_iter().flatten();
        let known = |row: Example| {
            Some((u32::try_from(row.example).ok()?, (row.docs.join(" + "), [vec![row.text], row.segment_texts])))
        };
        let queries = queries.filter_map(|row| known(row.ok()?)).collect();
        Ok(Self { queries, manifest, rows })
    }
}

/// The places of a ranking, by query.
fn listed(ranking: &Artifact<Ranking>) -> Result<BTreeMap<u32, Vec<Place>>> {
    let mut places: BTreeMap<u32, Vec<Place>> = BTreeMap::new();
    for row in ranking.rows::<Ranked>()? {
        let Ranked { query, example, doc, positive, rank, influence, .. } = row?;
        places.entry(query).or_default().push(Place { example, doc: doc.into(), positive, rank, influence });
    }
    Ok(places)
}

/// The places that all examples of scores have, as the stage `rank` would give them.
fn sorted<K: ArtifactKind>(store: &Store, scores: &Artifact<K>) -> Result<BTreeMap<u32, Vec<Place>>>
where
    Score: Row<K>,
{
    let key = scores.manifest().origin().get(&Fact::Tokens).cloned().unwrap_or_default();
    let mut docs: Vec<Arc<str>> = Vec::new();
    if let Ok(tokens) = Artifact::<Tokens>::open(&store.folder(Kind::Tokens, &key)) {
        for row in tokens.rows::<Example>()? {
            docs.push(row?.docs.join(" + ").into());
        }
    }
    let unknown: Arc<str> = "".into();
    let mut places: BTreeMap<u32, Vec<Place>> = BTreeMap::new();
    for row in scores.rows::<Score>()? {
        let Score { query, example, influence } = row?;
        if influence != 0.0 {
            let doc = usize::try_from(example).ok().and_then(|example| docs.get(example)).unwrap_or(&unknown).clone();
            let place = Place { example, doc, positive: influence > 0.0, rank: 0, influence };
            places.entry(query).or_default().push(place);
        }
    }
    for places in places.values_mut() {
        places.sort_by(|x, y| y.influence.abs().total_cmp(&x.influence.abs()).then(x.example.cmp(&y.example)));
        let mut last = [0, 0];
        for place in places {
            last[usize::from(place.positive)] += 1;
            place.rank = last[usize::from(place.positive)];
        }
    }
    Ok(places)
}

/// Compares the rankings or scores in two folders, by example where they are of one corpus and by document where they are not.
///
/// # Errors
/// Artifacts that are neither; two without a query in common.
pub fn compare(store: &Store, a: &Path, b: &Path, top: usize) -> Result<Compared> {
    if top == 0 {
        return Err(bad_input("--top: one at least"));
    }
    let (a, b) = (Read::new(store, a)?, Read::new(store, b)?);
    let same = |fact: Fact| {
        let of = |read: &Read| read.manifest.origin().get(&fact).cloned();
        of(&a).is_some() && of(&a) == of(&b)
    };
    let (same_corpus, same_queries) = (same(Fact::Tokens), same(Fact::Queries));
    let partner = |query: u32| {
        if same_queries {
            return Some(query).filter(|query| b.rows.contains_key(query));
        }
        // A name alone is none where rows are numbered: `row 0` is another question in each file.
        let own = a.queries.get(&query)?;
        b.queries.iter().find(|(other, its)| *its == own && b.rows.contains_key(other)).map(|(other, _)| *other)
    };
    let pairs: Vec<(u32, u32)> = a.rows.keys().filter_map(|&query| Some((query, partner(query)?))).collect();
    if pairs.is_empty() {
        return Err(bad_input(
            "the two have no query in common: they are of different queries, and none has the name and the text of one \
             of the others",
        ));
    }
    let queries = pairs.iter().map(|&(query, other)| {
        let name = a.queries.get(&query).map(|(name, _)| name.clone()).unwrap_or_default();
        compared(query, name, [&a.rows[&query], &b.rows[&other]], same_corpus, top)
    });
    let mut differences = Vec::new();
    differ(store, &a.manifest, &b.manifest, &mut BTreeSet::new(), &mut differences);
    Ok(Compared {
        keys: [a.manifest.key.clone(), b.manifest.key.clone()],
        kinds: [a.manifest.kind.name(), b.manifest.kind.name()],
        differences,
        top,
        queries: queries.collect(),
        unmatched: a.rows.len() + b.rows.len() - 2 * pairs.len(),
    })
}

/// What an example is known by: its number where both are of one corpus, else its documents.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Identity {
    Number(u64),
    Document(Arc<str>),
}

fn compared(query: u32, name: String, rankings: [&Vec<Place>; 2], same_corpus: bool, top: usize) -> Comparison {
    let identity = |row: &Place| {
        if same_corpus { Identity::Number(row.example) } else { Identity::Document(row.doc.clone()) }
    };
    let by_identity = rankings.map(|rows| rows.iter().map(|row| (identity(row), row)).collect::<BTreeMap<_, _>>());
    let strongest = |positive: bool| {
        rankings.map(|rows| {
            let rows = rows.iter().filter(|row| row.positive == positive && row.rank as usize <= top);
            rows.map(identity).collect::<BTreeSet<_>>()
        })
    };
    let tops = [true, false].map(strongest);
    let overlap = tops.each_ref().map(|[a, b]| (a.intersection(b).count(), a.len().max(b.len())));
    let common: Vec<_> =
        by_identity[0].iter().filter_map(|(known, row)| Some((*row, *by_identity[1].get(known)?))).collect();
    let values = |of: fn(&(&Place, &Place)) -> f32| common.iter().map(|pair| f64::from(of(pair))).collect::<Vec<_>>();
    let correlated =
        (common.len() >= FEWEST).then(|| spearman(&values(|pair| pair.0.influence), &values(|pair| pair.1.influence)));
    // What is not ranked lies behind the last that is.
    let last = |place: usize, positive: bool| {
        rankings[place].iter().filter(|row| row.positive == positive).map(|row| i64::from(row.rank)).max().unwrap_or(0)
    };
    let mut movers: Vec<(i64, Mover)> = Vec::new();
    for known in tops.iter().flatten().flatten().collect::<BTreeSet<_>>() {
        let rows = by_identity.each_ref().map(|rows| rows.get(known).copied());
        let Some(any) = rows[0].or(rows[1]) else { continue };
        let place = |number: usize| match rows[number] {
            Some(row) if row.positive == any.positive => i64::from(row.rank),
            _ => last(number, any.positive) + 1,
        };
        let signed = |row: &Place| if row.positive { i64::from(row.rank) } else { -i64::from(row.rank) };
        let mover = Mover {
            doc: any.doc.to_string(),
            example: any.example,
            ranks: rows.map(|row| row.map(signed)),
            influences: rows.map(|row| row.map(|row| row.influence)),
        };
        movers.push(((place(0) - place(1)).abs(), mover));
    }
    movers.retain(|(moved, _)| *moved > 0);
    movers.sort_by(|x, y| y.0.cmp(&x.0).then_with(|| x.1.doc.cmp(&y.1.doc)));
    let movers = movers.into_iter().take(MOVERS).map(|(_, mover)| mover).collect();
    Comparison { query, name, overlap, spearman: correlated, common: common.len(), movers }
}

/// What is different in two recipes and in those of their inputs.
fn differ(store: &Store, a: &Manifest, b: &Manifest, seen: &mut BTreeSet<(String, String)>, found: &mut Vec<String>) {
    if a.key == b.key || !seen.insert((a.key.clone(), b.key.clone())) {
        return;
    }
    let stage = &a.recipe.stage;
    let mut say = |line: String| {
        if !found.contains(&line) {
            found.push(line);
        }
    };
    if (stage, a.recipe.version) != (&b.recipe.stage, b.recipe.version) {
        let [a, b] = [a, b].map(|manifest| format!("{} (version {})", manifest.recipe.stage, manifest.recipe.version));
        say(format!("stage {a} -> {b}"));
    }
    let names =
        |value: &Value| value.as_object().map(|map| map.keys().cloned().collect::<BTreeSet<_>>()).unwrap_or_default();
    let (x, y) = (&a.recipe.config, &b.recipe.config);
    for name in names(x).union(&names(y)).filter(|name| x[*name] != y[*name]) {
        let shown = |value: &Value| if value.is_null() { "default".into() } else { clipped(&value.to_string(), 60) };
        say(format!("{stage}: {name} {} -> {}", shown(&x[name]), shown(&y[name])));
    }
    let roles: BTreeSet<_> = a.recipe.inputs.keys().chain(b.recipe.inputs.keys()).collect();
    let inputs = roles.into_iter().map(|role| (&role[..], a.recipe.inputs.get(role), b.recipe.inputs.get(role)));
    let model = ("model", a.recipe.model.as_ref(), b.recipe.model.as_ref());
    let open = |key: Option<&String>| {
        let key = key?;
        wherefrom_artifact::Kind::ALL.into_iter().find_map(|kind| Manifest::read(&store.folder(kind, key)).ok())
    };
    let mut deeper = Vec::new();
    for (role, x, y) in inputs.chain([model]).filter(|(_, x, y)| x != y) {
        match (open(x), open(y)) {
            (Some(x), Some(y)) => deeper.push((x, y)),
            _ => say(match (x, y) {
                (Some(_), None) => format!("{stage}: input {role} in a alone"),
                (None, Some(_)) => format!("{stage}: input {role} in b alone"),
                _ => format!("{stage}: another input {role}"),
            }),
        }
    }
    for (x, y) in deeper {
        differ(store, &x, &y, seen, found);
    }
}

impl fmt::Display for Compared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let top = self.top;
        writeln!(f, "a  {}\nb  {}", self.keys[0], self.keys[1])?;
        if self.keys[0] == self.keys[1] {
            return writeln!(f, "both are the same artifact: nothing can differ");
        }
        if self.kinds[0] != self.kinds[1] {
            writeln!(
                f,
                "a is {}, b is {}: ranks are compared, influences may be in other units",
                self.kinds[0], self.kinds[1]
            )?;
        }
        let different = if self.differences.is_empty() {
            "nothing that the store still knows of".into()
        } else {
            self.differences.join("\n   ")
        };
        writeln!(f, "different in the making (a -> b):\n   {different}\n")?;
        let shown = |query: &Comparison| format!("{} {}", query.query, clipped(&one_line(&query.name), NAME));
        let width = self.queries.iter().map(|query| shown(query).chars().count()).max().unwrap_or(0).max("query".len());
        let heads = [format!("top {top} +"), format!("top {top} -")];
        writeln!(f, "{:<width$}  {:>10}  {:>10}  rank correlation", "query", heads[0], heads[1])?;
        for query in &self.queries {
            let [more, less] = query.overlap.map(|(both, of)| format!("{both} of {of}"));
            let correlation = query.spearman.map_or_else(|| "-".into(), |value| format!("{value:.3}"));
            writeln!(
                f,
                "{:<width$}  {more:>10}  {less:>10}  {correlation} over {} ranked in both",
                shown(query),
                query.common
            )?;
        }
        if self.unmatched > 0 {
            writeln!(f, "and {} queries that only one of the two has", self.unmatched)?;
        }
        let moved: Vec<_> = self.queries.iter().filter(|query| !query.movers.is_empty()).collect();
        if !moved.is_empty() {
            writeln!(f, "\nlargest moves within the top {top} of either, rank and influence (a -> b)")?;
        }
        for query in moved.iter().take(QUERIES) {
            writeln!(f, "query {}", shown(query))?;
            for mover in &query.movers {
                let [a, b] = mover.ranks.map(|rank| rank.map_or_else(|| "-".into(), |rank| format!("{rank:+}")));
                let [x, y] = mover.influences.map(|value| value.map_or_else(|| "-".into(), significant));
                writeln!(f, "  {a:>5} -> {b:<5}  {x:>10} -> {y:<10}  {}", clipped(&one_line(&mover.doc), NAME))?;
            }
        }
        if moved.len() > QUERIES {
            writeln!(f, "and {} more queries: --json has all", moved.len() - QUERIES)?;
        }
        Ok(())
    }
}
