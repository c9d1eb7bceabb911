//! How fast models run here: in f32 on this machine's processors, by the packed kernels where there are some for the grid.

use calibration::sampling::{Sampler, Sampling};
use calibration::session::Session;
use serde::Serialize;

use crate::error::Error;
use crate::progress::{Progress, go_on};
use crate::resources::Stopwatch;
use crate::stored::StoredModel;

/// Tokens that are written, at most.
const WRITTEN: usize = 32;
/// Seconds that they may take; the token that passes it is the last.
const SECONDS: f64 = 5.0;
/// Tokens of text that come before.
const PROMPT: usize = 16;

/// How fast a model runs on this machine; says nothing about other runtimes.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Speed {
    /// Tokens of the text through all decoder layers, the reading of weights included.
    pub read_tokens_per_second: f64,
    /// Tokens of a single sequence, one after the other; none where there is no room for any.
    pub written_tokens_per_second: Option<f64>,
}

/// Seconds that each model spent in its layers.
pub(super) struct LayerClock {
    watch: Stopwatch,
    seconds: Vec<f64>,
}

impl LayerClock {
    pub(super) fn new(models: usize) -> Self {
        Self { watch: Stopwatch::start(), seconds: vec![0.0; models] }
    }

    pub(super) fn begin(&mut self) {
        self.watch = Stopwatch::start();
    }

    pub(super) fn end(&mut self, model: usize) {
        self.seconds[model] += self.watch.read().wall_seconds;
    }

    /// Tokens a second.
    pub(super) fn rate(&self, model: usize, tokens: usize) -> f64 {
        tokens as f64 / self.seconds[model].max(f64::MIN_POSITIVE)
    }
}

/// Lets a model go on with the beginning of the first window.
pub(super) fn written(
    stored: &StoredModel,
    windows: &[Vec<u32>],
    progress: &dyn Progress,
) -> Result<Option<f64>, Error> {
    let window = windows.first().map_or(&[][..], Vec::as_slice);
    let prompt = &window[..window.len().min(PROMPT)];
    let room = stored.model.hyperparameters.context.min(PROMPT + WRITTEN + 1);
    if prompt.is_empty() || prompt.len() + 2 > room {
        return Ok(None);
    }
    let mut session = Session::open(&stored.model, stored, room)?;
    let mut sampler = Sampler::new(Sampling { temperature: 0.0, top_p: 1.0 }, 0);
    let mut logits = session.feed(prompt)?;
    let watch = Stopwatch::start();
    let mut tokens = 0_u32;
    while session.room() > 0 && watch.read().wall_seconds < SECONDS {
        go_on(progress)?;
        let numbers = logits.as_slice_mut().ok_or_else(|| Error::Internal("logits have gaps".to_owned()))?;
        let token = sampler.next(numbers);
        logits = session.feed(&[token])?;
        tokens += 1;
    }
    let seconds = watch.read().wall_seconds;
    Ok((tokens > 0).then(|| f64::from(tokens) / seconds.max(f64::MIN_POSITIVE)))
}
