//! `generate`: a model's own words, to a prompt or in a conversation.

mod speaker;

use std::path::{Path, PathBuf};

use calibration::sampling::{Sampler, Sampling};
use calibration::session::Session;
use calibration::tokenizer::TextTokenizer;
use calibration::weights::Activations;
use serde_json::{Value, json};

use crate::error::Error;
use crate::resources::Stopwatch;
use crate::stored::StoredModel;

pub use speaker::Speaker;

/// What is to be generated, and how.
#[derive(Clone, Debug)]
pub struct GenerateJob {
    /// An original checkpoint or an output of `quantize`.
    pub model: PathBuf,
    /// Tokens of an answer, at most.
    pub tokens: usize,
    /// Tokens of the whole conversation, at most; lowered to what the model can attend to.
    pub context: usize,
    /// How tokens are drawn.
    pub sampling: Sampling,
    /// Seed of the draws.
    pub seed: u64,
    /// Go on with the prompt as it is, even if the model has a chat template.
    pub raw: bool,
    /// What packed weights are multiplied with.
    pub activations: Activations,
    /// What the model is told before the first question; chat only.
    pub system: Option<String>,
}

/// Who talks with the model.
pub trait Dialogue {
    /// What to say next; none ends the conversation.
    ///
    /// # Errors
    /// Whatever keeps it from being read.
    fn prompt(&mut self) -> Result<Option<String>, Error>;

    /// Told a piece of the answer.
    ///
    /// # Errors
    /// Whatever keeps it from being shown.
    fn hear(&mut self, text: &str) -> Result<(), Error>;

    /// Told that the answer is complete.
    ///
    /// # Errors
    /// As [`Dialogue::hear`].
    fn answered(&mut self, answer: &Answer) -> Result<(), Error>;

    /// Whether the work is to end early.
    fn interrupted(&self) -> bool {
        false
    }
}

/// How an answer came about.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Answer {
    /// Tokens of the prompt that were new.
    pub prompt_tokens: usize,
    /// Seconds until its last logits.
    pub prompt_seconds: f64,
    /// Tokens of the answer.
    pub tokens: usize,
    /// Seconds that they took.
    pub seconds: f64,
    /// Why it ended.
    pub end: End,
}

/// Why an answer ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The model ended it.
    Said,
    /// It has as many tokens as were asked for.
    Tokens,
    /// The conversation fills the context.
    Context,
}

/// Lets a model answer until the dialogue has no more prompts.
///
/// # Errors
/// A model without tokenizer, a prompt longer than the context, [`Error::Interrupted`], and what the dialogue fails with.
pub fn generate(job: &GenerateJob, dialogue: &mut dyn Dialogue) -> Result<(), Error> {
    let stored = StoredModel::open(&job.model)?.with_activations(job.activations);
    let tokenizer = stored.tokenizer()?.ok_or_else(|| Error::NotSuitable {
        path: job.model.clone(),
        problem: "there is no tokenizer.json, so text cannot be read or written".to_owned(),
        hint: "copy tokenizer.json and tokenizer_config.json from the original",
    })?;
    let chat = tokenizer.has_chat() && !job.raw;
    if job.system.is_some() && !chat {
        let problem = "the model has no chat template that would take it, or --raw leaves it out".to_owned();
        return Err(Error::Argument { flag: "--system", problem });
    }
    let ends = ends(&stored, &tokenizer)?;
    let context = job.context.min(stored.model.hyperparameters.context);
    let mut session = Session::open(&stored.model, &stored, context)?;
    let mut sampler = Sampler::new(job.sampling, job.seed);
    let mut messages: Vec<Value> = Vec::new();
    messages.extend(job.system.as_ref().map(|text| json!({"role": "system", "content": text})));
    let mut known: Vec<u32> = Vec::new();
    while let Some(prompt) = dialogue.prompt()? {
        let wanted = if chat {
            messages.push(json!({"role": "user", "content": prompt}));
            tokenizer.encode(&tokenizer.render_question(&Value::from(messages.clone()))?)?
        } else {
            // Every prompt begins anew.
            tokenizer.begin().into_iter().chain(tokenizer.encode(&prompt)?).collect()
        };
        let watch = Stopwatch::start();
        // What both have in common is not computed again; the last token is, for its logits.
        let shared = known.iter().zip(&wanted).take_while(|(known, wanted)| known == wanted).count();
        let shared = shared.min(wanted.len().saturating_sub(1));
        session.rewind(shared);
        known.truncate(shared);
        let fresh = &wanted[shared..];
        if fresh.is_empty() || fresh.len() >= session.room() {
            let problem = format!("the prompt is {} tokens, and the context {context}", wanted.len());
            return Err(Error::Argument { flag: "--context", problem });
        }
        let mut logits = session.feed(fresh)?;
        known.extend(fresh);
        let prompt_seconds = watch.read().wall_seconds;
        let watch = Stopwatch::start();
        let mut stream = tokenizer.stream();
        let (mut said, mut tokens) = (String::new(), 0);
        let end = loop {
            if dialogue.interrupted() {
                return Err(Error::Interrupted);
            }
            if tokens == job.tokens {
                break End::Tokens;
            }
            let numbers =
                logits.as_slice_mut().ok_or_else(|| Error::Internal("logits have gaps".to_owned()))?;
            let token = sampler.next(numbers);
            if ends.contains(&token) {
                break End::Said;
            }
            tokens += 1;
            let text = stream.push(token)?;
            if !text.is_empty() {
                said.push_str(&text);
                dialogue.hear(&text)?;
            }
            if session.room() <= 1 {
                break End::Context;
            }
            logits = session.feed(&[token])?;
            known.push(token);
        };
        messages.push(json!({"role": "assistant", "content": said}));
        let seconds = watch.read().wall_seconds;
        dialogue.answered(&Answer { prompt_tokens: fresh.len(), prompt_seconds, tokens, seconds, end })?;
    }
    Ok(())
}

/// Tokens that end an answer: the configurations' and the tokenizer's.
pub(crate) fn ends(stored: &StoredModel, tokenizer: &TextTokenizer) -> Result<Vec<u32>, Error> {
    let generation = stored.path.join("generation_config.json");
    let generation = if generation.exists() { read_json(&generation)? } else { Value::Null };
    let mut ends: Vec<u32> = tokenizer.end().into_iter().collect();
    for value in [&stored.config["eos_token_id"], &generation["eos_token_id"]] {
        let listed = value.as_array().map_or(std::slice::from_ref(value), Vec::as_slice);
        ends.extend(listed.iter().filter_map(Value::as_u64).filter_map(|token| u32::try_from(token).ok()));
    }
    Ok(ends)
}

fn read_json(path: &Path) -> Result<Value, Error> {
    let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    Ok(formats::json::read(path.parent().unwrap_or(Path::new(".")), &name)?)
}
