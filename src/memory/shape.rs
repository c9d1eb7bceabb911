//! Sizes that the phases of a run share, and what each phase takes whatever happens.

use kernels::stripes::{self, HEIGHT, WIDTH};
use model::graph::StageInput;
use model::linear::{Linear, Part};
use model::{Layer, Model, Stage};

use super::need::Need;
use super::{F32, F64, STRIPES, moments, weights};
use crate::plan::Plan;

/// Sizes that all phases share.
pub(super) struct Shape {
    pub(super) hidden: u64,
    pub(super) vocabulary: u64,
    /// Tokens of a window.
    pub(super) tokens: u64,
    /// The weights of the largest layer.
    layer: u64,
    /// What waits for later stages, of one token, at most at a time: the inputs of those that do not read the residual stream.
    pub(super) waiting: u64,
    /// The widest input of a stage, and the outputs of all linears of a layer.
    widest_input: u64,
    pub(super) outputs: u64,
    /// Numbers of a token while a stage works on its window: in the forward pass, and where its input is shown to what gathers it.
    advanced: u64,
    shown: u64,
    /// Windows in work.
    threads: u64,
}

impl Shape {
    pub(super) fn of(model: &Model, context: usize) -> Self {
        let numbers = &model.hyperparameters;
        let most = |of: &dyn Fn(&model::Layer) -> u64| model.layers.iter().map(of).max().unwrap_or(0);
        let linears = |layer: &model::Layer| -> Vec<Linear> {
            // One expert at a time.
            let held = |linear: &&Linear| linear.id.part.expert().is_none_or(|expert| expert == 0);
            layer.stages.iter().flat_map(|stage| &stage.linears).filter(held).cloned().collect()
        };
        Self {
            hidden: numbers.hidden_size as u64,
            vocabulary: numbers.vocabulary as u64,
            tokens: context.min(numbers.context) as u64,
            layer: most(&|layer| linears(layer).iter().map(weights).sum::<u64>() * F32),
            waiting: most(&waiting),
            widest_input: most(&|layer| {
                linears(layer).iter().map(|linear| linear.in_features as u64).max().unwrap_or(0)
            }),
            outputs: most(&|layer| linears(layer).iter().map(|linear| linear.out_features as u64).sum()),
            advanced: most(&|layer| {
                layer.stages.iter().map(|stage| advanced(layer, stage)).max().unwrap_or(0)
            }),
            shown: most(&|layer| layer.stages.iter().map(|stage| shown(layer, stage)).max().unwrap_or(0)),
            threads: rayon::current_num_threads() as u64,
        }
    }

    /// One window on its way through a stage, and a sixteenth for what products lay out of it.
    fn forward(&self) -> u64 {
        let numbers = self.tokens * self.advanced;
        F32 * (numbers + numbers / 16)
    }

    /// One window on its way back through a layer.
    fn back(&self) -> u64 {
        self.tokens * F32 * (4 * self.hidden + 2 * self.waiting.max(self.widest_input) + self.outputs)
    }

    /// A layer of each track, the Hessians of a stage, in memory where they take at most so many bytes, what a solver takes,
    /// windows in work.
    pub(super) fn solving(&self, model: &Model, plans: &[&Plan], most: u64) -> u64 {
        let stages = model.layers.iter().flat_map(|layer| &layer.stages);
        let of_stage = |stage: &model::Stage| {
            let need = Need::of(plans, stage);
            let away = need.together() > most;
            let (kept, gathered) = match away {
                true => (need.kept.here, most.max(need.in_stripes(STRIPES.0)) - need.kept.here),
                false => (need.kept.all(), need.gathered.all()),
            };
            let sizes = || stage.linears.iter().map(weights);
            let together = plans.len() as u64 * sizes().sum::<u64>();
            // For products of the calibration passes a stage's weights are rounded and laid out once more.
            let rounded = F32 * sizes().sum::<u64>();
            // What is small is solved side by side, and, like what is decided before, beside such a pass.
            let small = together <= crate::solving::TOGETHER as u64;
            let gathered = if small { gathered + rounded } else { gathered };
            let taken = match small {
                true => {
                    let solvers = (plans.len() * stage.linears.len()) as u64;
                    need.copies * F32 * together + solvers * need.solver + rounded
                }
                false => {
                    let largest = sizes().max().unwrap_or(0);
                    (need.copies * F32 * largest + need.solver).max(rounded)
                }
            };
            kept + gathered.max(taken)
        };
        let moments: u64 = model.layers.iter().map(|layer| moments(layer, plans)).max().unwrap_or(0);
        // A track's stream and the original's are shown together, weighed where tokens are; and what both lack.
        let beside = plans.iter().any(|plan| plan.propagates_errors());
        let weighed = plans.iter().any(|plan| !plan.weighs_tokens(model).is_empty());
        let of_window = self.tokens * F32;
        let once_more = of_window * (self.hidden + self.widest_input);
        let in_sight =
            (1 + u64::from(beside)) * (of_window * self.shown + if weighed { once_more } else { 0 });
        let lacking = if beside { once_more } else { 0 };
        let shown = crate::streams::shown_together(self.tokens as usize) as u64 * (in_sight + lacking);
        self.layer * plans.len() as u64
            + stages.map(of_stage).max().unwrap_or(0)
            + moments
            + (self.threads * self.forward()).max(shown)
            + self.threads * F32 * (HEIGHT * WIDTH) as u64
    }

    /// The head, a layer, what is gathered of all of them, windows in work.
    pub(super) fn gradients(&self, model: &Model, plans: &[&Plan], windows: u64) -> u64 {
        let moments: u64 = model.layers.iter().map(|layer| moments(layer, plans)).sum();
        let mut weighed: Vec<_> = plans.iter().flat_map(|plan| plan.weighs_tokens(model)).collect();
        weighed.sort_unstable();
        weighed.dedup();
        let roots = weighed.len() as u64 * windows * self.tokens * F32;
        self.vocabulary * self.hidden * F32 + self.layer + moments + roots + self.threads * 2 * self.back()
    }

    /// Keys and values of a batch, the weights that are held for it.
    pub(super) fn writing(&self, model: &Model, windows: u64) -> u64 {
        let numbers = &model.hyperparameters;
        let cache = 2 * F32 * (numbers.key_value_heads * numbers.head_dim) as u64;
        let cache = cache * self.tokens * model.layers.len() as u64;
        let batch = (windows * cache).min(cache.max(calibration::generation::CACHE_BYTES as u64));
        batch + calibration::generation::held_bytes(model) as u64 + self.layer
    }

    /// The head, a layer, as it is and rounded for both ways, and of each of its linears what it is given and what comes back to it, for the windows
    /// of a step; all codes and scales with Adam's means, the original's last states.
    pub(super) fn learning(&self, model: &Model, plans: &[&Plan], windows: u64) -> u64 {
        let all: u64 = model.linears().map(weights).sum();
        let step = crate::scales::BATCH as u64;
        let ends = |layer: &Layer| -> u64 {
            let linears = layer.stages.iter().flat_map(|stage| &stage.linears);
            let dense = linears.filter(|linear| linear.id.part.expert().is_none());
            dense.map(|linear| (linear.in_features + linear.out_features) as u64).sum()
        };
        let ends = model.layers.iter().map(ends).max().unwrap_or(0) * self.tokens * F32;
        let widest = model.linears().map(weights).max().unwrap_or(0) * F32;
        let lessons = windows.min(crate::scales::WINDOWS as u64);
        let states = lessons * self.tokens * self.hidden * F32 + step * 4 * self.tokens * self.hidden * F32;
        // Of every 16 weights one scale at most; rounded and not, first and second mean, gradient, as they were.
        let scales = all / 16 * 6 * F32;
        // Rounded, the head and a layer are there for both ways beside what they are made of.
        2 * self.vocabulary * self.hidden * F32
            + self.layer * 2
            + step * ends
            + self.threads * 2 * widest
            + plans.len() as u64 * all
            + scales
            + states
            + self.threads * 2 * self.back()
    }

    /// Inputs and gradients of some windows, a layer, the Hessians of a stage.
    pub(super) fn weighing(&self, model: &Model) -> u64 {
        let tokens = (crate::sensitivity::MOST_TOKENS as u64 + self.tokens).max(2 * self.tokens);
        let widest = model.linears().map(|linear| linear.in_features as u64).max().unwrap_or(0);
        let solver = model.linears().map(|linear| 6 * F32 * weights(linear)).max().unwrap_or(0);
        self.vocabulary * self.hidden * F32
            + 2 * self.layer
            + 2 * stripes::bytes(widest, F64)
            + stripes::bytes(widest, F32)
            + solver
            + tokens * F32 * (3 * self.hidden + self.widest_input)
            + tokens.div_ceil(4) * F32 * (self.outputs + 4 * self.widest_input)
            + self.threads * 2 * self.back()
    }

    /// A layer, slices of two heads, windows in work.
    pub(super) fn measuring(&self) -> u64 {
        2 * self.layer + self.threads * (self.forward() + 2 * F32 * 64 * self.vocabulary) + (64 << 20)
    }
}

/// What waits of a token in a layer, at most at a time: what attention gave, or the MLP's inner features; both where the branches share their input, and
/// latent features beside what is made of them.
fn waiting(layer: &Layer) -> u64 {
    let inputs = |attention: bool| {
        let of_branch = move |stage: &&Stage| match stage.input {
            StageInput::AttentionOutput | StageInput::QueryLatent | StageInput::KeyValueLatent => attention,
            StageInput::MlpOutput => !attention,
            StageInput::AttentionInput | StageInput::MlpInput | StageInput::SharedInput => false,
        };
        layer.stages.iter().filter(of_branch).filter_map(|stage| stage.linears.first())
    };
    let queries = layer.stages.iter().filter(|stage| stage.input == StageInput::QueryLatent);
    let attention: u64 =
        inputs(true).map(|linear| linear.in_features as u64).sum::<u64>() + queries.map(made).sum::<u64>();
    let inner = inputs(false).map(|linear| linear.in_features as u64).max().unwrap_or(0);
    let shared = layer.stages.iter().any(|stage| stage.input == StageInput::SharedInput);
    if shared { attention + inner } else { attention.max(inner) }
}

/// What a stage's linears give for a token.
fn made(stage: &Stage) -> u64 {
    stage.linears.iter().map(|linear| linear.out_features as u64).sum()
}

/// What is given to the experts of a layer, which waits beside all else.
fn given(layer: &Layer) -> u64 {
    let hidden = layer.stages.first().map_or(0, |stage| stage.linears[0].in_features);
    if layer.experts() > 0 { hidden as u64 } else { 0 }
}

/// A token's state, the stage's input where that is made for it, and what its linears give: twice where that is taken apart, or turned and laid out
/// for attention.
fn advanced(layer: &Layer, stage: &Stage) -> u64 {
    let apart = match stage.input {
        StageInput::AttentionInput | StageInput::SharedInput | StageInput::KeyValueLatent => true,
        StageInput::MlpInput => stage.linears.len() == 1,
        StageInput::QueryLatent | StageInput::AttentionOutput | StageInput::MlpOutput => false,
    };
    shown(layer, stage) + made(stage) * if apart { 2 } else { 1 }
}

/// A token's state, and the stage's input.
fn shown(layer: &Layer, stage: &Stage) -> u64 {
    let hidden = layer.stages.first().map_or(0, |stage| stage.linears[0].in_features) as u64;
    let input = stage.linears.first().map_or(0, |linear| linear.in_features) as u64;
    let parallel = layer.stages.iter().any(|stage| stage.input == StageInput::SharedInput);
    // What waits and is read is the input itself; latent features and both branches' wait side by side.
    let state = match (stage.input, stage.part()) {
        (StageInput::MlpInput, Part::Main) if !parallel => hidden,
        (StageInput::AttentionInput, _) => hidden,
        (StageInput::MlpOutput | StageInput::AttentionOutput, Part::Main) if !parallel => hidden,
        _ => hidden + waiting(layer),
    };
    state + input + given(layer)
}
