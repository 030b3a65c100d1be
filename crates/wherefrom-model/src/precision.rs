//! In what a model runs forward and backward.

use anyhow::Result;
use burn::tensor::{Device, FloatDType, Tensor};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use wherefrom_linalg::kernels::round;

use crate::error::bad_input;

/// In what products and tensors of the forward and the backward pass are. Sums over tokens and examples are float32 and
/// float64 throughout.
///
/// `bf16` is of products: their operands (weights, embeddings, activations, gradients) are rounded to bfloat16 and summed in
/// float32; residual stream, norms, attention and loss are float32. Products of the curvature and of scores take rounded
/// activations and gradients, too. A processor with AVX512-BF16 multiplies so at twice the rate of float32; any other does the
/// same arithmetic at less than the rate of float32.
///
/// `f16` rounds every tensor of both passes to float16; products accumulate in float32, and norms, attention and loss are
/// computed in float32 inside. A GPU has such tensors; the CPU does the same arithmetic on them, slower than float32: there
/// it shows what that does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Precision {
    /// float32: 8 bits of exponent, 24 of significand.
    #[default]
    F32,
    /// float16: 5 and 11 bits; overflows at 65,504.
    F16,
    /// bfloat16: 8 and 8 bits.
    Bf16,
}

impl Precision {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::F32, Self::F16, Self::Bf16];

    /// Whether it is float32: a knob that came later than its stage stays out of the key then.
    pub fn is_f32(&self) -> bool {
        *self == Self::F32
    }

    /// As the knob says it.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::Bf16 => "bf16",
        }
    }

    /// The type of matrices as products take them, and with them of the products.
    pub(crate) fn matrices(self) -> FloatDType {
        match self {
            Self::F32 => FloatDType::F32,
            Self::F16 => FloatDType::F16,
            Self::Bf16 => FloatDType::BF16,
        }
    }

    /// A number as activations have it.
    pub(crate) fn rounded(self, number: f32) -> f32 {
        if self == Self::F16 { half::f16::from_f32(number).to_f32() } else { number }
    }

    /// The type of gains, biases, activations and their gradients.
    pub(crate) fn activations(self) -> FloatDType {
        if self == Self::F16 { FloatDType::F16 } else { FloatDType::F32 }
    }

    /// x as the operand of a product that no matrix of weights says the type of.
    pub fn operand(self, x: Tensor<2>) -> Tensor<2> {
        if self == Self::Bf16 { round(x, FloatDType::BF16) } else { x }
    }

    /// What the loss is multiplied by in the backward pass, and taps are divided by: a power of two, so that nothing is rounded.
    ///
    /// Gradients of float16 have 16 bits for 2^-24 to 2^16. With 2^8, an output gradient may be as small as 2^-32 and as
    /// large as 255.
    pub(crate) fn loss_scale(self) -> f32 {
        if self == Self::F16 { 256.0 } else { 1.0 }
    }

    /// Whether a device computes in it.
    pub fn runs_on(self, device: &Device) -> bool {
        device.supports_dtype(self.matrices())
    }

    /// Refuses a device that does not compute in it.
    pub(crate) fn check(self, device: &Device) -> Result<()> {
        if self.runs_on(device) {
            return Ok(());
        }
        let adapter = crate::found::of(device).map_or("the CPU", |(adapter, _)| &adapter.name);
        let name = self.name();
        Err(bad_input(format!(
            "precision = \"{name}\": {adapter} does not compute in {name}; use \"f32\", or --device cpu"
        )))
    }
}
