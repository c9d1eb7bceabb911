//! What a solver may be told, and the named settings that recipes start from.

use serde::{Deserialize, Serialize};

use crate::order::Order;

/// How hard a solver tries. Fields that a solver has no use for are ignored by it (RTN knows only the range).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SolverSettings {
    /// λ over the mean diagonal of the Hessian; raised tenfold, up to 1, until the factorization succeeds, and by the guard.
    pub damping: f64,
    /// Whether held-out windows may raise the damping, and a linear that is worse there than rounded to nearest is rounded to nearest.
    pub guard: bool,
    /// Processing order of the columns.
    pub order: Order,
    /// How scales are chosen.
    pub range: Range,
    /// Candidate scales for each sign that the range search tries between 0.4 and 1.2 times the full range.
    pub range_candidates: usize,
    /// Rounds of scale refit, each followed by another solve with the new scales.
    pub refits: usize,
    /// Sweeps of coordinate descent over the codes after that, each pair followed by a scale refit.
    pub sweeps: usize,
    /// Sweeps of coupled descent at the end, where an error costs what it costs the model; they need one backward pass of the original.
    pub coupled_sweeps: usize,
    /// Whether these may start from codes that were rounded in that metric, where that is the better start.
    pub two_sided: bool,
    /// Added to the diagonal of outputs' second moments, over its mean: the fewer tokens' gradients there are, the more of it they need.
    pub output_damping: f64,
    /// Whether a token counts in the Hessian by the gradient that the original has there; for its
    /// whole stage, which shares the Hessian. Takes a backward pass over all windows.
    pub weigh_tokens: bool,
    /// How much of the input's error, which earlier layers made, targets make up for: a share, 0 to 1, of what held-out tokens bear out.
    pub alpha: f64,
    /// The same of the residual stream's error, for linears that write to it.
    pub beta: f64,
}

impl Default for SolverSettings {
    fn default() -> Self {
        DEFAULT
    }
}

impl SolverSettings {
    /// Whether errors of earlier layers are made up for, which needs the original's activations.
    #[must_use]
    pub fn propagates(&self) -> bool {
        self.alpha > 0.0 || self.beta > 0.0
    }

    /// Whether scales or codes are made better once the solver has chosen them, which takes the Hessian itself.
    #[must_use]
    pub fn refines(&self) -> bool {
        self.refits + self.sweeps + self.coupled_sweeps > 0
    }

    /// # Errors
    /// A damping of inputs or outputs that is negative or not finite, an alpha or beta outside 0 to 1, or a search without candidates.
    pub fn check(&self) -> Result<(), SettingsError> {
        for (name, found) in [("damping", self.damping), ("output_damping", self.output_damping)] {
            if !(found.is_finite() && found >= 0.0) {
                return Err(SettingsError { name, expected: "a finite number, at least 0", found });
            }
        }
        for (name, found) in [("alpha", self.alpha), ("beta", self.beta)] {
            if !(0.0..=1.0).contains(&found) {
                return Err(SettingsError { name, expected: "0 to 1", found });
            }
        }
        if !(2..=256).contains(&self.range_candidates) {
            let (name, expected) = ("range_candidates", "2 to 256");
            return Err(SettingsError { name, expected, found: self.range_candidates as f64 });
        }
        Ok(())
    }
}

/// How scales are chosen: from the extremes, or as the candidate with the least error in some metric.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Range {
    /// The smallest grid that clips nothing.
    MinMax,
    /// Least `Σ δ²`.
    Plain,
    /// Least `Σ H_jj δ_j²`.
    Diagonal,
    /// Least `Σ R_jj² δ_j²`: a column counts by the variance that later columns cannot make up for.
    Pivots,
    /// Least loss of the solver's own recursion within the group (`algorithms`: the exact conditional metric `δ R_gg R_ggᵀ δᵀ`), among
    /// the best candidates by `Pivots`.
    Conditional,
}

/// Settings with a name, and the solver that they are for.
#[derive(Clone, Debug)]
pub struct BuiltIn {
    /// As recipes spell it.
    pub name: &'static str,
    /// One line for a list.
    pub summary: &'static str,
    /// A name in [`crate::solver::ALL`].
    pub solver: &'static str,
    /// What the solver is told.
    pub settings: SolverSettings,
}

/// Every named setting, the cheapest first.
pub static BUILT_IN: &[BuiltIn] = &[
    BuiltIn { name: "rtn", summary: "round to nearest; needs no calibration", solver: "rtn", settings: RTN },
    BuiltIn {
        name: "gptq",
        summary: "GPTQ with activation order and range search",
        solver: "gptq",
        settings: GPTQ,
    },
    BuiltIn {
        name: "default",
        summary: "GPTQ, then scale refit and coordinate descent, error propagation, and what the model makes of errors",
        solver: "gptq",
        settings: DEFAULT,
    },
    BuiltIn {
        name: "max",
        summary: "the default at length, on text that the model writes itself as well",
        solver: "gptq",
        settings: MAX,
    },
];

const RTN: SolverSettings = SolverSettings {
    damping: 0.01,
    guard: false,
    order: Order::Natural,
    range: Range::MinMax,
    range_candidates: 33,
    refits: 0,
    sweeps: 0,
    coupled_sweeps: 0,
    two_sided: false,
    output_damping: 0.3,
    weigh_tokens: false,
    alpha: 0.0,
    beta: 0.0,
};

const GPTQ: SolverSettings =
    SolverSettings { guard: true, order: Order::Activation, range: Range::Diagonal, ..RTN };

const DEFAULT: SolverSettings = SolverSettings {
    refits: 3,
    sweeps: 4,
    coupled_sweeps: 4,
    two_sided: true,
    alpha: 0.6,
    beta: 0.6,
    ..GPTQ
};

/// What refines longer fits the Hessian more closely than the trial of dampings does, so it starts with more.
const MAX: SolverSettings = SolverSettings {
    damping: 0.05,
    refits: 4,
    sweeps: 8,
    coupled_sweeps: 12,
    output_damping: 0.1,
    weigh_tokens: true,
    alpha: 1.0,
    beta: 1.0,
    ..DEFAULT
};

/// A setting out of range.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("`{name}` is {found}, expected {expected}")]
pub struct SettingsError {
    /// The field.
    pub name: &'static str,
    /// What it may be.
    pub expected: &'static str,
    /// What it is.
    pub found: f64,
}
