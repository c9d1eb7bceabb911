//! Tests of the crate from outside: windows of texts, the forward pass and its derivative, perplexity and divergence.

mod backward;
mod corpus;
mod evaluation;
mod forward;
mod generation;
mod session;
mod tiny;
mod transforms;
