use super::*;
use model::linear::{LinearId, Role};

fn example() -> Imatrix {
    let entry = |count: usize, scale: f32| Entry {
        mean_squares: (0..count).map(|k| k as f32 * scale).collect(),
        count: 513.0,
    };
    Imatrix {
        entries: [
            ("blk.0.attn_q.weight".to_owned(), entry(5, 0.75)),
            ("blk.0.ffn_down.weight".to_owned(), entry(9, 2.0)),
        ]
        .into(),
        datasets: vec!["text.txt".to_owned()],
        chunks: 2,
        chunk_size: Some(256),
    }
}

/// The older form, as llama.cpp wrote it.
fn legacy(imatrix: &Imatrix, with_dataset: bool) -> Vec<u8> {
    let mut out = Vec::new();
    let int = |out: &mut Vec<u8>, value: usize| out.extend((value as i32).to_le_bytes());
    int(&mut out, imatrix.entries.len());
    for (name, entry) in &imatrix.entries {
        int(&mut out, name.len());
        out.extend(name.bytes());
        int(&mut out, 2);
        int(&mut out, entry.mean_squares.len());
        entry.mean_squares.iter().for_each(|mean| out.extend((mean * 2.0).to_le_bytes()));
    }
    if with_dataset {
        int(&mut out, imatrix.chunks as usize);
        int(&mut out, imatrix.datasets[0].len());
        out.extend(imatrix.datasets[0].bytes());
    }
    out
}

fn linear(layer: usize, role: Role, in_features: usize) -> Linear {
    let name = format!("model.layers.{layer}.{role:?}");
    Linear {
        id: LinearId { layer, part: model::linear::Part::Main, role },
        name,
        out_features: 4,
        in_features,
        bias: false,
        class: model::linear::LinearClass::Plain,
    }
}

#[test]
fn both_forms_give_the_same_mean_squares() {
    assert_eq!(Imatrix::decode(&example().encode()).unwrap(), example());
    for with_dataset in [true, false] {
        let found = Imatrix::decode(&legacy(&example(), with_dataset)).unwrap();
        let means = |imatrix: &Imatrix| -> Vec<(String, Vec<f32>)> {
            imatrix.entries.iter().map(|(name, e)| (name.clone(), e.mean_squares.clone())).collect()
        };
        assert_eq!(means(&found), means(&example()));
        assert_eq!(found.datasets.len(), usize::from(with_dataset));
    }
}

#[test]
fn tensors_lie_where_the_format_says() {
    let bytes = example().encode();
    assert_eq!(bytes[..8], *b"GGUF\x03\0\0\0");
    assert_eq!((bytes[8], bytes[16]), (4, 4));
    assert_eq!(bytes.len() % 32, 0);
    // The last tensor, sums of the second entry: 8 * 2.0 * 513 is its last number; counts lie before it in their own 32 bytes.
    let last = f32::from_le_bytes(bytes[bytes.len() - 64 + 32..][..4].try_into().unwrap());
    assert_eq!(last, 513.0);
}

#[test]
fn a_stage_finds_its_entry_by_role_and_width() {
    let imatrix = example();
    let path = Path::new("file.gguf");
    let (key, query) = (linear(0, Role::Key, 5), linear(0, Role::Query, 5));
    assert_eq!(imatrix.of_stage(path, &[&key, &query]).unwrap().len(), 5);
    for (linears, words) in [
        (vec![linear(1, Role::Query, 5)], vec!["file.gguf", "blk.1.attn_q.weight", "2 entries"]),
        (vec![linear(0, Role::Down, 7)], vec!["file.gguf", "blk.0.ffn_down.weight", "9", "7", "Down"]),
    ] {
        let linears: Vec<&Linear> = linears.iter().collect();
        let message = imatrix.of_stage(path, &linears).unwrap_err().to_string();
        assert!(words.iter().all(|word| message.contains(word)), "{message}");
    }
}

#[test]
fn no_bytes_make_the_reader_panic_or_take_memory() {
    for whole in [example().encode(), legacy(&example(), true)] {
        for end in 0..whole.len() {
            // A file that is cut where an older one ended is whole.
            if let Ok(found) = Imatrix::decode(&whole[..end]) {
                assert_eq!(found.entries.len(), 2, "cut at {end}");
            }
        }
        for place in 0..whole.len() {
            for value in [0, 1, 0x7f, 0xff] {
                let mut changed = whole.clone();
                changed[place] = value;
                let _ = Imatrix::decode(&changed);
            }
        }
    }
    // Counts far beyond the file.
    let mut many = example().encode();
    many[8..24].fill(0xff);
    assert!(Imatrix::decode(&many).is_err());
    assert!(Imatrix::decode(&i32::MAX.to_le_bytes()).unwrap_err().contains("ends within"));
    assert!(Imatrix::decode(&(-1_i32).to_le_bytes()).unwrap_err().contains("-1"));
    assert!(Imatrix::decode(&[]).is_err());
}

#[test]
fn what_is_no_importance_matrix_is_refused_and_named() {
    let replaced = |from: &[u8], to: &[u8]| {
        let mut bytes = example().encode();
        let place = bytes.windows(from.len()).position(|window| window == from).unwrap();
        bytes[place..place + to.len()].copy_from_slice(to);
        Imatrix::decode(&bytes).unwrap_err()
    };
    assert!(replaced(b"GGUF\x03", b"GGUF\x01").contains("version 1"));
    assert!(replaced(b"\x07\0\0\0\0\0\0\0imatrix", b"\x07\0\0\0\0\0\0\0adapter").contains("adapter"));
    assert!(
        replaced(b"attn_q.weight.counts", b"attn_q.weight.county")
            .contains("no `blk.0.attn_q.weight.counts`")
    );
    assert!(replaced(&8208.0_f32.to_le_bytes(), &f32::NAN.to_le_bytes()).contains("blk.0.ffn_down.weight"));
    assert!(replaced(&513.0_f32.to_le_bytes(), &0.0_f32.to_le_bytes()).contains("expected"));
}

#[test]
fn what_has_no_end_is_not_read() {
    let folder = tempfile::tempdir().unwrap();
    let message = Imatrix::read(folder.path()).unwrap_err().to_string();
    assert!(message.contains("not a regular file"), "{message}");
}
