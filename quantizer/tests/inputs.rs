//! Inputs as compressed-tensors rounds them: equal in every number.

use ndarray::Array2;
use quantizer::inputs::{InputNumbers, InputRounding, InputScale};
use quantizer::scheme::BitWidth;
use safetensors::SafeTensors;

const GOLDEN: &[u8] = include_bytes!("data/inputs.safetensors");

#[test]
fn inputs_are_rounded_as_runtimes_do() {
    let golden = SafeTensors::deserialize(GOLDEN).unwrap();
    let read = |name: &str| {
        let tensor = golden.tensor(name).unwrap();
        let values: Vec<f32> = tensor.data().as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
        Array2::from_shape_vec((tensor.shape()[0], tensor.shape()[1]), values).unwrap()
    };
    let x = read("x");
    let integers = |bits| InputNumbers::Integers(BitWidth::new(bits).unwrap());
    let of_token = |columns, symmetric| InputScale::OfToken { columns, symmetric };
    let fixed = |scale, zero_point| InputScale::Fixed { scale, zero_point };
    for (name, numbers, scale) in [
        ("int8.token", integers(8), of_token(None, true)),
        ("int8.token.asymmetric", integers(8), of_token(None, false)),
        ("int4.token", integers(4), of_token(None, true)),
        ("e4m3.token", InputNumbers::E4m3, of_token(None, true)),
        ("e4m3.groups", InputNumbers::E4m3, of_token(Some(16), true)),
        ("int8.fixed", integers(8), fixed(0.02, 0.0)),
        ("int8.fixed.asymmetric", integers(8), fixed(0.03, -37.0)),
        ("e4m3.fixed", InputNumbers::E4m3, fixed(0.01, 0.0)),
    ] {
        let (found, expected) = (InputRounding { numbers, scale }.rounded(x.view()), read(name));
        let wrong: Vec<_> =
            found.indexed_iter().filter(|(place, value)| **value != expected[*place]).take(3).collect();
        assert!(
            wrong.is_empty(),
            "{name}: {wrong:?}, expected {:?}",
            wrong.iter().map(|(p, _)| expected[*p]).collect::<Vec<_>>()
        );
        assert_ne!(expected, x, "{name}");
    }
}
