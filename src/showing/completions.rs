//! What the original and the output write after the same few words: greedy, short, and at most so many seconds.

use calibration::sampling::{Sampler, Sampling};
use calibration::session::Session;
use calibration::tokenizer::TextTokenizer;
use serde_json::json;

use crate::error::Error;
use crate::generate;
use crate::progress::{Progress, go_on};
use crate::resources::Stopwatch;
use crate::stored::StoredModel;

/// Prompts.
const PROMPTS: usize = 4;
/// Tokens of each answer, at most.
const TOKENS: usize = 40;
/// Tokens that a model writes for all prompts.
pub(crate) const SAMPLE_TOKENS: usize = PROMPTS * TOKENS;
/// Tokens of text that stand before, where there is no chat template.
const BEFORE: usize = 24;
/// Seconds for all answers of a model; the token that passes it is the last.
const SECONDS: f64 = 20.0;
/// What is asked where there is a chat template.
const QUESTIONS: [&str; PROMPTS] = [
    "Why is the sky blue? Answer in two sentences.",
    "Write a short poem about a lighthouse.",
    "A train leaves at 9:40 and arrives at 12:15. How long does it travel?",
    "Write a Python function that reverses a string.",
];

/// What both models write after the same words.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Completion {
    /// What was asked, or what came before.
    pub prompt: String,
    /// What the original writes.
    pub original: String,
    /// What the output writes.
    pub quantized: String,
}

/// A prompt in text and in tokens.
pub(crate) struct Prompt {
    pub(crate) text: String,
    tokens: Vec<u32>,
}

/// Questions for a model that was taught to answer, beginnings of the evaluation text's windows for any other.
pub(crate) fn prompts(tokenizer: &TextTokenizer, windows: &[Vec<u32>]) -> Result<Vec<Prompt>, Error> {
    if tokenizer.has_chat() {
        let asked = QUESTIONS.iter().map(|question| {
            let messages = json!([{"role": "user", "content": question}]);
            let tokens = tokenizer.encode(&tokenizer.render_question(&messages)?)?;
            Ok(Prompt { text: (*question).to_owned(), tokens })
        });
        // A template may want what these questions do not have.
        if let Ok(prompts) = asked.collect::<Result<Vec<_>, Error>>() {
            return Ok(prompts);
        }
    }
    let count = windows.len().min(PROMPTS);
    let begun = (0..count).map(|number| {
        let window = &windows[number * windows.len() / count];
        let mut tokens = window[..BEFORE.min(window.len().div_ceil(2))].to_vec();
        let mut stream = tokenizer.stream();
        let mut pieces = tokens.iter().map(|&token| stream.push(token)).collect::<Result<Vec<_>, _>>()?;
        // A window may begin within a word; what begins every text prints nothing, and stays.
        let first = pieces.iter().position(|piece| !piece.is_empty()).unwrap_or(0);
        let words = pieces.iter().skip(first).position(|piece| piece.starts_with(char::is_whitespace));
        if let Some(cut) = words.filter(|&cut| cut < tokens.len() / 2) {
            tokens.drain(first..first + cut);
            pieces.drain(first..first + cut);
        }
        Ok(Prompt { text: pieces.concat().trim_start().to_owned(), tokens })
    });
    begun.collect()
}

/// What a model writes after each prompt.
pub(crate) fn write(
    stored: &StoredModel,
    tokenizer: &TextTokenizer,
    prompts: &[Prompt],
    progress: &dyn Progress,
) -> Result<Vec<String>, Error> {
    let ends = generate::ends(stored, tokenizer)?;
    let longest = prompts.iter().map(|prompt| prompt.tokens.len()).max().unwrap_or(0);
    let room = stored.model.hyperparameters.context.min(longest + TOKENS + 1);
    let mut session = Session::open(&stored.model, stored, room)?;
    let mut sampler = Sampler::new(Sampling { temperature: 0.0, top_p: 1.0 }, 0);
    let watch = Stopwatch::start();
    let mut answers = Vec::with_capacity(prompts.len());
    for prompt in prompts {
        let mut answer = String::new();
        session.rewind(0);
        if prompt.tokens.is_empty() || prompt.tokens.len() >= room {
            answers.push(answer);
            continue;
        }
        // The words before decide where a space is.
        let mut stream = tokenizer.stream();
        for &token in &prompt.tokens {
            stream.push(token)?;
        }
        let mut logits = session.feed(&prompt.tokens)?;
        for _ in 0..TOKENS {
            go_on(progress)?;
            let numbers =
                logits.as_slice_mut().ok_or_else(|| Error::Internal("logits have gaps".to_owned()))?;
            let token = sampler.next(numbers);
            if ends.contains(&token) {
                break;
            }
            answer.push_str(&stream.push(token)?);
            if session.room() == 0 || watch.read().wall_seconds > SECONDS {
                break;
            }
            logits = session.feed(&[token])?;
        }
        answers.push(answer);
        progress.step("");
    }
    Ok(answers)
}
