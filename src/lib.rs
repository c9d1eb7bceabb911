//! A post-training quantization compiler: a Hugging Face checkpoint and some text in; a packed 2 to 8 bit checkpoint out, with proof that
//! what was written is what was solved, and perplexity and KL divergence before and after.
//!
//! Another program quantizes with a progress of its own and, where it has any, with calibration tokens of its own:
//!
//! ```
//! use std::sync::atomic::{AtomicUsize, Ordering};
//!
//! use quantc::job::{Calibration, QuantizeJob, Text, WindowRequest};
//! use quantc::progress::Progress;
//!
//! /// Counts the steps; `interrupted` could end the work between any two of them.
//! #[derive(Default)]
//! struct Steps(AtomicUsize);
//!
//! impl Progress for Steps {
//!     fn phase(&self, _name: &str, _steps: usize) {}
//!     fn step(&self, _detail: &str) {
//!         self.0.fetch_add(1, Ordering::Relaxed);
//!     }
//!     fn finish(&self) {}
//!     fn warn(&self, message: &str) {
//!         eprintln!("{message}");
//!     }
//! }
//!
//! let folder = tempfile::tempdir()?;
//! let windows: Vec<Vec<u32>> =
//!     (0..8).map(|window| (0..64).map(|place| (7 + 31 * window + 13 * place) % 2048).collect()).collect();
//! let short = WindowRequest { samples: 8, context: 64, seed: None };
//! let job = QuantizeJob {
//!     calibration: Calibration::Text(Text::Windows(windows)),
//!     calibration_windows: short,
//!     evaluation: Some((Text::BuiltInEvaluation, short)),
//!     ..QuantizeJob::new("demo/model", folder.path().join("out"), "gptq")?
//! };
//! let steps = Steps::default();
//! let reports = quantc::quantize(&job, &steps)?;
//! println!("{}", quantc::render::text::report(&reports[0]));
//! assert!(reports[0].verification.problems.is_empty());
//! assert_eq!(reports[0].calibration.as_ref().map(|text| text.windows), Some(8));
//! assert!(steps.0.load(Ordering::Relaxed) > 5);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! What is written is opened, verified, measured and compared by [`verify::verify`], [`evaluate()`] and [`compare()`].

#![warn(clippy::unwrap_used)]

mod adapted;
mod budget;
mod card;
mod carry;
pub mod choices;
pub mod cli;
pub mod compare;
pub mod completions;
pub mod convert;
mod corpora;
pub mod described;
pub mod error;
mod evaluate;
mod exchange;
mod expert_tokens;
pub mod experts;
pub mod export;
pub mod generate;
mod gradients;
mod grids;
pub mod hub;
mod importance;
pub mod inspect;
pub mod job;
mod journal;
pub mod listing;
pub mod manuals;
mod memory;
mod outer;
mod outputs;
#[cfg(feature = "mpi")]
pub mod over_mpi;
mod own_text;
mod pipeline;
mod plan;
pub mod planning;
pub mod precision;
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
pub mod showing;
mod solving;
mod space;
mod statistics;
mod stored;
mod streams;
mod texts;
mod transformed;
pub mod verify;
mod work;

pub use compare::compare;
pub use convert::convert;
pub use evaluate::evaluate;
pub use quantize::{quantize, quantize_among};
