//! How text is split before pairs are merged: llama.cpp knows some ways by name, tokenizer.json spells them out.
//!
//! Expressions are compared in one spelling: files that were made from other tokenizers say the same with other words.

use serde_json::Value;

/// GPT-2's expression, which tokenizer.json's `ByteLevel` stands for.
const GPT_2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";
/// What tokenizer.json's `Digits` stands for when it takes each alone.
const DIGIT: &str = r"\p{N}";
/// And when it takes all that follow one another.
const DIGITS: &str = r"\p{N}+";
const THREE_DIGITS: &str = r"\p{N}{1,3}";
/// What its `Punctuation` stands for when it takes all that follow one another.
const PUNCTUATION: &str = r"[\p{P}\$\+<=>\^~\|`]+";
const LLAMA_3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN_2: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN_35: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const MINICPM_5: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}+| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const SEED: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}\r\n]+|\s*[\r\n]+|\s+(?!\S)|\s+";
const GPT_4O: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const TEKKEN: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const HAN_AND_KANA: &str = "[一-龥぀-ゟ゠-ヿ]+";
const DEEPSEEK_3: &str = r##"[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"##;
/// Stands for the long list of letters of alphabets with two cases, which files spell in several normal forms.
const CASED: &str = r"\s?[cased]+";
const CASED_BEGINS: &str = r"\s?[A-Za-zµÀ-ÖØ-öø-";
const WIDE_PUNCTUATION: &str = r"\s?[!-/:-~！-／：-～‘-‟　-。]+";
const HAN_AND_HANGUL: &str = "[一-龥ࠀ-一가-퟿]+";
const BLOOM: &str = r" ?[^(\s|[.,!?…。，、।۔،])]+";

/// A way to split.
struct Known {
    /// llama.cpp's name (src/llama-vocab.cpp at 0c1e570).
    name: &'static str,
    /// One after the other.
    expressions: &'static [&'static str],
    /// Whether a piece that is a token is taken as it is, without merging; none: llama.cpp does not know.
    ignores_merges: Option<bool>,
}

const fn known(name: &'static str, expressions: &'static [&'static str]) -> Known {
    Known { name, expressions, ignores_merges: None }
}

static KNOWN: [Known; 17] = [
    known("gpt-2", &[GPT_2]),
    known("smollm", &[DIGIT, GPT_2]),
    known("falcon", &[PUNCTUATION, GPT_2, DIGITS, "[0-9][0-9][0-9]"]),
    Known { name: "llama-bpe", expressions: &[LLAMA_3], ignores_merges: Some(true) },
    Known { name: "smaug-bpe", expressions: &[LLAMA_3], ignores_merges: Some(false) },
    known("qwen2", &[QWEN_2]),
    known("qwen35", &[QWEN_35]),
    known("gpt-4o", &[GPT_4O]),
    known("tekken", &[TEKKEN]),
    known("deepseek-v3", &[THREE_DIGITS, HAN_AND_KANA, DEEPSEEK_3]),
    known("deepseek-llm", &[r"[\r\n]", CASED, WIDE_PUNCTUATION, r"\s+$", HAN_AND_HANGUL, DIGIT]),
    known("deepseek-coder", &[r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", HAN_AND_HANGUL, DIGIT]),
    known("bloom", &[BLOOM]),
    known("viking", &[BLOOM, DIGIT]),
    known("seed-coder", &[SEED]),
    Known { name: "minicpm5", expressions: &[THREE_DIGITS, MINICPM_5], ignores_merges: Some(true) },
    // Digits that follow one another are not merged by whoever learned from single ones.
    known("gpt-2", &[GPT_2, DIGIT]),
];

/// llama.cpp's name of what `tokenizer` (tokenizer.json) does before merging.
pub(super) fn name(tokenizer: &Value) -> Result<&'static str, String> {
    let mut steps = Steps::default();
    steps.collect(&tokenizer["pre_tokenizer"])?;
    let Steps { expressions, of_bytes } = steps;
    if !of_bytes {
        return Err(
            "merges pairs of characters, not of bytes (no `ByteLevel`), which llama.cpp does not".to_owned()
        );
    }
    let ignores_merges = tokenizer["model"]["ignore_merges"] == true;
    let fits = |known: &&Known| {
        known.expressions == expressions && known.ignores_merges.is_none_or(|it| it == ignores_merges)
    };
    KNOWN.iter().find(fits).map(|known| known.name).ok_or_else(|| {
        let mut names: Vec<&str> = KNOWN.iter().map(|known| known.name).collect();
        names.dedup();
        format!("splits text by {expressions:?}, which is none of {}", names.join(", "))
    })
}

/// What is done one after the other.
#[derive(Default)]
struct Steps {
    expressions: Vec<String>,
    /// Whether bytes are spelled as characters at last.
    of_bytes: bool,
}

impl Steps {
    fn collect(&mut self, step: &Value) -> Result<(), String> {
        let kind = step["type"].as_str().unwrap_or_default();
        let mut push = |expression: &str| self.expressions.push(expression.to_owned());
        match kind {
            "Sequence" => {
                let steps = step["pretokenizers"].as_array().into_iter().flatten();
                return steps.into_iter().try_for_each(|step| self.collect(step));
            }
            "ByteLevel" if step["add_prefix_space"] == true => {
                return Err(
                    "puts a space before the text (`add_prefix_space`), which llama.cpp does not".to_owned()
                );
            }
            "ByteLevel" => {
                if step["use_regex"] != false {
                    push(GPT_2);
                }
                self.of_bytes = true;
            }
            "Digits" if step["individual_digits"] == true => push(DIGIT),
            "Digits" => push(DIGITS),
            "Punctuation" if step["behavior"] == "Contiguous" => push(PUNCTUATION),
            "Split" => {
                let expression =
                    step["pattern"]["Regex"].as_str().ok_or("splits by text that is no expression")?;
                let expression = in_one_spelling(expression);
                // What matches is kept and what does not is dropped: the same, where everything matches.
                let matches_all = expression.ends_with(r"|\s+(?!\S)|\s+");
                let keeps = step["behavior"] == "Removed" && step["invert"] == true && matches_all;
                let isolates = step["behavior"] == "Isolated" && step["invert"] != true;
                if !isolates && !keeps {
                    return Err(format!("splits text by {step}, which is not known"));
                }
                push(&expression);
            }
            _ => return Err(format!("splits text by {step}, which is not known")),
        }
        Ok(())
    }
}

/// The same expression as others spell it.
fn in_one_spelling(expression: &str) -> String {
    if expression.starts_with(CASED_BEGINS) && expression.ends_with("𞤀-𞥃]+") {
        return CASED.to_owned();
    }
    let spelled = greedy(&expression.replace('\r', r"\r").replace('\n', r"\n"))
        .replace("'(?i:[sdmt]|ll|ve|re)", "(?i:'s|'t|'re|'ve|'m|'ll|'d)")
        .replace("(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])", "(?i:'s|'t|'re|'ve|'m|'ll|'d)")
        // A run of spaces is taken up to its last line break, whether one is asked for or more.
        .replace(r"\s*[\r\n]|", r"\s*[\r\n]+|")
        .replace("{1}", "");
    // Within a list of characters the inner brackets say nothing.
    if spelled == r" ?[^(\s|.,!?…。，、।۔،)]+" { BLOOM.to_owned() } else { spelled }
}

/// Without the pluses behind quantifiers that keep them from giving back (`?+`, `++`, `*+`, `{1,3}+`): in the known expressions what follows could not
/// take it.
fn greedy(expression: &str) -> String {
    let mut kept = String::with_capacity(expression.len());
    let (mut within_list, mut escaped, mut quantified, mut braces) = (false, false, false, false);
    for character in expression.chars() {
        if character == '+' && quantified && !within_list && !escaped {
            quantified = false;
            continue;
        }
        kept.push(character);
        let plain = !escaped && !within_list;
        let counts = character == '}' && braces;
        // Braces behind a letter are the name of a class.
        braces = if character == '{' { !kept.ends_with("p{") } else { braces && character != '}' };
        quantified = plain && (matches!(character, '?' | '*' | '+') || counts) && !kept.ends_with("(?");
        match character {
            '[' if plain => within_list = true,
            ']' if !escaped => within_list = false,
            _ => {}
        }
        escaped = character == '\\' && !escaped;
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn expressions_are_known_however_they_are_spelled() {
        let tiktoken = r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+";
        assert_eq!(in_one_spelling(tiktoken), LLAMA_3);
        assert_eq!(in_one_spelling(&LLAMA_3.replace(r"\r\n", "\r\n")), LLAMA_3);
        assert_eq!(in_one_spelling(&QWEN_2.replace(r"\p{N}|", r"\p{N}{1}|")), QWEN_2);
        for known in &KNOWN {
            for expression in known.expressions {
                assert_eq!(in_one_spelling(expression), *expression, "{}", known.name);
            }
        }
        assert_eq!(greedy(r"a?+b++c*+[x?+*+]d{1,3}+\p{L}+\?+"), r"a?b+c*[x?+*+]d{1,3}\p{L}+\?+");
    }
}
