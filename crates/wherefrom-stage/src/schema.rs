//! Knobs as a JSON schema, from the type of the configuration.

use schemars::generate::SchemaSettings;
use schemars::transform::RecursiveTransform;
use schemars::{JsonSchema, Schema};
use serde_json::Value;

/// A schema of draft 7 without references: what editors read.
pub(crate) fn knobs<C: JsonSchema>() -> Value {
    let mut settings = SchemaSettings::draft07().with_transform(RecursiveTransform(in_toml));
    settings.inline_subschemas = true;
    settings.meta_schema = None;
    settings.into_generator().into_root_schema_for::<C>().to_value()
}

/// TOML has no null: a knob that may be left out is left out. Formats such as `uint64` are Rust's.
fn in_toml(schema: &mut Schema) {
    schema.remove("format");
    if schema.get("default").is_some_and(Value::is_null) {
        schema.remove("default");
    }
    if let Some(Value::Array(types)) = schema.get_mut("type") {
        types.retain(|kind| kind != "null");
        if let [kind] = &types[..] {
            let kind = kind.clone();
            schema.insert("type".into(), kind);
        }
    }
    if let Some(Value::String(text)) = schema.get_mut("description") {
        *text = text.replace('\n', " ");
    }
}
