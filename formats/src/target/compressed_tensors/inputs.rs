//! What a configuration says of the inputs of its linears (`input_activations`), and the scales of those that have fixed ones:
//!
//! | tensor | type | shape | content |
//! |---|---|---|---|
//! | `P.input_scale` | any float | `[1]` | of all inputs |
//! | `P.input_zero_point` | I8 | `[1]` | integers that are not symmetric only |

use quantizer::inputs::{InputNumbers, InputRounding, InputScale};
use quantizer::levels::Levels;
use quantizer::scheme::BitWidth;
use serde_json::{Value, json};

use super::super::packed_parts::StoredLinear;
use super::super::settings::given;
use crate::checkpoint::Dtype;
use crate::error::FormatsError;

const SCALE: &str = "input_scale";
const ZERO_POINT: &str = "input_zero_point";

/// What runtimes do with the inputs of a linear before they multiply.
#[derive(Clone, Debug)]
pub(super) enum Inputs {
    /// Nothing.
    AsTheyAre,
    /// They round them, with scales from the inputs.
    Dynamic(InputRounding),
    /// They round them with the checkpoint's scale.
    Fixed {
        /// To what.
        numbers: InputNumbers,
        /// Without a zero point.
        symmetric: bool,
    },
    /// They round them in a way that nobody follows here: what the configuration says.
    Other(String),
}

impl Inputs {
    pub(super) fn read(group: &Value) -> Result<Self, String> {
        let Some(said) = given(group, "input_activations") else { return Ok(Self::AsTheyAre) };
        if let Some(dynamic) =
            given(said, "dynamic").filter(|dynamic| !dynamic.is_boolean() && **dynamic != "local")
        {
            return Err(format!("has inputs that are dynamic {dynamic}, expected true, false or \"local\""));
        }
        Ok(Self::known(said).unwrap_or_else(|| Self::Other(words(said))))
    }

    /// What is computed here; none for other ways to round.
    fn known(said: &Value) -> Option<Self> {
        let text = |key, otherwise| given(said, key).map_or(Some(otherwise), Value::as_str);
        let flag = |key, otherwise| given(said, key).map_or(Some(otherwise), Value::as_bool);
        let bits = given(said, "num_bits").map_or(Some(8), Value::as_u64)?;
        let bits = BitWidth::new(u8::try_from(bits).ok()?).ok()?;
        let symmetric = flag("symmetric", true)?;
        let numbers = match (text("type", "int")?, bits.get()) {
            ("int", _) => InputNumbers::Integers(bits),
            ("float", 8) if symmetric => InputNumbers::E4m3,
            _ => return None,
        };
        if given(said, "scale_dtype").is_some() {
            return None;
        }
        let of_token = |columns| {
            let scale = InputScale::OfToken { columns, symmetric };
            Self::Dynamic(InputRounding { numbers, scale })
        };
        match (flag("dynamic", false)?, text("strategy", "tensor")?) {
            (true, "token") => Some(of_token(None)),
            (true, "group") => {
                let columns = given(said, "group_size")?.as_u64().filter(|&columns| columns > 0)?;
                Some(of_token(Some(usize::try_from(columns).ok()?)))
            }
            (false, "tensor") => Some(Self::Fixed { numbers, symmetric }),
            _ => None,
        }
    }

    /// The tensors that a linear must have for it.
    pub(super) fn tensors(&self) -> &'static [&'static str] {
        match self {
            Self::Fixed { symmetric: true, .. } => &[SCALE],
            Self::Fixed { symmetric: false, .. } => &[SCALE, ZERO_POINT],
            Self::AsTheyAre | Self::Dynamic(_) | Self::Other(_) => &[],
        }
    }

    /// How a linear's inputs are rounded, as far as anybody follows it here.
    pub(super) fn rounding(&self, stored: &StoredLinear<'_>) -> Result<Option<InputRounding>, FormatsError> {
        let (numbers, symmetric) = match *self {
            Self::AsTheyAre | Self::Other(_) => return Ok(None),
            Self::Dynamic(rounding) => return Ok(Some(rounding)),
            Self::Fixed { numbers, symmetric } => (numbers, symmetric),
        };
        let scale = stored.single(SCALE)?;
        if scale.is_nan() || scale <= 0.0 {
            return Err(stored.fail(SCALE, format!("is {scale}, expected a number above zero")));
        }
        let zero_point = if symmetric {
            0.0
        } else {
            let bytes = stored.checkpoint.read_as(&stored.name(ZERO_POINT), Dtype::I8, &[1])?;
            bytes.first().map_or(0.0, |&byte| f32::from(byte as i8))
        };
        Ok(Some(InputRounding { numbers, scale: InputScale::Fixed { scale, zero_point } }))
    }
}

/// Inputs rounded to eight bits as they come, each token with a scale of its own: what is written.
pub(super) fn dynamic_tokens(levels: Levels) -> Value {
    let kind = if levels == Levels::Uniform { "int" } else { "float" };
    json!({
        "num_bits": 8, "type": kind, "symmetric": true, "strategy": "token", "group_size": null, "dynamic": true,
        "actorder": null, "block_structure": null, "observer": null, "observer_kwargs": {}
    })
}

/// Whether that is what a configuration says of inputs.
pub(super) fn are_dynamic_tokens(activations: &Value, levels: Levels) -> bool {
    let asked = dynamic_tokens(levels);
    ["num_bits", "type", "symmetric", "strategy", "dynamic"]
        .iter()
        .all(|key| activations.get(key) == asked.get(key))
}

/// The settings that say how, in words.
fn words(said: &Value) -> String {
    let keys = ["num_bits", "type", "symmetric", "strategy", "group_size", "dynamic", "scale_dtype"];
    let found = keys.iter().filter_map(|key| Some(format!("{key} {}", given(said, key)?)));
    found.collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(said: Value) -> Inputs {
        Inputs::read(&json!({ "input_activations": said })).unwrap()
    }

    #[test]
    fn what_is_written_is_read_and_what_nobody_follows_is_said() {
        for (levels, numbers) in [
            (Levels::Uniform, InputNumbers::Integers(BitWidth::new(8).unwrap())),
            (Levels::E4m3, InputNumbers::E4m3),
        ] {
            let scale = InputScale::OfToken { columns: None, symmetric: true };
            let found = read(dynamic_tokens(levels));
            assert!(matches!(found, Inputs::Dynamic(found) if found == InputRounding { numbers, scale }));
        }
        let groups =
            json!({"num_bits": 8, "type": "float", "strategy": "group", "group_size": 128, "dynamic": true});
        let of_groups = InputScale::OfToken { columns: Some(128), symmetric: true };
        assert!(matches!(read(groups), Inputs::Dynamic(found) if found.scale == of_groups));
        assert!(matches!(read(json!(null)), Inputs::AsTheyAre));
        // The library's defaults: eight-bit integers, one scale of the checkpoint.
        let fixed = read(json!({"observer": "minmax"}));
        assert_eq!(fixed.tensors(), [SCALE]);
        assert_eq!(read(json!({"symmetric": false})).tensors(), [SCALE, ZERO_POINT]);
        for other in [
            json!({"num_bits": 4, "type": "float", "strategy": "tensor_group", "group_size": 16, "dynamic": "local"}),
            json!({"num_bits": 8, "type": "float", "strategy": "group", "group_size": 32, "dynamic": true, "scale_dtype": "torch.uint8"}),
            json!({"num_bits": 8, "strategy": "tensor", "dynamic": true}),
            json!({"num_bits": 8, "type": "float", "symmetric": false, "strategy": "token", "dynamic": true}),
            json!({"num_bits": 8, "strategy": "group", "group_size": 0, "dynamic": true}),
            json!({"num_bits": "eight"}),
        ] {
            assert!(matches!(read(other.clone()), Inputs::Other(_)), "{other}");
        }
        let Inputs::Other(said) = read(json!({"num_bits": 8, "strategy": "tensor", "dynamic": true})) else {
            unreachable!()
        };
        assert_eq!(said, "num_bits 8, strategy \"tensor\", dynamic true");
    }
}
