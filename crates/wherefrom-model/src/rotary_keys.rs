//! Rotary positions as `config.json` has them, in old and new spellings.

use anyhow::Result;
use serde_json::{Map, Value};

use crate::keys::Keys;
use crate::rotary::{Rotary, Scaling};

/// How a family writes rotary positions.
pub(crate) struct RotaryKeys {
    /// Key of the base, at the top level.
    pub(crate) theta: &'static str,
    /// The base where nothing says it.
    pub(crate) default_theta: f64,
    /// Key of the part of a head that turns, at the top level, and its default.
    pub(crate) share: (&'static str, f64),
    /// Whether a part of a head can turn alone.
    pub(crate) partial: bool,
    /// The context before stretching, where the top level does not say it and that counts more than what is inside.
    pub(crate) original: Option<f64>,
    /// Whether `su` and `yarn` mean `longrope`.
    pub(crate) long: bool,
}

/// The kinds of layers that have rotary positions of their own.
const KINDS: [&str; 2] = ["full_attention", "sliding_attention"];

/// What a table of rotary positions leaves to what stands around it.
struct Around {
    theta: f64,
    share: f64,
    /// Counts more than what is inside.
    original: Option<f64>,
    truncate: bool,
}

impl Keys {
    /// Rotary positions as `transformers` reads them: of `rope_scaling` if it says something, else of `rope_parameters`;
    /// and of keys at the top level for what is not said there.
    ///
    /// `context` is the longest sequence.
    pub(crate) fn rotary(&self, head_dim: usize, context: usize, keys: &RotaryKeys) -> Result<Rotary> {
        let (name, table) = self.rotary_table()?;
        let empty = Map::new();
        let table = table.unwrap_or(&empty);
        if let Some((inside, _)) = table.iter().find(|(_, value)| value.is_object()) {
            return Err(self.refuse(&format!(
                "`{name}` is nested (`{inside}`): positions that differ by kind of layer are not supported in this family"
            )));
        }
        let (share_key, default_share) = keys.share;
        let around = Around {
            theta: self.number_or(&[keys.theta], keys.default_theta)?,
            share: self.number_or(&[share_key], default_share)?,
            original: self.positive("original_max_position_embeddings")?.or(keys.original),
            truncate: self.truncate(table)?,
        };
        self.rotary_of(name, table, around, head_dim, context, keys)
    }

    /// Those of layers that see everything, and of those that see a window, each with its base where nothing says it. The base
    /// of the first may stand at the top level as `rope_theta`, that of the second under the key `local`.
    pub(crate) fn rotary_by_kind(
        &self,
        head_dim: usize,
        context: usize,
        thetas: [f64; 2],
        local: Option<&str>,
        keys: &RotaryKeys,
    ) -> Result<[Rotary; 2]> {
        let (name, table) = self.rotary_table()?;
        let empty = Map::new();
        let table = table.unwrap_or(&empty);
        let top = self.positive("rope_theta")?;
        let bases = match local {
            Some(local) => [top.unwrap_or(thetas[0]), self.positive(local)?.unwrap_or(thetas[1])],
            None => [top.unwrap_or(thetas[0]), thetas[1]],
        };
        let nested = table.values().any(Value::is_object);
        if name == "rope_scaling" && (nested || !self.value("rope_parameters").is_null()) {
            return Err(self
                .refuse("give `rope_parameters` by kind of layer alone, and no `rope_scaling` beside them or nested"));
        }
        if !nested && name == "rope_parameters" && !table.is_empty() {
            return Err(self.refuse(
                "`rope_parameters` are not by kind of layer, and transformers takes no notice of them in this family; write \
                 `full_attention` and `sliding_attention` in them",
            ));
        }
        if let Some(other) = table.iter().find(|(key, value)| value.is_object() && !KINDS.contains(&key.as_str())) {
            return Err(self.refuse(&format!("`{name}` has `{}`, which is no kind of layer of this family", other.0)));
        }
        let said = nested && KINDS.iter().all(|kind| !table.get(*kind).unwrap_or(&Value::Null)["rope_theta"].is_null());
        if local.is_none() && !said && top.is_some_and(|top| top != thetas[1]) {
            return Err(self.refuse(&format!(
                "`rope_theta` is {} at the top level, which transformers 5.24 takes for layers of full attention alone; write it \
                 into `rope_parameters`, for `full_attention` and for `sliding_attention`",
                self.value("rope_theta")
            )));
        }
        let truncate = self.truncate(if nested { table } else { &empty })?;
        let [full, sliding] = [0, 1].map(|kind| {
            let own = match (nested, kind) {
                (true, _) => table.get(KINDS[kind]).and_then(Value::as_object).unwrap_or(&empty),
                // What scales is of layers that see everything.
                (false, 0) => table,
                (false, _) => &empty,
            };
            let around = Around { theta: bases[kind], share: 1.0, original: None, truncate };
            self.rotary_of(name, own, around, head_dim, context, keys)
        });
        Ok([full?, sliding?])
    }

    fn truncate(&self, table: &Map<String, Value>) -> Result<bool> {
        match table.get("truncate") {
            None | Some(Value::Null) => Ok(true),
            Some(Value::Bool(truncate)) => Ok(*truncate),
            Some(_) => Err(self.refuse("`truncate` must be true or false")),
        }
    }

    fn rotary_of(
        &self,
        name: &str,
        table: &Map<String, Value>,
        around: Around,
        head_dim: usize,
        context: usize,
        keys: &RotaryKeys,
    ) -> Result<Rotary> {
        let inside =
            |key: &str, default: Option<f64>| self.number(table.get(key).unwrap_or(&Value::Null), key, default);
        let above_zero = |key: &str, value: f64| match value > 0.0 {
            true => Ok(value),
            false => Err(self.refuse(&format!("`{key}` must be above 0"))),
        };
        // None where null or not there.
        let positive = |key: &str| match inside(key, Some(f64::NAN))? {
            value if value.is_nan() => Ok(None),
            value => above_zero(key, value).map(Some),
        };
        let theta = above_zero("rope_theta", inside("rope_theta", Some(around.theta))?)?;
        let share = inside("partial_rotary_factor", Some(around.share))?;
        if !(0.0..=1.0).contains(&share) {
            return Err(self.refuse(&format!("`partial_rotary_factor` is {share}; it must be between 0 and 1")));
        }
        let kind = match table.get("rope_type").or(table.get("type")) {
            None => "default",
            Some(Value::String(kind)) if keys.long && ["su", "yarn"].contains(&kind.as_str()) => "longrope",
            Some(Value::String(kind)) => kind,
            Some(_) => return Err(self.refuse(&format!("`rope_type` in `{name}` must be a word"))),
        };
        if !keys.partial && share != 1.0 && kind != "default" {
            return Err(self.refuse(&format!(
                "`partial_rotary_factor` is {share} with `rope_type` `{kind}`, and whole heads turn in this family"
            )));
        }
        let dims = if keys.partial { (head_dim as f64 * share) as usize } else { head_dim };
        let factor = || above_zero("factor", inside("factor", None)?);
        // At the top level it counts more than inside.
        let original = || {
            let own = inside("original_max_position_embeddings", Some(context as f64))?;
            above_zero("original_max_position_embeddings", around.original.unwrap_or(own))
        };
        let scaling = match kind {
            "default" if inside("factor", Some(1.0))? != 1.0 => {
                return Err(self.refuse(&format!("`{name}` has a `factor` and no `rope_type` that makes use of it")));
            }
            "default" => Scaling::Default,
            // It changes nothing up to the model's own context, and longer sequences are refused.
            "dynamic" => factor().map(|_| Scaling::Default)?,
            "linear" => Scaling::Linear { factor: factor()? },
            "llama3" => {
                let (low, high) = (inside("low_freq_factor", None)?, inside("high_freq_factor", None)?);
                if low >= high {
                    return Err(self.refuse("`high_freq_factor` must be greater than `low_freq_factor`"));
                }
                let context = original()?;
                Scaling::Llama3 { factor: factor()?, low: above_zero("low_freq_factor", low)?, high, context }
            }
            "yarn" => {
                if !dims.is_multiple_of(2) {
                    return Err(
                        self.refuse(&format!("rope variant `yarn` over {dims} values of a head, which are no pairs"))
                    );
                }
                if theta == 1.0 {
                    return Err(self.refuse("`rope_theta` of rope variant `yarn` cannot be 1"));
                }
                let own = original()?;
                let factor = match table.get("factor") {
                    Some(Value::Null) => context as f64 / own,
                    _ => factor()?,
                };
                // 0 is as good as not there.
                let number = |key: &str| inside(key, Some(0.0)).map(|value| (value != 0.0).then_some(value));
                let amplitude = |scale: f64| if factor <= 1.0 { 1.0 } else { 0.1 * scale * factor.ln() + 1.0 };
                let amplitude = match (positive("attention_factor")?, number("mscale")?, number("mscale_all_dim")?) {
                    (Some(own), ..) => own,
                    (None, Some(scale), Some(all)) => amplitude(scale) / amplitude(all),
                    _ => amplitude(1.0),
                };
                let (fast, slow) = (number("beta_fast")?.unwrap_or(32.0), number("beta_slow")?.unwrap_or(1.0));
                let (fast, slow) = (above_zero("beta_fast", fast)?, above_zero("beta_slow", slow)?);
                Scaling::Yarn { factor, fast, slow, context: own, truncate: around.truncate, amplitude }
            }
            "longrope" => {
                let own = original()?;
                let factor = positive("factor")?.unwrap_or(context as f64 / own);
                let amplitude = match positive("attention_factor")? {
                    Some(amplitude) => amplitude,
                    None if factor <= 1.0 => 1.0,
                    None => (1.0 + factor.ln() / own.ln()).sqrt(),
                };
                let [short, long] = ["short_factor", "long_factor"].map(|key| {
                    let list = table.get(key).and_then(Value::as_array);
                    let list: Option<Vec<f64>> = list.and_then(|list| list.iter().map(Value::as_f64).collect());
                    list.filter(|list| list.len() == dims.div_ceil(2) && list.iter().all(|&factor| factor > 0.0))
                        .ok_or_else(|| {
                            self.refuse(&format!("`{key}` in `{name}` must be {} numbers above 0", dims.div_ceil(2)))
                        })
                });
                Scaling::Long { short: short?, long: long?, context: own, amplitude }
            }
            other => {
                return Err(self.refuse(&format!(
                    "rope variant `{other}` is not supported (supported: default, linear, llama3, dynamic, yarn, longrope)"
                )));
            }
        };
        let rotary = Rotary { dims, theta, scaling };
        if 2 * rotary.dims.div_ceil(2) > head_dim {
            return Err(self.refuse("rotary positions turn pairs, so `head_dim` must be even"));
        }
        Ok(rotary)
    }

    /// `rope_scaling` or `rope_parameters`, and which; neither, where both are empty.
    fn rotary_table(&self) -> Result<(&'static str, Option<&Map<String, Value>>)> {
        for name in ["rope_scaling", "rope_parameters"] {
            match self.value(name) {
                Value::Null => {}
                Value::Object(table) if table.is_empty() => {}
                Value::Object(table) => return Ok((name, Some(table))),
                other => return Err(self.refuse(&format!("`{name}` is {other}; it must be an object"))),
            }
        }
        Ok(("rope_parameters", None))
    }

    /// Keys that say something which `transformers` takes no notice of.
    pub(crate) fn unheeded(&self, keys: &RotaryKeys) -> Result<Option<String>> {
        let (name, table) = self.rotary_table()?;
        let inside = table.and_then(|table| table.get("partial_rotary_factor")).filter(|share| !share.is_null());
        let share = inside.or(Some(self.value("partial_rotary_factor")).filter(|share| !share.is_null()));
        if let Some(share) = share.filter(|share| !keys.partial && share.as_f64() != Some(1.0)) {
            return Ok(Some(format!(
                "`partial_rotary_factor` is {share} in {}, and whole heads turn in this family, as in transformers: it is not heeded",
                self.path().display()
            )));
        }
        if name == "rope_scaling" && self.value("rope_parameters").as_object().is_some_and(|table| !table.is_empty()) {
            return Ok(Some(format!(
                "`rope_scaling` stands beside `rope_parameters` in {}: it counts alone, as in transformers",
                self.path().display()
            )));
        }
        Ok(None)
    }
}
