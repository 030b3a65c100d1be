//! A JSON schema of pipeline files, for editors. Each stage says its knobs, inputs and files itself.

use serde_json::{Map, Value, json};
use wherefrom_artifact::Kind;
use wherefrom_model::Attribute;
use wherefrom_stage::{Checkpoint, File, Input, MODULES_PER_PASS};

use crate::stage::Stage;
use crate::step::ADAPTER;

/// The schema, of draft 7: which keys a pipeline may have, and their types, defaults and meaning. What depends on other keys,
/// on ranges or on files is left to [`crate::Plan::read`].
pub fn schema() -> Value {
    let stages: Map<_, _> = Stage::all().map(|stage| (stage.name().into(), step(stage))).collect();
    let mut model = Map::from_iter([("path".into(), text(CHECKPOINT)), (ADAPTER.into(), adapters()), attribute()]);
    for (stage, inherited) in Stage::all().flat_map(|stage| stage.inherits().iter().map(move |knob| (stage, *knob))) {
        model.entry(inherited).or_insert_with(|| stages[stage.name()]["properties"][inherited].clone());
    }
    let reference = |name: &str| json!({ "$ref": format!("#/definitions/{name}") });
    let chosen = |name: &str| json!({ "if": { "properties": { "stage": { "const": name } }, "required": ["stage"] }, "then": reference(name) });
    let chosen: Vec<_> = Stage::names().into_iter().map(chosen).collect();
    // Held against a step are the conditions. Taplo looks for completions and descriptions in `anyOf`, and not behind an `if`;
    // the last of these takes everything.
    let known: Vec<_> = Stage::names().into_iter().map(reference).chain([json!({})]).collect();
    json!({
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": "Pipeline of wherefrom",
        "type": "object",
        "properties": {
            "about": text("What the study is for: for people."),
            "model": {
                "description": "The checkpoint of every step that runs one, and defaults of knobs.",
                "type": "object", "properties": model, "additionalProperties": false,
            },
            "steps": {
                "description": "Steps by name; their order does not matter.",
                "type": "object",
                "additionalProperties": {
                    "type": "object",
                    "properties": {
                        "stage": { "description": "What the step runs.", "type": "string", "enum": Stage::names() },
                    },
                    "required": ["stage"],
                    "allOf": chosen,
                    "anyOf": known,
                },
            },
        },
        "required": ["steps"],
        "additionalProperties": false,
        "definitions": stages,
    })
}

const CHECKPOINT: &str = "The folder of a checkpoint, or hf:OWNER/NAME@REVISION.";

/// The knob `adapter`.
fn adapters() -> Value {
    let what = "Adapters on the model, in order: folders of PEFT, hf:OWNER/NAME@REVISION, or steps that train one.";
    json!({
        "description": what,
        "anyOf": [{ "type": "string" }, { "type": "array", "items": { "type": "string" } }],
    })
}

/// What a knob of a stage is, in a sentence without its stop.
pub(crate) fn means(stage: Stage, knob: &str) -> Option<String> {
    let schema = step(stage);
    let text = schema["properties"][knob]["description"].as_str()?;
    Some(text.split(". ").next()?.trim_end_matches('.').to_string())
}

/// The knob `attribute`.
fn attribute() -> (String, Value) {
    let what = "What is attributed of a model with adapters: their A and B, the weights that they are merged into, or those of the base.";
    ("attribute".into(), json!({ "description": what, "enum": Attribute::ALL.map(|(word, _)| word) }))
}

/// A step that runs the stage.
fn step(stage: Stage) -> Value {
    let Stage::Own(own) = stage else { return external() };
    let mut schema = own.schema();
    for word in ["title", "description"] {
        // Those of a Rust type.
        schema.as_object_mut().map(|schema| schema.remove(word));
    }
    // Every stage refuses knobs that it does not have.
    schema["additionalProperties"] = json!(false);
    let inputs = own.inputs();
    let needed = inputs.iter().any(|input| input.required);
    let mut add = |name: &str, knob: Value, required: bool| {
        schema["properties"][name] = knob;
        if required {
            match schema["required"].as_array_mut() {
                Some(names) => names.push(name.into()),
                None => schema["required"] = json!([name]),
            }
        }
    };
    add("stage", json!({ "const": stage.name() }), true);
    if !inputs.is_empty() {
        add("inputs", wires(&inputs), needed);
    }
    // A step that is given tokens takes their corpus.
    let corpus = !inputs.iter().any(|input| input.name == "tokens");
    for file in stage.files().iter().filter(|file| file.is_knob()) {
        add(file.name(), text(file.describe()), corpus && *file == File::Corpus);
    }
    if stage.several_passes() {
        let what = "Modules summed in one pass over the tokens; by default as many as fit the memory.";
        add(MODULES_PER_PASS, json!({ "description": what, "type": "integer", "minimum": 1 }), false);
    }
    if stage.checkpoint() != Checkpoint::None {
        add("model", text(&format!("{CHECKPOINT} Or a step that makes one; by default that of [model].")), false);
        add(ADAPTER, adapters(), false);
        let (name, words) = attribute();
        add(&name, words, false);
    }
    schema
}

/// The table `inputs`.
fn wires(inputs: &[Input]) -> Value {
    let wire = |input: &Input| {
        let kinds: Vec<_> = input.kinds.iter().map(|kind| kind.name()).collect();
        (input.name.into(), text(&format!("A step, store:KEY or a folder that has {}.", kinds.join(" or "))))
    };
    let required: Vec<_> = inputs.iter().filter(|input| input.required).map(|input| input.name).collect();
    json!({
        "description": "What the step reads, by role.",
        "type": "object",
        "properties": inputs.iter().map(wire).collect::<Map<_, _>>(),
        "required": required,
        "additionalProperties": false,
    })
}

/// A step that runs a program of the user's, with any knobs.
fn external() -> Value {
    json!({
        "type": "object",
        "properties": {
            "stage": { "const": Stage::External.name() },
            "command": {
                "description": "The program and its arguments: words, no shell.",
                "type": "array", "items": { "type": "string" }, "minItems": 1,
            },
            "writes": { "description": "The kind that it writes.", "enum": Kind::ALL.map(Kind::name) },
            "version": {
                "description": "Raised when results of the program change.",
                "type": "integer", "minimum": 0, "maximum": u32::MAX,
            },
            "inputs": {
                "description": "What the program reads, by role: a step, store:KEY or a folder.",
                "type": "object", "additionalProperties": { "type": "string" },
            },
            "model": text(CHECKPOINT),
            ADAPTER: adapters(),
            "attribute": attribute().1,
        },
        "required": ["stage", "command", "writes", "version"],
    })
}

fn text(description: &str) -> Value {
    json!({ "description": description, "type": "string" })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The knobs of every stage's schema, without those that are in no configuration.
    fn knobs() -> Vec<(Stage, Map<String, Value>, Vec<String>)> {
        let own = Stage::all().filter_map(|stage| match stage {
            Stage::Own(own) => Some((stage, own.schema())),
            Stage::External => None,
        });
        own.map(|(stage, schema)| {
            let required = schema["required"].as_array().cloned().unwrap_or_default();
            let required = required.iter().map(|name| name.as_str().unwrap().into()).collect();
            (stage, schema["properties"].as_object().cloned().unwrap_or_default(), required)
        })
        .collect()
    }

    /// A value for each knob that has to be given.
    fn least(required: &[String]) -> Map<String, Value> {
        let value = |name: &str| match name {
            "keep" => json!(["source"]),
            "column" => json!("source"),
            "provider" => json!("file"),
            "side" => json!("pos"),
            _ => json!(320),
        };
        required.iter().map(|name| (name.clone(), value(name))).collect()
    }

    #[test]
    fn defaults_of_the_schema_are_those_of_the_stage() {
        let mut count = 0;
        for (stage, knobs, required) in knobs() {
            let mut given = least(&required);
            let bare = stage.configure(&Value::Object(given.clone())).unwrap();
            let defaults = knobs.iter().filter_map(|(name, knob)| Some((name.clone(), knob.get("default")?.clone())));
            let before = given.len();
            given.extend(defaults);
            count += given.len() - before;
            let spelt = stage.configure(&Value::Object(given)).unwrap();
            assert_eq!(spelt.config(), bare.config(), "{}", stage.name());
        }
        assert!(count > 40, "{count}");
    }

    #[test]
    fn the_schema_has_every_knob_and_no_other() {
        for (stage, knobs, required) in knobs() {
            let configured = stage.configure(&Value::Object(least(&required))).unwrap();
            for knob in configured.config().as_object().unwrap().keys() {
                assert!(knobs.contains_key(knob), "{}: {knob}", stage.name());
            }
            for knob in knobs.keys() {
                let error = stage.configure(&json!({ (knob.as_str()): ["no", {}, "knob"] })).unwrap_err().to_string();
                assert!(!error.starts_with("unknown field"), "{}: {knob}: {error}", stage.name());
            }
            let mut more = least(&required);
            more.insert("no-such-knob".into(), json!(1));
            let error = stage.configure(&Value::Object(more)).unwrap_err().to_string();
            assert!(error.starts_with("unknown field"), "{}: {error}", stage.name());
        }
    }

    #[test]
    fn every_knob_is_described_in_words_for_users() {
        for (stage, knobs, _) in knobs() {
            for (name, knob) in &knobs {
                let what = knob["description"].as_str().unwrap_or_default();
                assert!(!what.is_empty() && !what.contains("[`"), "{}: {name}: {what}", stage.name());
            }
        }
    }
}
