//! What flows through the model: text, windows of tokens, hidden states, and how good the model is at predicting text.
//!
//! [`corpus`] turns text into windows with [`tokenizer`]; [`activations`] hold their hidden states; [`forward`] runs a described decoder layer in stages, and [`backward`] takes
//! gradients back through it; [`generation`] lets a model write many texts, [`session`] one that others add to; [`transforms`] change weights and not what they compute;
//! [`evaluation`] measures perplexity and divergence layer by layer. Weights come from a
//! [`weights::WeightSource`]; this crate knows no file format.

#![warn(clippy::unwrap_used)]

pub mod activations;
pub mod backward;
mod charsmap;
mod chat;
pub mod corpus;
mod error;
pub mod evaluation;
pub mod foreign;
pub mod forward;
pub mod generation;
mod held;
pub mod sampling;
pub mod session;
pub mod tokenizer;
pub mod transforms;
pub mod weights;

pub use error::CalibrationError;
