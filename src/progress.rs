//! Progress: what the library tells while it works, and how standard error shows it: bars on a terminal, now and then a line in a log, or
//! every event as JSON. Nothing of it has an effect on what is written.

mod phase;
mod run;
mod terminal;

pub(crate) use terminal::wait_for_a_line;
pub use terminal::{LogFormat, Terminal, Verbosity};

use crate::error::Error;

/// Told how far the work is. Every method may be ignored.
pub trait Progress: Sync {
    /// A phase of `steps` steps begins.
    fn phase(&self, name: &str, steps: usize);
    /// One step is done; `detail` says what comes to mind while looking at it.
    fn step(&self, detail: &str);
    /// The phase is over.
    fn finish(&self);
    /// What phases are to come, in their order; one that does not may be left out, others may come between.
    fn expect(&self, _phases: &[Work]) {}
    /// What is worked on now, within a step.
    fn at(&self, _place: &str) {}
    /// What comes to mind within a step: stands until the step's own detail.
    fn so_far(&self, _detail: &str) {}
    /// Something that the user should know even if all goes well.
    fn warn(&self, message: &str);
    /// Something that the user may want to know.
    fn note(&self, _message: &str) {}
    /// Whether the work is to end early: asked between its pieces, which then fail with [`Error::Interrupted`].
    fn interrupted(&self) -> bool {
        false
    }
}

/// A phase to come.
#[derive(Clone, Debug, PartialEq)]
pub struct Work {
    /// Its name.
    pub phase: String,
    /// How much it is, in the unit of the others of its pace.
    pub work: f64,
    /// Whose speed says something of its own.
    pub pace: Pace,
}

/// What a phase's speed depends on. A second per unit in one pace says nothing of another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Pace {
    /// Passes of tokens through the model, forwards or back.
    Passes,
    /// Second moments, factorizations and solves.
    Solving,
    /// What was written is read again.
    Reading,
}

/// Fails when the work is to end early.
pub(crate) fn go_on(progress: &dyn Progress) -> Result<(), Error> {
    if progress.interrupted() { Err(Error::Interrupted) } else { Ok(()) }
}

/// Text with what a terminal would obey spelled out: names of tensors and values of configurations are strangers' words.
#[must_use]
pub fn printable(text: &str) -> std::borrow::Cow<'_, str> {
    let obeyed = |character: char| character.is_control() && !matches!(character, '\n' | '\t');
    if !text.contains(obeyed) {
        return text.into();
    }
    let spelled = |character: char| {
        if obeyed(character) { character.escape_default().to_string() } else { character.to_string() }
    };
    text.chars().map(spelled).collect::<String>().into()
}

/// Says nothing.
#[derive(Debug, Default)]
pub struct Silent;

impl Progress for Silent {
    fn phase(&self, _name: &str, _steps: usize) {}
    fn step(&self, _detail: &str) {}
    fn finish(&self) {}
    fn warn(&self, _message: &str) {}
}
