//! Tests of the crate from outside: windows of texts, the forward pass, perplexity and divergence.

mod corpus;
mod evaluation;
mod forward;
mod tiny;
