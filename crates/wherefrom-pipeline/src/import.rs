//! What other programs have written, as artifacts of the store.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use anyhow::{Context as _, Result};
use serde_json::json;
use wherefrom_artifact::origin::Fact;
use wherefrom_artifact::{Draft, Kind, Over, Recipe, Store, TraitVector, bad_input};
use wherefrom_persona::rollouts::Rollouts;
use wherefrom_persona::{description, import};
use wherefrom_stage::{Exec, File, Given};

use crate::files::{self, Files};
use crate::run::fill;
use crate::stage::Stage;

/// As in a recipe's `stage`, of what no stage makes.
const IMPORT: &str = "import";
/// Raised when what is made of the same file changes.
const VERSION: u32 = 1;

/// A file, and what is said of it.
#[derive(Debug, Clone, Default)]
pub struct Import {
    /// The file.
    pub file: PathBuf,
    /// The trait's name, where the file does not say it.
    pub name: Option<String>,
    /// The tokenizer of its texts.
    pub tokenizer: Option<PathBuf>,
    /// Over which tokens vectors were averaged, where the file does not say it.
    pub over: Option<Over>,
    /// Of GGUF, the site of `direction.N` less N.
    pub offset: Option<usize>,
}

impl Import {
    /// The artifacts that are made of the file: of a CSV file answers and judgements, of `.pt`, `.safetensors` and `.gguf` vectors,
    /// of any other a trait.
    ///
    /// # Errors
    /// [`wherefrom_artifact::Error::Input`] for a file that is none of these.
    pub fn run(&self, store: &Store, exec: &Exec) -> Result<Vec<(Kind, PathBuf)>> {
        let ending = self.file.extension().unwrap_or_default().to_string_lossy().to_lowercase();
        if (self.over.is_some() || self.offset.is_some()) && !import::is_known(&ending) {
            return Err(bad_input(format!(
                "{}: --over and --offset are of vectors; leave them out",
                self.file.display()
            )));
        }
        match &*ending {
            "csv" => self.rollouts(store, exec),
            ending if import::is_known(ending) => Ok(vec![self.vectors(store, exec)?]),
            _ => Ok(vec![self.described(store, exec)?]),
        }
    }

    /// The trait, as the step of a pipeline would make it, with as many pairs and questions as there are.
    fn described(&self, store: &Store, exec: &Exec) -> Result<(Kind, PathBuf)> {
        let stage = Stage::from_name("trait").context("a stage of traits")?;
        let (pairs, questions) = description::counts(&self.file)?;
        let mut knobs = json!({ "pairs": pairs, "questions": questions });
        if let Some(name) = &self.name {
            knobs["name"] = name.as_str().into();
        }
        let configured = stage.configure(&knobs)?;
        configured.check()?;
        let role = File::Trait.name();
        let digest = files::digest(store, stage, role, &self.file)?;
        let recipe = Recipe {
            stage: stage.name().into(),
            version: stage.version().context("a stage has a version")?,
            config: configured.config().clone(),
            inputs: BTreeMap::from([(role.to_string(), digest.clone())]),
            model: None,
        };
        let given = Given { inputs: BTreeMap::from([(role.to_string(), self.file.clone())]), ..Given::default() };
        let read = Files { store, stage, files: vec![(role.into(), self.file.clone(), digest)] };
        let (folder, _) = store.produce(Kind::Trait, recipe, &*exec.reporter, |draft| {
            read.guard(draft, &*exec.reporter, |draft| fill(&*configured, &given, exec, draft))
        })?;
        Ok((Kind::Trait, folder))
    }

    /// Vectors of any of the three formats.
    fn vectors(&self, store: &Store, exec: &Exec) -> Result<(Kind, PathBuf)> {
        let said = import::Said { name: self.name.as_deref(), over: self.over, offset: self.offset };
        let rows = import::read(&self.file, said)?;
        let file = store.file_digest(&self.file)?;
        let names: BTreeSet<_> = rows.iter().map(TraitVector::name).collect();
        let recipe = Recipe {
            stage: IMPORT.into(),
            version: VERSION,
            config: json!({ "vectors": names }),
            inputs: [("file".to_string(), file)].into(),
            model: None,
        };
        let (folder, _) = store.produce(Kind::Vectors, recipe, &*exec.reporter, |draft| import::write(&rows, draft))?;
        Ok((Kind::Vectors, folder))
    }

    /// Answers and judgements of the originals' CSV.
    fn rollouts(&self, store: &Store, exec: &Exec) -> Result<Vec<(Kind, PathBuf)>> {
        let Some(tokenizer) = &self.tokenizer else {
            return Err(bad_input(format!(
                "{}: its texts are encoded by the model's tokenizer; name it: --tokenizer FOLDER/tokenizer.json",
                self.file.display()
            )));
        };
        let rollouts = Rollouts::read(&self.file, self.name.as_deref())?;
        let file = store.file_digest(&self.file)?;
        // As the stage `tokenize` tells tokenizers apart.
        let tokenize = Stage::from_name("tokenize").context("a stage that tokenises")?;
        let encoding = files::digest(store, tokenize, File::Tokenizer.name(), tokenizer)?;
        let produce = |kind: Kind, inputs: &[(&str, &str)], fill: &dyn Fn(&mut Draft) -> Result<()>| {
            let inputs = inputs.iter().map(|(role, key)| (role.to_string(), key.to_string())).collect();
            let config = json!({ "name": rollouts.name });
            let recipe = Recipe { stage: IMPORT.into(), version: VERSION, config, inputs, model: None };
            let key = recipe.key();
            Ok::<_, anyhow::Error>((store.produce(kind, recipe, &*exec.reporter, fill)?.0, key))
        };
        let inputs = [("file", &file[..]), ("tokenizer", &encoding)];
        let (tokens, key) = produce(Kind::Tokens, &inputs, &|draft| rollouts.write_tokens(tokenizer, draft))?;
        let inputs = [("file", &file[..]), ("tokens", &key)];
        let (judgements, _) = produce(Kind::Judgements, &inputs, &|draft| {
            draft.origin([(Fact::Tokens, key.clone())].into());
            rollouts.write_judgements(draft)
        })?;
        Ok(vec![(Kind::Tokens, tokens), (Kind::Judgements, judgements)])
    }
}
