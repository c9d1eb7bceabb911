//! What the second moments of a stage take, from gathering to solving.

use kernels::stripes::{self, HEIGHT};
use model::linear::Linear;
use quantizer::order::Order;

use super::{F32, F64};
use crate::plan::Plan;
use crate::statistics::lacks_together;

/// Tokens of a chunk that a Hessian is gathered in.
const CHUNK: u64 = quantizer::accumulator::CHUNK_TOKENS as u64;

/// Bytes that have to be in memory, and that may lie elsewhere.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Bytes {
    pub(super) here: u64,
    pub(super) anywhere: u64,
}

impl Bytes {
    pub(super) fn all(self) -> u64 {
        self.here + self.anywhere
    }
}

/// What the Hessians of a stage take.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Need {
    /// While the stage's linears are solved, by all tracks.
    pub(super) kept: Bytes,
    /// Beside that, while they are gathered and factored, by one track at a time.
    pub(super) gathered: Bytes,
    /// What a solver copies of them.
    pub(super) solver: u64,
    /// How many times it has a linear's weights in single precision, beside the layer's own: what they should become, what was rounded, and what
    /// is lacking and left where errors are made up for or rows make up for each other's.
    pub(super) copies: u64,
    /// The largest stripe.
    pub(super) stripe: u64,
}

impl Need {
    pub(super) fn of(plans: &[&Plan], stage: &model::Stage) -> Self {
        let mut all = Self::default();
        for plan in plans {
            let own = Self::of_track(plan, stage);
            all.kept.here += own.kept.here;
            all.kept.anywhere += own.kept.anywhere;
            if own.gathered.all() > all.gathered.all() {
                all.gathered = own.gathered;
            }
            all.solver = all.solver.max(own.solver);
            all.copies = all.copies.max(own.copies);
            all.stripe = all.stripe.max(own.stripe);
        }
        all
    }

    fn of_track(plan: &Plan, stage: &model::Stage) -> Self {
        let solved: Vec<&Linear> =
            stage.linears.iter().filter(|linear| plan.solved_with_data(linear)).collect();
        let Some(first) = solved.first() else { return Self { copies: 4, ..Self::default() } };
        let (n, m) = (first.in_features as u64, first.out_features as u64);
        let settings: Vec<_> = solved.iter().map(|linear| &plan.treatment(linear).settings).collect();
        let together = lacks_together(stage, &settings);
        let across = !together && settings.iter().any(|settings| settings.alpha > 0.0);
        let input = if across { n } else { 0 };
        let wide = stage.writes_residual && settings.iter().any(|settings| settings.beta > 0.0);
        let residual = if wide { m } else { 0 };
        // Those across, `[rows, n]` together.
        let rows = input + residual;
        let parts = if settings.iter().any(|s| s.guard || s.propagates()) { 2 } else { 1 };
        let mut different: Vec<_> = Vec::new();
        for &settings in &settings {
            if !different.contains(&settings) {
                different.push(settings);
            }
        }
        let (single, double) = (stripes::bytes(n, F32), stripes::bytes(n, F64));
        let held_out =
            if parts == 2 { Bytes { here: F32 * n * rows, anywhere: single } } else { Bytes::default() };
        // Of each set of settings the packed factor, what targets move by, and the Hessian for refinement.
        let refining = different.iter().filter(|settings| settings.refines()).count() as u64;
        let prepared = different.len() as u64 * (single + F32 * n * rows) + refining * F32 * n * n;
        let pivots = if settings.iter().any(|s| s.order == Order::Pivot) { 2 * F64 * n * n } else { 0 };
        let chunks = CHUNK * F32 * (2 * n + 2 * input + residual);
        Self {
            kept: Bytes { here: prepared + held_out.here, anywhere: held_out.anywhere },
            // Sums of both parts, and in the end a factor.
            gathered: Bytes {
                here: parts * F64 * n * rows + (parts * chunks).max(F32 * n * rows).max(pivots),
                anywhere: (parts + 1) * double,
            },
            copies: if settings.iter().any(|s| s.propagates() || s.refines()) { 6 } else { 4 },
            // Refinement packs it.
            solver: if refining > 0 { F32 * n * n } else { 0 },
            stripe: F64 * HEIGHT as u64 * n,
        }
    }

    /// All in memory.
    pub(super) fn together(&self) -> u64 {
        self.kept.all() + self.gathered.all()
    }

    /// With so many stripes at a time of what may lie elsewhere.
    pub(super) fn in_stripes(&self, stripes: u64) -> u64 {
        self.kept.here + self.gathered.here + stripes * self.stripe
    }
}
