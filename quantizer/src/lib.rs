//! What quantizing a matrix is: grids, Hessians, solvers.
//!
//! # The layer-wise problem
//!
//! A linear `y = x Wᵀ` sees inputs `x` from calibration text. Its weight is replaced by one whose entries lie on a grid,
//! `Q = scale * (code - zero_point)`, such that the outputs change least:
//!
//! ```text
//! minimize over codes and scales      tr((T - Q) H (T - Q)ᵀ)
//! ```
//!
//! `H` is the second moment of the inputs and `T` the target: the weight itself, or, where the errors of earlier layers are to be made up
//! for (QEP, arXiv 2504.09629), `T = W + α W C (H + λ'I)⁻¹`. Rows are independent. With `H = I` the answer is rounding to nearest.
//!
//! | paper | here | shape |
//! |---|---|---|
//! | `W` | [`Problem::weight`](solver::Problem) | `[out_features, in_features]` |
//! | `X` | rows given to [`accumulator::HessianAccumulator`] | `[tokens, in_features]` |
//! | `H = XᵀX / tokens` | [`hessian::Hessian`] | `[in_features, in_features]` |
//! | `C = (X_original - X)ᵀX / tokens` | [`hessian::Shortfall::input`] | `[in_features, in_features]` |
//! | `Γ = (R_original - R)ᵀX / tokens`, `R` the residual stream | [`hessian::Shortfall::residual`] | `[out_features, in_features]` |
//! | `A = E[ȳ ȳᵀ]`, `H_O` | [`output::OutputHessian`] | `[out_features, out_features]` |
//! | `H + λI` | [`hessian::Damped`] | `[in_features, in_features]` |
//! | `R`, upper, `H + λI = R Rᵀ` | [`hessian::Factor`], [`prepared::PreparedHessian`] | `[in_features, in_features]` |
//! | `T` | [`prepared::PreparedHessian::target`] | `[out_features, in_features]` |
//! | `s`, `z` | [`grid::Grid`] | `[out_features, groups]` |
//! | codes | [`tensor::QuantizedTensor`] | `[out_features, in_features]` |
//!
//! In order of reading: [`scheme`] and [`tensor`] say what a solution is; [`accumulator`], [`hessian`], [`order`] and [`prepared`] turn
//! activations into what the linears of one stage share; [`range`] chooses scales; [`solver`] chooses codes; [`refine`] improves
//! both; [`loss`] judges; [`adapter`] corrects what is left; [`allocate`] chooses widths for a whole model.
//!
//! This crate knows no model, opens no file and reads no clock. Its results do not depend on the number of threads.

#![warn(clippy::unwrap_used)]

pub mod accumulator;
pub mod adapter;
pub mod allocate;
pub mod express;
pub mod grid;
pub mod guard;
pub mod hessian;
pub mod inputs;
pub mod levels;
pub mod loss;
pub mod nested;
pub mod order;
pub mod output;
pub mod prepared;
pub mod range;
pub mod refine;
pub mod scheme;
pub mod settings;
pub mod solver;
mod storage;
pub mod tensor;
mod two_level;

pub use accumulator::HessianAccumulator;
pub use guard::Shares;
pub use hessian::{CrossMoment, Hessian, HessianError, Shortfall};
pub use inputs::InputRounding;
pub use output::{OutputHessian, OutputHessianAccumulator};
pub use prepared::PreparedHessian;
pub use scheme::Scheme;
pub use settings::SolverSettings;
pub use solver::{Problem, Solution, SolveError, SolveReport, Solver};
pub use tensor::QuantizedTensor;
