//! `--calibration self`: the original writes the text that it is calibrated on.

use std::ops::ControlFlow;

use calibration::CalibrationError;
use calibration::corpus::{Windows, fingerprint};
use calibration::generation::{self, Beginning, Request};
use calibration::tokenizer::TextTokenizer;
use kernels::bf16::Precision;
use serde_json::Value;

use crate::corpora::ReadText;
use crate::error::Error;
use crate::job::WindowRequest;
use crate::journal::Journal;
use crate::progress::Progress;
use crate::report::TextSummary;
use crate::stored::StoredModel;

/// Windows that the model writes in products of this precision, each as long as asked for and at most as long as the model attends.
pub(crate) fn write(
    source: &StoredModel,
    tokenizer: Option<&TextTokenizer>,
    (request, precision): (WindowRequest, Precision),
    journal: &mut Journal,
    progress: &dyn Progress,
) -> Result<ReadText, Error> {
    let seed = request.seed.unwrap_or(0);
    let begin = match tokenizer {
        Some(tokenizer) => tokenizer.begin(),
        None => tokens(&source.config, "bos_token_id").first().copied(),
    };
    let vocabulary = source.model.hyperparameters.vocabulary;
    let (beginning, how) = match begin {
        Some(token) => (Beginning::Token(token), "from its beginning token"),
        None => {
            let tokens = match tokenizer {
                Some(tokenizer) => tokenizer.ordinary_tokens(vocabulary),
                None => (0..vocabulary as u32).collect(),
            };
            (Beginning::AnyOf(tokens), "from tokens drawn evenly, since it has no beginning token")
        }
    };
    let wanted = Request {
        sequences: request.samples,
        tokens: request.context.min(source.model.hyperparameters.context),
        beginning,
        ends: tokens(&source.config, "eos_token_id"),
        seed,
        precision,
    };
    let tokens = match journal.own_text()? {
        Some(tokens) => tokens,
        None => {
            let tokens = sample(source, &wanted, progress)?;
            journal.keep_own_text(&tokens)?;
            tokens
        }
    };
    let summary = TextSummary {
        text: format!("text that the model wrote {how} (seed {seed})"),
        windows: tokens.len(),
        context: wanted.tokens,
        tokens: tokens.iter().map(Vec::len).sum(),
        requested: request,
        fingerprint: fingerprint(&tokens),
    };
    let fingerprint = summary.fingerprint.clone();
    Ok(ReadText { windows: Windows { tokens, fingerprint }, summary, notes: Vec::new() })
}

fn sample(source: &StoredModel, wanted: &Request, progress: &dyn Progress) -> Result<Vec<Vec<u32>>, Error> {
    let _section = kernels::account::section("writing text");
    progress.phase("writing text", generation::steps(&source.model, wanted));
    let mut step = || {
        progress.step("");
        if progress.interrupted() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    };
    let tokens = match generation::sample(&source.model, source, wanted, &mut step) {
        Err(CalibrationError::Interrupted) => return Err(Error::Interrupted),
        tokens => tokens?,
    };
    progress.finish();
    Ok(tokens)
}

/// Tokens that config.json names under `key`: one, a list, or none.
fn tokens(config: &Value, key: &str) -> Vec<u32> {
    let token = |value: &Value| value.as_u64().and_then(|token| u32::try_from(token).ok());
    match config.get(key) {
        Some(Value::Array(values)) => values.iter().filter_map(token).collect(),
        Some(value) => token(value).into_iter().collect(),
        None => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn configurations_name_one_token_or_several_or_none() {
        let config = json!({"eos_token_id": [2, 7], "bos_token_id": 1, "pad_token_id": null});
        assert_eq!(tokens(&config, "eos_token_id"), [2, 7]);
        assert_eq!(tokens(&config, "bos_token_id"), [1]);
        assert!(tokens(&config, "pad_token_id").is_empty() && tokens(&config, "unk_token_id").is_empty());
    }
}
