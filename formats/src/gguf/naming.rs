//! What a file calls its model: the source's name, but not one that llama.cpp reads more into than there is.

use super::value::{Array, Value, Values};

/// Parts of a name by which llama.cpp takes the tokenizer for one family's (0c1e570, `llama-vocab.cpp`).
const TELLING: [&str; 2] = ["phi-3", "phi3"];
/// The tokens that it then asks for; where one is missing it ends.
const ASKED_FOR: [&str; 4] = ["</s>", "<unk>", "<s>", "<|endoftext|>"];

/// `general.name` of a file whose tokenizer is in `values`.
pub(crate) fn name(source: &str, values: &Values) -> String {
    let tokens = match values.get("tokenizer.ggml.tokens") {
        Some(Value::Array(Array::Texts(tokens))) => &tokens[..],
        _ => &[],
    };
    if ASKED_FOR.iter().all(|wanted| tokens.iter().any(|token| token == wanted)) {
        return source.to_owned();
    }
    let mut name = source.to_owned();
    for telling in TELLING {
        while let Some(at) = name.to_ascii_lowercase().find(telling) {
            // The same letters with another mark between them and the number.
            name.replace_range(at + 3..at + telling.len() - 1, "_");
        }
    }
    name
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_that_promises_tokens_is_written_otherwise_where_they_are_missing() {
        let with = |tokens: &[&str]| {
            let texts = tokens.iter().map(|&token| token.to_owned()).collect();
            Values::from([("tokenizer.ggml.tokens".to_owned(), Value::Array(Array::Texts(texts)))])
        };
        let few = with(&["</s>", "<s>", "a"]);
        assert_eq!(name("My-Phi-3-mini", &few), "My-Phi_3-mini");
        assert_eq!(name("PHI3phi3", &few), "PHI_3phi_3");
        assert_eq!(name("Phi-4", &few), "Phi-4");
        assert_eq!(name("Phi-3", &with(&ASKED_FOR)), "Phi-3");
    }
}
