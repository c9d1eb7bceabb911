//! A post-training quantization compiler: a Hugging Face checkpoint and some text in; a packed 2 to 8 bit checkpoint out, with proof that
//! what was written is what was solved, and perplexity and KL divergence before and after.
//!
//! ```no_run
//! use quantc::job::{Calibration, Overrides, QuantizeJob, Target, Text, WindowRequest};
//! use quantc::recipe::Recipe;
//!
//! let windows = WindowRequest { samples: 128, context: 2048, seed: None };
//! let job = QuantizeJob {
//!     model: "demo/model".into(),
//!     output: "demo/model-4bit".into(),
//!     targets: vec![Target { format: "gptq".to_owned(), bits: None }],
//!     recipe: Recipe::load("default", &Overrides::default())?,
//!     budget: None,
//!     embedding_bits: None,
//!     head_bits: None,
//!     adapter_rank: None,
//!     exclude: Vec::new(),
//!     runs_on: Vec::new(),
//!     tensor_parallel: 1,
//!     imatrix: None,
//!     export_imatrix: None,
//!     calibration: Calibration::Text(Text::BuiltInCalibration),
//!     calibration_windows: windows,
//!     evaluation: Some((Text::BuiltInEvaluation, windows)),
//!     max_shard_size: 5_000_000_000,
//!     untie: false,
//!     force: false,
//! };
//! for report in quantc::quantize(&job, &quantc::progress::Silent)? {
//!     println!("{}", quantc::render::text::report(&report));
//! }
//! # Ok::<(), quantc::error::Error>(())
//! ```

#![warn(clippy::unwrap_used)]

mod adapted;
mod budget;
mod card;
mod carry;
pub mod choices;
pub mod cli;
pub mod compare;
pub mod convert;
mod corpora;
pub mod error;
mod evaluate;
mod expert_tokens;
pub mod experts;
pub mod export;
pub mod generate;
mod gradients;
pub mod hub;
mod importance;
pub mod inspect;
pub mod job;
pub mod listing;
mod outer;
mod outputs;
mod own_text;
mod pipeline;
mod plan;
pub mod planning;
pub mod progress;
mod quantize;
pub mod recipe;
pub mod record;
pub mod render;
pub mod report;
mod requirements;
pub mod resources;
pub mod scales;
mod sensitivity;
mod space;
mod statistics;
mod stored;
mod streams;
mod texts;
mod transformed;
pub mod verify;

pub use compare::compare;
pub use convert::convert;
pub use evaluate::evaluate;
pub use quantize::quantize;
