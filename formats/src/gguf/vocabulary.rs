//! Tokens, their types, and what orders their merges, of the two kinds that llama.cpp merges: byte pairs of a byte-level alphabet, and
//! SentencePiece's pieces with bytes as a last resort.
//!
//! Of pieces llama.cpp merges any two whose union is a token, the highest score first; tokenizer.json lists pairs in order. Both are the same where
//! the list has every pair, as those of SentencePiece's models have; the scores are the order.

use std::collections::{BTreeMap, HashMap, HashSet};

use serde_json::Value as Json;

use super::pretokenizers;
use super::{Array, Value, Values};

// Types of tokens.
const NORMAL: i32 = 1;
const UNKNOWN: i32 = 2;
const CONTROL: i32 = 3;
const USER_DEFINED: i32 = 4;
const UNUSED: i32 = 5;
const BYTE: i32 = 6;

/// What stands for a space in pieces.
const SPACE: char = '\u{2581}';
/// Longest piece whose pairs are looked at, bytes: no published vocabulary has such, and the work grows with its square.
const LONGEST_PIECE: usize = 1024;
/// Largest share of pairs that a list of merges may lack: what was added to a vocabulary by hand.
const MOST_LACKING: f64 = 0.01;

/// A token on its way.
struct Token {
    text: String,
    kind: i32,
}

/// Ids by text, added tokens included.
pub(crate) fn ids(tokenizer: &Json) -> BTreeMap<&str, u32> {
    let added = added(tokenizer).filter_map(|token| Some((token["content"].as_str()?, id(&token["id"])?)));
    own(tokenizer).chain(added).collect()
}

/// The model's own tokens.
fn own(tokenizer: &Json) -> impl Iterator<Item = (&str, u32)> {
    let own = tokenizer["model"]["vocab"].as_object().into_iter().flatten();
    own.filter_map(|(text, value)| Some((text.as_str(), id(value)?)))
}

fn added(tokenizer: &Json) -> impl Iterator<Item = &Json> {
    tokenizer["added_tokens"].as_array().into_iter().flatten()
}

fn id(value: &Json) -> Option<u32> {
    value.as_u64().and_then(|id| u32::try_from(id).ok())
}

/// Values of the vocabulary, for an embedding of `rows` rows. What has to be said about it is added to `notes`.
pub(super) fn values(tokenizer: &Json, rows: usize, notes: &mut Vec<String>) -> Result<Values, String> {
    let model = &tokenizer["model"];
    if model["type"] != "BPE" {
        return Err(format!("holds a tokenizer of the type {}, expected BPE", model["type"]));
    }
    let pieces = model["byte_fallback"] == true;
    let tokens = tokens(tokenizer, rows, pieces, notes)?;
    let merges = merges(model)?;
    let mut values = Values::new();
    let mut put = |key: &str, value: Value| values.insert(format!("tokenizer.ggml.{key}"), value);
    if pieces {
        let spaces = Spaces::of(tokenizer)?;
        demand_all_pairs(&tokens, &merges, spaces, notes)?;
        if spaces.once {
            notes.push(
                "llama.cpp puts a space before every text and behind every special token, and tokenizer.json only before a text that has none"
                    .to_owned(),
            );
        }
        put("model", Value::Text("llama".to_owned()));
        put("pre", Value::Text("default".to_owned()));
        put("add_space_prefix", Value::Bool(spaces.before));
        put("scores", Value::Array(Array::F32(scores(&tokens, &merges))));
    } else {
        note_normal_form(&tokenizer["normalizer"], notes)?;
        put("model", Value::Text("gpt2".to_owned()));
        put("pre", Value::Text(pretokenizers::name(tokenizer)?.to_owned()));
        // A space within a part would end it, and is spelled as the byte-level alphabet does.
        let spelled = |(left, right): &(String, String)| {
            format!("{} {}", left.replace(' ', "\u{120}"), right.replace(' ', "\u{120}"))
        };
        put("merges", Value::Array(Array::Texts(merges.iter().map(spelled).collect())));
    }
    let (texts, kinds) = tokens.into_iter().map(|token| (token.text, token.kind)).unzip();
    put("tokens", Value::Array(Array::Texts(texts)));
    put("token_type", Value::Array(Array::I32(kinds)));
    Ok(values)
}

/// A token for each row, which llama.cpp wants to be told apart by their texts.
fn tokens(
    tokenizer: &Json,
    rows: usize,
    pieces: bool,
    notes: &mut Vec<String>,
) -> Result<Vec<Token>, String> {
    let unused = |id: usize| Token { text: format!("[PAD{id}]"), kind: UNUSED };
    let mut tokens: Vec<Token> = (0..rows).map(unused).collect();
    let beyond = |id: u32| id as usize >= rows;
    for (text, id) in own(tokenizer) {
        if beyond(id) {
            return Err(format!("gives `{text}` the id {id}, and the embedding has {rows} rows"));
        }
        let is_byte = pieces && text.len() == 6 && text.starts_with("<0x") && text.ends_with('>');
        let unknown = tokenizer["model"]["unk_token"] == text;
        let kind = match (is_byte, unknown) {
            (true, _) => BYTE,
            (false, true) => UNKNOWN,
            (false, false) => NORMAL,
        };
        tokens[id as usize] = Token { text: text.to_owned(), kind };
    }
    let mut left_out = Vec::new();
    let mut takes_spaces = Vec::new();
    for token in added(tokenizer) {
        let (Some(text), Some(id)) = (token["content"].as_str(), id(&token["id"])) else { continue };
        let Some(place) = tokens.get_mut(id as usize) else {
            left_out.push(text);
            continue;
        };
        let kind = match (token["special"] == true, place.kind) {
            (_, UNKNOWN) => UNKNOWN,
            (true, _) => CONTROL,
            (false, _) => USER_DEFINED,
        };
        let spaced = pieces && kind == USER_DEFINED;
        let text_there = if spaced { text.replace(SPACE, " ") } else { text.to_owned() };
        *place = Token { text: text_there, kind };
        if token["lstrip"] == true || token["rstrip"] == true {
            takes_spaces.push(text);
        }
    }
    if let Some(first) = left_out.first() {
        notes.push(format!(
            "{} added tokens are beyond the {rows} rows of the embedding and left out: `{first}`",
            left_out.len()
        ));
    }
    if let Some(first) = takes_spaces.first() {
        notes.push(format!(
            "{} tokens take spaces beside them with them (`lstrip`, `rstrip`), and in llama.cpp only those of Phi-3: `{first}`",
            takes_spaces.len()
        ));
    }
    let mut seen: HashMap<&str, usize> = HashMap::new();
    for (id, token) in tokens.iter().enumerate() {
        if let Some(before) = seen.insert(&token.text, id) {
            return Err(format!(
                "gives the token `{}` to the ids {before} and {id}, which llama.cpp refuses",
                token.text
            ));
        }
    }
    Ok(tokens)
}

/// Both parts of each merge, in order.
fn merges(model: &Json) -> Result<Vec<(String, String)>, String> {
    let merges = model["merges"].as_array().ok_or("has no `merges`")?;
    let parts = merges.iter().map(|merge| match merge {
        // A part may begin with the space that parts are told apart by.
        Json::String(text) => {
            let first = text.chars().next()?.len_utf8();
            let at = first + text[first..].find(' ')?;
            Some((text[..at].to_owned(), text[at + 1..].to_owned()))
        }
        Json::Array(parts) => match &parts[..] {
            [left, right] => Some((left.as_str()?.to_owned(), right.as_str()?.to_owned())),
            _ => None,
        },
        _ => None,
    });
    parts.collect::<Option<_>>().ok_or_else(|| "has a merge that is not of two parts".to_owned())
}

/// Texts in another normal form than NFC get other tokens in llama.cpp, which has none; what else a normalizer does is refused.
fn note_normal_form(step: &Json, notes: &mut Vec<String>) -> Result<(), String> {
    match step["type"].as_str() {
        None if step.is_null() => Ok(()),
        Some("Sequence") => {
            let steps = step["normalizers"].as_array().into_iter().flatten();
            steps.into_iter().try_for_each(|step| note_normal_form(step, notes))
        }
        Some("NFC") => {
            notes.push(
                "tokenizer.json composes characters (NFC) and llama.cpp does not: text that is not composed gets other tokens there"
                    .to_owned(),
            );
            Ok(())
        }
        _ => Err(format!("changes text by {step} before it is split, which llama.cpp does not")),
    }
}

/// What becomes of spaces in a tokenizer of pieces.
#[derive(Clone, Copy, Default)]
struct Spaces {
    /// Whether one is put before a text.
    before: bool,
    /// Whether none is put before a text that begins with one, nor behind special tokens.
    once: bool,
    /// Whether no piece goes beyond one.
    split: bool,
}

impl Spaces {
    fn of(tokenizer: &Json) -> Result<Self, String> {
        let mut spaces = Self::default();
        spaces.normalizer(&tokenizer["normalizer"])?;
        spaces.pre_tokenizer(&tokenizer["pre_tokenizer"])?;
        Ok(spaces)
    }

    fn normalizer(&mut self, step: &Json) -> Result<(), String> {
        let space = SPACE.to_string();
        match step["type"].as_str() {
            None if step.is_null() => Ok(()),
            Some("Sequence") => {
                let steps = step["normalizers"].as_array().into_iter().flatten();
                steps.into_iter().try_for_each(|step| self.normalizer(step))
            }
            Some("Prepend") if step["prepend"] == space => {
                self.before = true;
                Ok(())
            }
            Some("Replace") if step["pattern"]["String"] == " " && step["content"] == space => Ok(()),
            _ => Err(format!("changes text by {step} before it is split, which llama.cpp does not")),
        }
    }

    fn pre_tokenizer(&mut self, step: &Json) -> Result<(), String> {
        match step["type"].as_str() {
            None if step.is_null() => Ok(()),
            Some("Sequence") => {
                let steps = step["pretokenizers"].as_array().into_iter().flatten();
                steps.into_iter().try_for_each(|step| self.pre_tokenizer(step))
            }
            Some("Metaspace") if step["replacement"].as_str() == Some(&SPACE.to_string()) => {
                let before = step["prepend_scheme"] != "never" && step["add_prefix_space"] != false;
                self.before |= before;
                self.once |= before;
                self.split |= step["split"] != false;
                Ok(())
            }
            // There are none any more.
            Some("Split") if step["pattern"]["String"] == " " => Ok(()),
            _ => Err(format!("splits text by {step}, which llama.cpp does not before it merges pieces")),
        }
    }
}

/// Fails where llama.cpp merges pieces that tokenizer.json does not.
fn demand_all_pairs(
    tokens: &[Token],
    merges: &[(String, String)],
    spaces: Spaces,
    notes: &mut Vec<String>,
) -> Result<(), String> {
    let normal = || tokens.iter().filter(|token| token.kind == NORMAL).map(|token| token.text.as_str());
    let there: HashSet<&str> = normal().collect();
    let short = || normal().filter(|text| text.len() <= LONGEST_PIECE);
    let listed: HashSet<(&str, &str)> =
        merges.iter().map(|(left, right)| (left.as_str(), right.as_str())).collect();
    let (mut pairs, mut lacking, mut example) = (0_usize, 0_usize, None);
    for text in short() {
        if spaces.split
            && let Some(second) = text.char_indices().nth(1)
            && text[second.0..].contains(SPACE)
        {
            return Err(format!(
                "splits text at every space, and llama.cpp makes the token `{text}` beyond one"
            ));
        }
        for (at, _) in text.char_indices().skip(1) {
            let pair = text.split_at(at);
            if there.contains(pair.0) && there.contains(pair.1) {
                pairs += 1;
                if !listed.contains(&pair) {
                    lacking += 1;
                    example.get_or_insert(pair);
                }
            }
        }
    }
    let Some((left, right)) = example else { return Ok(()) };
    let said = format!(
        "tokenizer.json has no merge of `{left}` and `{right}` nor of {} more of {pairs} pairs of pieces, and llama.cpp merges all whose union is a token",
        lacking - 1
    );
    if lacking as f64 > MOST_LACKING * pairs as f64 {
        return Err(said);
    }
    notes.push(said);
    Ok(())
}

/// The first place in the list of a merge that makes a token, counted down; tokens that none makes are last.
fn scores(tokens: &[Token], merges: &[(String, String)]) -> Vec<f32> {
    let mut first: HashMap<String, usize> = HashMap::with_capacity(merges.len());
    for (rank, (left, right)) in merges.iter().enumerate() {
        first.entry(format!("{left}{right}")).or_insert(rank);
    }
    let rank = |token: &Token| match token.kind {
        NORMAL => first.get(&token.text).copied().unwrap_or(merges.len()),
        _ => merges.len(),
    };
    tokens.iter().map(|token| -(rank(token) as f32)).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// Pieces `a`, `b`, `ab`, `▁`, `▁a`, `▁ab`.
    fn pieces() -> Json {
        json!({
            "normalizer": {"type": "Sequence", "normalizers": [
                {"type": "Prepend", "prepend": "▁"}, {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]},
            "added_tokens": [
                {"id": 0, "content": "<unk>", "special": true}, {"id": 1, "content": "<s>", "special": true},
                {"id": 9, "content": "▁▁", "special": false}],
            "model": {"type": "BPE", "byte_fallback": true, "unk_token": "<unk>",
                "vocab": {"<unk>": 0, "<s>": 1, "<0x0A>": 2, "a": 3, "b": 4, "▁": 5, "ab": 6, "▁a": 7, "▁ab": 8},
                "merges": ["▁ a", "a b", "▁ ab", "▁a b"]}
        })
    }

    #[test]
    fn pieces_have_their_merges_order_for_scores() {
        let mut notes = Vec::new();
        let found = values(&pieces(), 10, &mut notes).unwrap();
        let Value::Array(Array::F32(scores)) = &found["tokenizer.ggml.scores"] else { panic!() };
        assert_eq!(scores[..], [-4.0, -4.0, -4.0, -4.0, -4.0, -4.0, -1.0, 0.0, -2.0, -4.0]);
        let Value::Array(Array::I32(kinds)) = &found["tokenizer.ggml.token_type"] else { panic!() };
        assert_eq!(kinds[..], [UNKNOWN, CONTROL, BYTE, 1, 1, 1, 1, 1, 1, USER_DEFINED]);
        assert_eq!(found["tokenizer.ggml.tokens"].as_texts().unwrap()[9], "  ");
        assert_eq!(found["tokenizer.ggml.add_space_prefix"], Value::Bool(true));
        assert!(notes.is_empty());
    }

    #[test]
    fn what_llama_cpp_would_do_otherwise_is_refused_or_said() {
        let refused = |change: &dyn Fn(&mut Json)| {
            let mut changed = pieces();
            change(&mut changed);
            values(&changed, 10, &mut Vec::new()).unwrap_err()
        };
        let problem = refused(&|it| it["model"]["merges"] = json!(["▁ a", "a b", "▁ ab"]));
        assert!(problem.contains("`▁a` and `b`") && problem.contains("4 pairs"), "{problem}");
        let problem = refused(&|it| it["normalizer"] = json!({"type": "Lowercase"}));
        assert!(problem.contains("Lowercase"), "{problem}");
        let problem = refused(&|it| it["pre_tokenizer"] = json!({"type": "Whitespace"}));
        assert!(problem.contains("Whitespace"), "{problem}");
        let problem = refused(&|it| it["added_tokens"][2]["content"] = json!("ab"));
        assert!(problem.contains("6 and 9"), "{problem}");
        let problem = refused(&|it| {
            it["model"]["vocab"]["a▁"] = json!(9);
            it["added_tokens"] = json!([]);
            it["model"]["merges"] = json!(["▁ a", "a b", "▁ ab", "▁a b", "a ▁"]);
            it["pre_tokenizer"] =
                json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": true});
        });
        assert!(problem.contains("`a▁`"), "{problem}");
        let mut notes = Vec::new();
        values(&pieces(), 9, &mut notes).unwrap();
        assert!(notes[0].contains("1 added token") && notes[0].contains("9 rows"), "{notes:?}");
    }
}
