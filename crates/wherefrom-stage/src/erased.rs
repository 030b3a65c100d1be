//! Stages and configured stages without the types of their configurations.

use std::fmt::Debug;
use std::sync::Arc;

use anyhow::Result;
use schemars::JsonSchema;
use serde::Serialize;
use serde_json::Value;
use wherefrom_artifact::{Draft, Kind};

use crate::cost::{Cost, Machine, Planned};
use crate::exec::Exec;
use crate::given::Given;
use crate::schema;
use crate::stage::{About, Need, Stage, Writes};

/// One input of a stage, as its configuration has it.
#[derive(Debug, Clone, Copy)]
pub struct Input {
    /// As in `inputs`.
    pub name: &'static str,
    /// What it takes.
    pub kinds: &'static [Kind],
    /// Whether it must be wired.
    pub required: bool,
    /// Whether the configuration makes use of it; otherwise it stays out of the key.
    pub used: bool,
}

/// A [`Stage`] of any configuration.
pub trait AnyStage: Debug + Sync {
    /// What is known whatever the configuration is.
    fn about(&self) -> &About;

    /// Its inputs, where the configuration cannot be read.
    fn inputs(&self) -> Vec<Input>;

    /// What it writes, where that is the same for every configuration.
    fn writes(&self) -> Option<Kind>;

    /// A JSON schema (draft 7) of the knobs that are in its configuration: types, defaults and what its documentation says.
    fn schema(&self) -> Value;

    /// The stage with these knobs.
    ///
    /// # Errors
    /// Unknown, missing and impossible knobs.
    fn configure(&'static self, knobs: &Value) -> serde_json::Result<Arc<dyn Configured>>;
}

/// A stage with its configuration.
pub trait Configured: Debug + Send + Sync {
    /// The configuration, every default filled in: what is hashed.
    fn config(&self) -> &Value;

    /// Refuses a configuration, in words for the user.
    ///
    /// # Errors
    /// [`wherefrom_artifact::Error::Input`].
    fn check(&self) -> Result<()>;

    /// What it writes.
    fn writes(&self) -> Kind;

    /// Its inputs; none where it takes whatever it is given.
    fn inputs(&self) -> Option<Vec<Input>>;

    /// The `config.json` of the checkpoint that it makes, if it makes one.
    fn makes_model(&self) -> Option<Value>;

    /// What it takes, from shapes and token counts alone.
    fn cost(&self, planned: &Planned, machine: &Machine) -> Cost;

    /// Fills the draft.
    ///
    /// # Errors
    /// What the stage refuses or cannot do.
    fn run(&self, given: &Given, exec: &Exec, draft: &mut Draft) -> Result<()>;
}

impl<C> Stage<C> {
    fn inputs(&self, config: Option<&C>) -> Vec<Input> {
        let input = |role: &crate::stage::Role<C>| {
            let (required, used) = match (&role.need, config) {
                (Need::Required, _) => (true, true),
                (Need::Optional, _) | (Need::When(_), None) => (false, true),
                (Need::When(used), Some(config)) => {
                    let used = used(config);
                    (used, used)
                }
            };
            Input { name: role.name, kinds: role.kinds, required, used }
        };
        self.roles.iter().map(input).collect()
    }
}

impl<C: Serialize + JsonSchema + Debug + Send + Sync> AnyStage for Stage<C> {
    fn about(&self) -> &About {
        &self.about
    }

    fn inputs(&self) -> Vec<Input> {
        Stage::inputs(self, None)
    }

    fn writes(&self) -> Option<Kind> {
        match self.writes {
            Writes::One(kind) => Some(kind),
            Writes::By(_) => None,
        }
    }

    fn schema(&self) -> Value {
        schema::knobs::<C>()
    }

    fn configure(&'static self, knobs: &Value) -> serde_json::Result<Arc<dyn Configured>> {
        let config = (self.parse)(knobs.clone())?;
        let value = serde_json::to_value(&config)?;
        Ok(Arc::new(WithConfig { stage: self, config, value }))
    }
}

#[derive(Debug)]
struct WithConfig<C: 'static> {
    stage: &'static Stage<C>,
    config: C,
    value: Value,
}

impl<C: Serialize + Debug + Send + Sync> Configured for WithConfig<C> {
    fn config(&self) -> &Value {
        &self.value
    }

    fn check(&self) -> Result<()> {
        (self.stage.check)(&self.config)
    }

    fn writes(&self) -> Kind {
        match self.stage.writes {
            Writes::One(kind) => kind,
            Writes::By(kind) => kind(&self.config),
        }
    }

    fn inputs(&self) -> Option<Vec<Input>> {
        Some(self.stage.inputs(Some(&self.config)))
    }

    fn makes_model(&self) -> Option<Value> {
        (self.stage.makes_model)(&self.config)
    }

    fn cost(&self, planned: &Planned, machine: &Machine) -> Cost {
        (self.stage.cost)(&self.config, planned, machine)
    }

    fn run(&self, given: &Given, exec: &Exec, draft: &mut Draft) -> Result<()> {
        (self.stage.run)(&self.config, given, exec, draft)
    }
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;
    use serde_json::json;

    use super::*;
    use crate::stage::{Role, at_least};

    #[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
    #[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
    struct Config {
        top: usize,
        detail: bool,
    }

    impl Default for Config {
        fn default() -> Self {
            Self { top: 5, detail: false }
        }
    }

    static STAGE: Stage<Config> = Stage {
        about: About::new("sort", 3),
        roles: &[
            Role::required("scores", &[Kind::Scores]),
            Role::when("tokens", &[Kind::Tokens], |config| config.detail),
            Role::optional("queries", &[Kind::Tokens]),
        ],
        parse: |knobs| at_least("top", 1, knobs),
        check: |_| Ok(()),
        writes: Writes::By(|config| if config.detail { Kind::Details } else { Kind::Scores }),
        makes_model: |_| None,
        cost: |config, planned, _| Cost::new(config.top as f64, planned.size.rows, 0.0),
        run: |_, _, _, _| Ok(()),
    };

    fn needs(inputs: &[Input]) -> Vec<(bool, bool)> {
        inputs.iter().map(|input| (input.required, input.used)).collect()
    }

    #[test]
    fn one_configuration_is_hashed_and_decides() {
        let plain = STAGE.configure(&json!({})).unwrap();
        assert_eq!(plain.config(), &json!({ "top": 5, "detail": false }));
        assert_eq!(plain.writes(), Kind::Scores);
        assert_eq!(needs(&plain.inputs().unwrap()), [(true, true), (false, false), (false, true)]);
        let detailed = STAGE.configure(&json!({ "detail": true })).unwrap();
        assert_eq!(detailed.writes(), Kind::Details);
        assert_eq!(needs(&detailed.inputs().unwrap()), [(true, true), (true, true), (false, true)]);
    }

    #[test]
    fn without_a_configuration_nothing_is_held_against_a_wire() {
        let error = STAGE.configure(&json!({ "top": 0 })).unwrap_err();
        assert_eq!(error.to_string(), "out of range; set it to 1 or more");
        assert!(STAGE.configure(&json!({ "tpo": 1 })).unwrap_err().to_string().starts_with("unknown field `tpo`"));
        let stage: &dyn AnyStage = &STAGE;
        assert_eq!(needs(&stage.inputs()), [(true, true), (false, true), (false, true)]);
        assert_eq!(stage.writes(), None);
    }
}
