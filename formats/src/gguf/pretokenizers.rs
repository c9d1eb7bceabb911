//! How text is split before pairs are merged: llama.cpp knows some ways by name, tokenizer.json spells them out.

use serde_json::Value;

/// GPT-2's expression, which tokenizer.json's `ByteLevel` stands for.
const GPT_2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";
/// What tokenizer.json's `Digits` stands for when it takes each alone.
const DIGITS: &str = r"\p{N}";
const LLAMA_3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN_2: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const TEKKEN: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// A way to split.
struct Known {
    /// llama.cpp's name (src/llama-vocab.cpp at 0c1e570).
    name: &'static str,
    /// One after the other.
    expressions: &'static [&'static str],
    /// Whether a piece that is a token is taken as it is, without merging; none: llama.cpp does not know.
    ignores_merges: Option<bool>,
}

static KNOWN: [Known; 6] = [
    Known { name: "gpt-2", expressions: &[GPT_2], ignores_merges: None },
    Known { name: "smollm", expressions: &[DIGITS, GPT_2], ignores_merges: None },
    Known { name: "llama-bpe", expressions: &[LLAMA_3], ignores_merges: Some(true) },
    Known { name: "smaug-bpe", expressions: &[LLAMA_3], ignores_merges: Some(false) },
    Known { name: "qwen2", expressions: &[QWEN_2], ignores_merges: None },
    Known { name: "tekken", expressions: &[TEKKEN], ignores_merges: None },
];

/// llama.cpp's name of what `tokenizer` (tokenizer.json) does before merging.
pub(super) fn name(tokenizer: &Value) -> Result<&'static str, String> {
    let mut expressions = Vec::new();
    collect(&tokenizer["pre_tokenizer"], &mut expressions)?;
    let ignores_merges = tokenizer["model"]["ignore_merges"] == true;
    let fits = |known: &&Known| {
        known.expressions == expressions && known.ignores_merges.is_none_or(|it| it == ignores_merges)
    };
    KNOWN.iter().find(fits).map(|known| known.name).ok_or_else(|| {
        let names: Vec<&str> = KNOWN.iter().map(|known| known.name).collect();
        format!("splits text by {expressions:?}, which is none of {}", names.join(", "))
    })
}

fn collect(step: &Value, expressions: &mut Vec<String>) -> Result<(), String> {
    let kind = step["type"].as_str().unwrap_or_default();
    match kind {
        "Sequence" => {
            let steps = step["pretokenizers"].as_array().into_iter().flatten();
            return steps.into_iter().try_for_each(|step| collect(step, expressions));
        }
        "ByteLevel" if step["add_prefix_space"] == true => {
            return Err(
                "puts a space before the text (`add_prefix_space`), which llama.cpp does not".to_owned()
            );
        }
        "ByteLevel" if step["use_regex"] == false => {}
        "ByteLevel" => expressions.push(GPT_2.to_owned()),
        "Digits" if step["individual_digits"] == true => expressions.push(DIGITS.to_owned()),
        "Split" if step["behavior"] == "Isolated" && step["invert"] != true => {
            let expression =
                step["pattern"]["Regex"].as_str().ok_or("splits by text that is no expression")?;
            expressions.push(expression.to_owned());
        }
        _ => return Err(format!("splits text by {step}, which is not known")),
    }
    Ok(())
}
