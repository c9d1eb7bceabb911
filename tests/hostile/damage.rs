//! Sound files, damaged at random: bytes flipped, set, inserted, cut out, doubled, and files cut short. A reader may accept or refuse them;
//! it may not panic, and takes no more memory than for the corpus.

use std::fs;

use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

use crate::readers::{self, corpus, lay_out};

/// One damage; places are shares of the file's length.
#[derive(Clone, Debug)]
enum Damage {
    Flip(f64, u8),
    Set(f64, u8),
    /// A number that readers take for a length, a count or an offset.
    Number(f64, u64, usize),
    Insert(f64, Vec<u8>),
    Cut(f64, usize),
    Double(f64, usize),
    End(f64),
}

impl Damage {
    fn apply(&self, bytes: &mut Vec<u8>) {
        let at = |share: f64| ((bytes.len() as f64) * share) as usize;
        match self {
            Self::Flip(share, bit) => {
                let place = at(*share);
                bytes.get_mut(place).into_iter().for_each(|byte| *byte ^= 1 << (bit % 8));
            }
            Self::Set(share, value) => {
                let place = at(*share);
                bytes.get_mut(place).into_iter().for_each(|byte| *byte = *value);
            }
            Self::Number(share, number, width) => {
                let (place, number) = (at(*share), number.to_le_bytes());
                bytes.iter_mut().skip(place).zip(&number[..*width]).for_each(|(byte, new)| *byte = *new);
            }
            Self::Insert(share, piece) => {
                let place = at(*share);
                bytes.splice(place..place, piece.iter().copied());
            }
            Self::Cut(share, count) => {
                let place = at(*share);
                let end = (place + count).min(bytes.len());
                bytes.drain(place..end);
            }
            Self::Double(share, count) => {
                let place = at(*share);
                let piece = bytes[place..(place + count).min(bytes.len())].to_vec();
                bytes.splice(place..place, piece);
            }
            Self::End(share) => bytes.truncate(at(*share)),
        }
    }
}

/// What stands between and in numbers and names of the texts that are read here.
const MARKS: &[u8] = b"0123456789-+eE.[]{}(),:=\"'\\/% \n";

/// Places near the beginning, where headers are, are as likely as all others together.
fn place() -> impl Strategy<Value = f64> {
    prop_oneof![0.0..1.0_f64, (0.0..1.0_f64).prop_map(|share| share.powi(4))]
}

fn damage() -> impl Strategy<Value = Damage> {
    let numbers = prop_oneof![
        Just(0_u64),
        Just(1),
        Just(u64::from(u32::MAX)),
        Just(1 << 31),
        Just(1 << 40),
        Just(1 << 63),
        Just(u64::MAX),
        any::<u64>()
    ];
    prop_oneof![
        4 => (place(), 0..8_u8).prop_map(|(share, bit)| Damage::Flip(share, bit)),
        2 => (place(), any::<u8>()).prop_map(|(share, value)| Damage::Set(share, value)),
        4 => (place(), prop::sample::select(MARKS)).prop_map(|(share, value)| Damage::Set(share, value)),
        2 => (place(), numbers, prop::sample::select(vec![1, 2, 4, 8]))
            .prop_map(|(share, number, width)| Damage::Number(share, number, width)),
        1 => (place(), prop::collection::vec(prop::sample::select(MARKS), 1..16))
            .prop_map(|(share, piece)| Damage::Insert(share, piece)),
        1 => (place(), 1..40_usize).prop_map(|(share, count)| Damage::Cut(share, count)),
        1 => (place(), 1..200_usize).prop_map(|(share, count)| Damage::Double(share, count)),
        1 => place().prop_map(Damage::End),
    ]
}

/// Damages the file `sound` (of `tests/data/hostile`), which `reader` reads among the sound model `among`, `cases` times.
fn survives(reader: &str, among: &str, sound: &str, cases: u32) {
    let _alone = crate::alone();
    let bytes = fs::read(corpus().join(sound)).unwrap();
    let config = Config { cases, failure_persistence: None, ..Config::default() };
    let damages = prop::collection::vec(damage(), 1..4);
    TestRunner::new(config)
        .run(&damages, |damages| {
            let mut damaged = bytes.clone();
            damages.iter().for_each(|damage| damage.apply(&mut damaged));
            let folder = tempfile::tempdir().unwrap();
            lay_out(reader, among, &damaged, folder.path());
            let (_, taken) = crate::measured(|| readers::read(reader, folder.path()));
            let bound = crate::bound(reader, folder.path());
            prop_assert!(taken <= bound, "{taken} bytes of at most {bound}");
            Ok(())
        })
        .unwrap_or_else(|found| panic!("{reader} {sound}: {found}"));
}

const DENSE: &str = "sound/dense/";

#[test]
fn damaged_checkpoints_are_read_or_refused() {
    survives("safetensors", "", &format!("{DENSE}model.safetensors"), 300);
    survives("index", "", "files/index/files-exchanged", 150);
    survives("model", "", "files/model/row-of-zeros", 12);
}

#[test]
fn damaged_configurations_are_read_or_refused() {
    survives("config", "", &format!("{DENSE}config.json"), 200);
    for among in ["gptq", "awq", "compressed-tensors", "w8a8-fp8", "mlx", "nf4"] {
        survives("quantization", among, &format!("sound/{among}/config.json"), 60);
    }
}

#[test]
fn damaged_packed_tensors_are_read_or_refused() {
    for (among, file) in [
        ("gptq", "gptq-columns-negative"),
        ("awq", "awq-scale-nan"),
        ("compressed-tensors", "compressed-tensors-shape-lies"),
        ("w8a8-fp8", "w8a8-fp8-codes-nan"),
        ("mlx", "mlx-bias-nan"),
        ("nf4", "nf4-state-deep"),
    ] {
        survives("packed", among, &format!("files/packed/{file}"), 60);
        survives("packed", among, &format!("sound/{among}/model.safetensors"), 40);
    }
    survives("record", "gptq", "sound/gptq/quantc.json", 60);
    survives("journal", "", "files/journal/sound", 400);
}

#[test]
fn damaged_containers_of_other_programs_are_read_or_refused() {
    survives("gguf", "", "sound/q4_0/model-q4_0.gguf", 300);
    survives("onnx", "", "sound/onnx/model.onnx", 200);
    survives("imatrix", "", "files/imatrix/gguf-sum-nan", 200);
    survives("imatrix", "", "files/imatrix/old-tail", 200);
}

#[test]
fn damaged_tokenizers_recipes_and_texts_are_read_or_refused() {
    survives("tokenizer", "", &format!("{DENSE}tokenizer.json"), 200);
    survives("tokenizer-config", "", &format!("{DENSE}tokenizer_config.json"), 200);
    survives("template", "", "files/template/doubles", 200);
    survives("recipe", "", "files/recipe/rule-layers-reversed", 200);
    survives("text", "", "files/text/not-utf8-in-line-two", 100);
}
