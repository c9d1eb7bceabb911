//! Checkpoints that other programs quantized, in forms that are read and not written: small ones by their documents, with the values that
//! those give. The programs' own files are read in `tests/interop`.

use formats::Checkpoint;
use formats::target::{self, StoredFormat};
use model::linear::{Linear, LinearId, Part, Role};
use ndarray::Array2;
use safetensors::Dtype;
use safetensors::tensor::TensorView;
use serde_json::{Value, json};
use tempfile::TempDir;

const NAME: &str = "model.layers.0.self_attn.o_proj";

fn linear(out_features: usize, in_features: usize) -> Linear {
    let id = LinearId { layer: 0, part: Part::Main, role: Role::Output };
    Linear {
        id,
        name: NAME.to_owned(),
        out_features,
        in_features,
        bias: false,
        class: model::linear::LinearClass::Plain,
    }
}

fn floats(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

fn words(values: &[u32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

/// A checkpoint of one linear's tensors, by their names after the module's.
fn checkpoint(tensors: &[(&str, Dtype, Vec<usize>, Vec<u8>)]) -> (TempDir, Checkpoint) {
    let folder = tempfile::tempdir().unwrap();
    let views = tensors.iter().map(|(suffix, dtype, shape, bytes)| {
        (format!("{NAME}.{suffix}"), TensorView::new(*dtype, shape.clone(), bytes).unwrap())
    });
    let bytes = safetensors::serialize(views, None).unwrap();
    std::fs::write(folder.path().join("model.safetensors"), bytes).unwrap();
    let checkpoint = Checkpoint::open(folder.path()).unwrap();
    (folder, checkpoint)
}

fn open(config: &Value) -> Box<dyn StoredFormat> {
    target::open(config).unwrap()
}

/// The values, which a solution has too where `decodes`; every named tensor must be there.
fn values(
    config: &Value,
    linear: &Linear,
    tensors: &[(&str, Dtype, Vec<usize>, Vec<u8>)],
    decodes: bool,
) -> Array2<f32> {
    let (_folder, checkpoint) = checkpoint(tensors);
    let format = open(config);
    let scheme = format.scheme(linear).unwrap();
    for name in format.tensors(linear, scheme) {
        assert!(checkpoint.contains(&name), "{name}");
    }
    let values = format.values(linear, scheme, &checkpoint).unwrap();
    match format.decode(linear, scheme, &checkpoint) {
        Ok(tensor) => assert!(decodes && tensor.dequantize() == values),
        Err(error) => assert!(!decodes && error.to_string().contains(NAME), "{error}"),
    }
    if let Some(rows) = format.rows(linear, scheme, &checkpoint, 1..2).unwrap() {
        assert_eq!(rows.row(0), values.row(1));
    }
    values
}

/// Four-bit floats: 0, 0.5, 1, 1.5, 2, 3, 4, 6 and their negatives, twice, in pairs.
const FOURS: [u8; 16] =
    [0x10, 0x32, 0x54, 0x76, 0x98, 0xBA, 0xDC, 0xFE, 0x10, 0x32, 0x54, 0x76, 0x98, 0xBA, 0xDC, 0xFE];

#[test]
fn floats_of_eight_bits_have_scales_of_tiles_or_one() {
    // 1, 2, 0.5, -1 and so on along three rows of 192.
    let bytes: Vec<u8> = (0..3 * 192).map(|place| [0x38, 0x40, 0x30, 0xB8][place % 4]).collect();
    let numbers = [1.0, 2.0, 0.5, -1.0];
    let weight = ("weight", Dtype::F8_E4M3, vec![3, 192], bytes);
    let tiles = json!({"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [2, 128]});
    let scales = ("weight_scale_inv", Dtype::F32, vec![2, 2], floats(&[1.0, 0.5, 4.0, 0.25]));
    let found = values(&tiles, &linear(3, 192), &[weight.clone(), scales], true);
    for ((row, column), value) in found.indexed_iter() {
        let scale = [[1.0, 0.5], [4.0, 0.25]][row / 2][column / 128];
        assert_eq!(*value, scale * numbers[column % 4], "{row} {column}");
    }
    for (method, shape, scales) in
        [("fp8", vec![], vec![3.0]), ("fbgemm_fp8", vec![3, 1], vec![3.0, 3.0, 3.0])]
    {
        let scales = ("weight_scale", Dtype::F32, shape, floats(&scales));
        let found =
            values(&json!({"quant_method": method}), &linear(3, 192), &[weight.clone(), scales], true);
        assert!(found.indexed_iter().all(|((_, column), value)| *value == 3.0 * numbers[column % 4]));
    }
    let tensors = [weight, ("weight_scale_inv", Dtype::F32, vec![1, 2], floats(&[1.0, 2.0]))];
    let (_folder, checkpoint) = checkpoint(&tensors);
    let scheme = open(&tiles).scheme(&linear(3, 192)).unwrap();
    let message = open(&tiles).decode(&linear(3, 192), scheme, &checkpoint).unwrap_err().to_string();
    assert!(message.contains("weight_scale_inv") && message.contains("[1, 2]"), "{message}");
}

#[test]
fn scales_that_are_quantized_again_are_decoded_first() {
    let config = json!({"quant_method": "bitsandbytes", "load_in_4bit": true, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": true});
    let state = json!({"quant_type": "nf4", "blocksize": 64, "dtype": "float16", "shape": [2, 96], "nested_blocksize": 256,
        "nested_dtype": "float32", "nested_offset": 0.25});
    let state = state.to_string().into_bytes();
    // Codes 15 and 7: 1 and 0. Blocks of 64 run on over the rows' ends.
    let table = quantizer::levels::Levels::Nf4.table().unwrap();
    let nested: Vec<f32> = (0..256).map(|place| place as f32 / 256.0).collect();
    let tensors = [
        ("weight", Dtype::U8, vec![96, 1], vec![0xF7; 96]),
        ("weight.absmax", Dtype::U8, vec![3], vec![64, 128, 255]),
        ("weight.quant_map", Dtype::F32, vec![16], floats(table)),
        ("weight.nested_absmax", Dtype::F32, vec![1], floats(&[2.0])),
        ("weight.nested_quant_map", Dtype::F32, vec![256], floats(&nested)),
        ("weight.quant_state.bitsandbytes__nf4", Dtype::U8, vec![state.len()], state),
    ];
    let found = values(&config, &linear(2, 96), &tensors, true);
    for ((row, column), value) in found.indexed_iter() {
        let scale = nested[[64, 128, 255][(96 * row + column) / 64]] * 2.0 + 0.25;
        assert_eq!(*value, if column % 2 == 0 { scale } else { 0.0 }, "{row} {column}");
    }
    let config = json!({"quant_method": "bitsandbytes", "load_in_8bit": true, "load_in_4bit": false});
    let bytes: Vec<u8> = (0..2 * 32).map(|place| if place % 2 == 0 { 127 } else { 0xFF }).collect();
    let tensors =
        [("weight", Dtype::I8, vec![2, 32], bytes), ("SCB", Dtype::F32, vec![2], floats(&[127.0, 12.7]))];
    let found = values(&config, &linear(2, 32), &tensors, true);
    assert_eq!((found[[0, 0]], found[[0, 1]]), (127.0, -1.0));
    assert!((found[[1, 0]] - 12.7).abs() < 1e-6 && open(&config).rounds_inputs());
}

#[test]
fn modes_of_mlx_have_scales_of_eight_bits() {
    let fours: Vec<u8> = [FOURS; 2].concat();
    let numbers = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0];
    let number = |column: usize| if column % 16 < 8 { numbers[column % 8] } else { -numbers[column % 8] };
    let weight = ("weight", Dtype::U32, vec![2, 4], fours);
    let config = json!({"mode": "mxfp4", "bits": 4, "group_size": 32});
    let tensors = [weight.clone(), ("scales", Dtype::U8, vec![2, 1], vec![128, 126])];
    let found = values(&config, &linear(2, 32), &tensors, true);
    assert!(found.indexed_iter().all(|((row, column), value)| *value == [2.0, 0.5][row] * number(column)));
    let config = json!({"mode": "nvfp4", "bits": 4, "group_size": 16});
    let scales = ("scales", Dtype::U8, vec![2, 2], vec![0x38, 0x40, 0x30, 0x38]);
    let found = values(&config, &linear(2, 32), &[weight.clone(), scales.clone()], true);
    let scale = |row: usize, column: usize| [[1.0, 2.0], [0.5, 1.0]][row][column / 16];
    assert!(found.indexed_iter().all(|((row, column), value)| *value == scale(row, column) * number(column)));
    let global = ("global_scale", Dtype::F32, vec![1], floats(&[2688.0 * 4.0]));
    let found = values(&config, &linear(2, 32), &[weight, scales, global], true);
    assert!(
        found
            .indexed_iter()
            .all(|((row, column), value)| *value == 4.0 * scale(row, column) * number(column))
    );
    let config = json!({"mode": "mxfp8", "bits": 8, "group_size": 32});
    let tensors = [
        ("weight", Dtype::U32, vec![2, 8], vec![0x40; 64]),
        ("scales", Dtype::U8, vec![2, 1], vec![127, 130]),
    ];
    let found = values(&config, &linear(2, 32), &tensors, true);
    assert!(found.indexed_iter().all(|((row, _), value)| *value == [2.0, 16.0][row]));
}

fn compressed(format: &str, weights: Value) -> Value {
    json!({"quant_method": "compressed-tensors", "format": format,
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights}}})
}

#[test]
fn forms_of_compressed_tensors_that_are_not_written_are_read() {
    let integers = |symmetric: bool, strategy: &str| json!({"num_bits": 8, "type": "int", "symmetric": symmetric, "strategy": strategy});
    let bytes: Vec<u8> = (0..2 * 32).map(|place| if place % 2 == 0 { 0x7F } else { 0x80 }).collect();
    let weight = ("weight", Dtype::I8, vec![2, 32], bytes);
    let scales = ("weight_scale", Dtype::F32, vec![2, 1], floats(&[1.0, 0.5]));
    let zeros = ("weight_zero_point", Dtype::I8, vec![2, 1], vec![0xFF, 2]);
    let found = values(
        &compressed("int-quantized", integers(false, "channel")),
        &linear(2, 32),
        &[weight.clone(), scales, zeros],
        true,
    );
    assert_eq!(found.slice(ndarray::s![.., ..2]), ndarray::array![[128.0, -127.0], [62.5, -65.0]]);
    let one = ("weight_scale", Dtype::F32, vec![1], floats(&[2.0]));
    let found = values(
        &compressed("naive-quantized", integers(true, "tensor")),
        &linear(2, 32),
        &[weight.clone(), one],
        true,
    );
    assert_eq!(found.slice(ndarray::s![.., ..2]), ndarray::array![[254.0, -256.0], [254.0, -256.0]]);
    let tile = json!({"num_bits": 8, "type": "float", "symmetric": true, "strategy": "block", "block_structure": [1, 16]});
    let tiles = ("weight_scale", Dtype::F32, vec![2, 2], floats(&[1.0, 2.0, 3.0, 4.0]));
    let ones = ("weight", Dtype::F8_E4M3, vec![2, 32], vec![0x38; 64]);
    let found = values(&compressed("float-quantized", tile), &linear(2, 32), &[ones.clone(), tiles], true);
    assert!(
        found
            .indexed_iter()
            .all(|((row, column), value)| *value == [[1.0, 2.0], [3.0, 4.0]][row][column / 16])
    );
    let groups = |bits: u8, columns: usize, strategy: &str| json!({"num_bits": bits, "type": "float", "symmetric": true, "strategy": strategy, "group_size": columns});
    let exponents = ("weight_scale", Dtype::U8, vec![2, 1], vec![127, 128]);
    let found = values(
        &compressed("mxfp8-quantized", groups(8, 32, "group")),
        &linear(2, 32),
        &[ones, exponents],
        true,
    );
    assert!(found.indexed_iter().all(|((row, _), value)| *value == [1.0, 2.0][row]));
    let tensors = [
        ("weight_packed", Dtype::U8, vec![2, 16], [FOURS; 2].concat()),
        ("weight_scale", Dtype::F8_E4M3, vec![2, 2], vec![0x38, 0x40, 0x30, 0x38]),
        ("weight_global_scale", Dtype::F32, vec![1], floats(&[4.0])),
    ];
    let found = values(
        &compressed("nvfp4-pack-quantized", groups(4, 16, "tensor_group")),
        &linear(2, 32),
        &tensors,
        true,
    );
    assert_eq!(
        (found[[0, 7]], found[[0, 31]], found[[1, 1]]),
        (6.0 / 4.0, -6.0 * 2.0 / 4.0, 0.5 * 0.5 / 4.0)
    );
    // Of 64 columns the even ones are in group 1, the odd ones in group 0.
    let weights = json!({"num_bits": 4, "type": "int", "symmetric": true, "strategy": "group", "group_size": 32, "actorder": "group"});
    let order: Vec<u32> = (0..64).map(|column| u32::from(column % 2 == 0)).collect();
    let tensors = [
        ("weight_packed", Dtype::I32, vec![2, 8], words(&[0x9999_9999; 16])),
        ("weight_scale", Dtype::F32, vec![2, 2], floats(&[1.0, 2.0, 3.0, 4.0])),
        ("weight_shape", Dtype::I64, vec![2], [2_i64, 64].iter().flat_map(|n| n.to_le_bytes()).collect()),
        ("weight_g_idx", Dtype::I32, vec![64], words(&order)),
    ];
    let found = values(&compressed("pack-quantized", weights), &linear(2, 64), &tensors, false);
    assert_eq!(found.slice(ndarray::s![.., ..2]), ndarray::array![[2.0, 1.0], [4.0, 3.0]]);
}

#[test]
fn columns_of_gptq_that_lie_apart_have_their_own_groups_scale() {
    let config = json!({"quant_method": "gptq", "bits": 4, "group_size": 32, "sym": true, "desc_act": true});
    let order: Vec<u32> = (0..64).map(|column| u32::from(column % 4 == 0 || column % 4 == 3)).collect();
    let tensors = |order: Vec<u32>| {
        [
            ("qweight", Dtype::I32, vec![8, 8], words(&[0xAAAA_AAAA; 64])),
            ("qzeros", Dtype::I32, vec![2, 1], words(&[0x7777_7777; 2])),
            ("scales", Dtype::F32, vec![2, 8], floats(&[[1.0; 8], [0.5; 8]].concat())),
            ("g_idx", Dtype::I32, vec![64], words(&order)),
        ]
    };
    let found = values(&config, &linear(8, 64), &tensors(order.clone()), false);
    assert!(found.indexed_iter().all(|((_, column), value)| *value == [2.0, 1.0][order[column] as usize]));
    // In order, and as programs say that there is no order.
    for order in [(0..64).map(|column| column / 32).collect(), vec![u32::MAX; 64]] {
        let found = values(&config, &linear(8, 64), &tensors(order), true);
        assert!(found.indexed_iter().all(|((_, column), value)| *value == [2.0, 1.0][column / 32]));
    }
    let (_folder, checkpoint) = checkpoint(&tensors(vec![2; 64]));
    let scheme = open(&config).scheme(&linear(8, 64)).unwrap();
    let message = open(&config).values(&linear(8, 64), scheme, &checkpoint).unwrap_err().to_string();
    assert!(message.contains("g_idx") && message.contains("group 2"), "{message}");
}
