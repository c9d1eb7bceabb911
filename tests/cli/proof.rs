//! `verify`: every flipped bit is seen.

use std::fs;

use crate::run::{demo, fail, quantize, succeed, text};

#[test]
fn a_flipped_bit_anywhere_in_the_weights_is_seen() {
    for format in ["gptq", "compressed-tensors"] {
        let folder = tempfile::tempdir().unwrap();
        let (output, _) =
            quantize(folder.path(), &demo(), &["--recipe", "rtn", "--no-evaluate", "--to", format]);
        let file = output.join("model.safetensors");
        let intact = fs::read(&file).unwrap();
        succeed(&["verify", text(&output)]);
        let places = [9, 400, intact.len() / 3, intact.len() / 2, intact.len() * 4 / 5, intact.len() - 1];
        for (place, bit) in places.into_iter().zip(0..) {
            let mut damaged = intact.clone();
            damaged[place] ^= 1 << bit;
            fs::write(&file, damaged).unwrap();
            fail(3, &["verify", text(&output)]);
        }
        fs::write(&file, &intact).unwrap();
        succeed(&["verify", text(&output)]);
    }
}

#[test]
fn a_damaged_tensor_is_named_even_when_the_hashes_are_forged() {
    let folder = tempfile::tempdir().unwrap();
    let (output, _) = quantize(folder.path(), &demo(), &["--recipe", "rtn", "--no-evaluate"]);
    let file = output.join("model.safetensors");
    let mut bytes = fs::read(&file).unwrap();
    let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let name = "model.layers.2.self_attn.v_proj";
    let data = tensors.tensor(&format!("{name}.qweight")).unwrap().data();
    let place = data.as_ptr() as usize - bytes.as_ptr() as usize + 77;
    bytes[place] ^= 4;
    fs::write(&file, &bytes).unwrap();
    let record_file = output.join("quantc.json");
    let mut record: serde_json::Value =
        serde_json::from_str(&fs::read_to_string(&record_file).unwrap()).unwrap();
    record["files"]["model.safetensors"]["sha256"] = sha256(&bytes).into();
    fs::write(&record_file, record.to_string()).unwrap();
    let message = fail(3, &["verify", text(&output)]);
    assert!(message.contains(name), "{message}");
}

#[test]
fn a_missing_or_truncated_file_is_a_failed_verification_not_a_crash() {
    let folder = tempfile::tempdir().unwrap();
    let (output, _) = quantize(folder.path(), &demo(), &["--recipe", "rtn", "--no-evaluate"]);
    let file = output.join("model.safetensors");
    let bytes = fs::read(&file).unwrap();
    fs::write(&file, &bytes[..bytes.len() / 2]).unwrap();
    fail(3, &["verify", text(&output)]);
    fs::remove_file(&file).unwrap();
    let message = fail(3, &["verify", text(&output)]);
    assert!(message.contains("model.safetensors"), "{message}");
    let message = fail(1, &["verify", text(&demo())]);
    assert!(message.contains("quantc.json"), "{message}");
}

#[test]
fn weights_that_were_not_written_are_a_failed_verification() {
    let folder = tempfile::tempdir().unwrap();
    let (output, _) = quantize(folder.path(), &demo(), &["--recipe", "rtn", "--no-evaluate"]);
    fs::write(output.join("NOTES.md"), "anything").unwrap();
    succeed(&["verify", text(&output)]);
    for stranger in ["pytorch_model.bin", "model.safetensors.index.json", "adapter.safetensors"] {
        fs::write(output.join(stranger), "{}").unwrap();
        let message = fail(3, &["verify", text(&output)]);
        assert!(message.contains("verification failed"), "{message}");
        fs::remove_file(output.join(stranger)).unwrap();
    }
    succeed(&["verify", text(&output)]);
}

fn sha256(bytes: &[u8]) -> String {
    use sha2::Digest;
    sha2::Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}
