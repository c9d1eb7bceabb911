//! Progress: what the library tells while it works, and how standard error shows it: bars on a terminal, now and then a line in a log, or
//! every event as JSON. Nothing of it has an effect on what is written.

use std::io::IsTerminal;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use clap::ValueEnum;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::{Value, json};

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
    /// How much it is, in the unit of the others.
    pub work: f64,
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

/// How much is said.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Verbosity {
    /// Errors alone.
    Quiet,
    /// How far the work is, and warnings.
    #[default]
    Normal,
    /// Every step as a line.
    Verbose,
}

/// What standard error is written for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// People
    #[default]
    Text,
    /// Programs: a JSON object on each line
    Json,
}

/// Standard error.
#[derive(Debug, Default)]
pub struct Terminal {
    verbosity: Verbosity,
    format: LogFormat,
    phase: Mutex<Option<Phase>>,
    run: Mutex<Run>,
}

/// The phases of a run, and how fast those that are over went.
#[derive(Debug, Default)]
struct Run {
    phases: Vec<Work>,
    /// How many of them are over, or never came.
    over: usize,
    /// Whether the next one is on.
    on: bool,
    /// Work that is done, and what it took.
    done: f64,
    seconds: f64,
}

/// The share of a run that must be done before something is said of the rest.
const TELLING: f64 = 0.02;

impl Run {
    fn begin(&mut self, phase: &str) {
        let next = self.phases[self.over..].iter().position(|work| work.phase == phase);
        self.on = next.is_some();
        self.over += next.unwrap_or(0);
    }

    fn end(&mut self, seconds: f64) {
        if std::mem::take(&mut self.on) {
            self.done += self.phases[self.over].work;
            self.seconds += seconds;
            self.over += 1;
        }
    }

    /// Seconds that the rest of the run takes at the speed so far; `share` of the phase that is on took `seconds`.
    fn left(&self, share: f64, seconds: f64) -> Option<f64> {
        let later: f64 = self.phases.get(self.over..)?.iter().map(|work| work.work).sum();
        let now = if self.on { share.min(1.0) * self.phases[self.over].work } else { return None };
        let (done, left) = (self.done + now, later - now);
        // The last moments are not worth a word.
        (done > TELLING * (done + left))
            .then(|| (self.seconds + seconds) * left / done)
            .filter(|&left| left >= 0.5)
    }
}

/// What is worked on.
#[derive(Debug)]
struct Phase {
    name: String,
    steps: usize,
    done: usize,
    started: Instant,
    /// When a line was written last.
    told: Instant,
    place: String,
    bar: Option<ProgressBar>,
}

/// Seconds between lines of a log, and before the first one of a phase.
const SILENCE: Duration = Duration::from_secs(15);

/// Set by the first signal that asks the process to end.
static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// Whether the process waits for a line of a person, and so has no work to end.
static WAITING: AtomicBool = AtomicBool::new(false);

/// Says that a line of a person is waited for, until the result is dropped: a signal ends the process at once.
#[must_use]
pub(crate) fn wait_for_a_line() -> WaitingForALine {
    WAITING.store(true, Ordering::SeqCst);
    WaitingForALine
}

/// See [`wait_for_a_line`].
#[derive(Debug)]
pub(crate) struct WaitingForALine;

impl Drop for WaitingForALine {
    fn drop(&mut self) {
        WAITING.store(false, Ordering::SeqCst);
    }
}

impl Terminal {
    /// One that says so much, in this form.
    #[must_use]
    pub fn new(verbosity: Verbosity, format: LogFormat) -> Self {
        Self { verbosity, format, phase: Mutex::new(None), run: Mutex::default() }
    }

    /// Ends the work when the process is told to: Ctrl-C, SIGTERM or SIGHUP lets the current piece of work end, so that nothing
    /// half-written stays; a second one ends the process at once.
    ///
    /// # Errors
    /// The system's, or another handler that stands already.
    pub fn listen(&self) -> Result<(), Error> {
        ctrlc::set_handler(|| {
            if WAITING.load(Ordering::SeqCst) {
                eprintln!();
                std::process::exit(i32::from(Error::Interrupted.exit_code()));
            }
            if INTERRUPTED.swap(true, Ordering::SeqCst) {
                std::process::exit(i32::from(Error::Interrupted.exit_code()));
            }
            eprintln!("ending after the current piece of work; once more to end at once");
        })
        .map_err(|e| Error::Internal(format!("signals: {e}")))
    }

    /// Says why the work came to nothing.
    pub fn fail(&self, error: &Error) {
        let hint = error.hint();
        match self.format {
            LogFormat::Json => say(&json!({"event": "error", "message": error.to_string(), "hint": hint})),
            LogFormat::Text => {
                eprintln!("error: {}", printable(&error.to_string()));
                if let Some(hint) = hint {
                    eprintln!("hint: {}", printable(&hint));
                }
            }
        }
    }

    fn current(&self) -> MutexGuard<'_, Option<Phase>> {
        self.phase.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn run(&self) -> MutexGuard<'_, Run> {
        self.run.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Seconds that the rest of the run takes, where that is known.
    fn run_left(&self, phase: &Phase) -> Option<f64> {
        self.run().left(phase.share(), phase.started.elapsed().as_secs_f64())
    }

    fn draws(&self) -> bool {
        self.format == LogFormat::Text
            && self.verbosity == Verbosity::Normal
            && std::io::stderr().is_terminal()
    }
}

fn say(event: &Value) {
    eprintln!("{event}");
}

impl Phase {
    fn share(&self) -> f64 {
        self.done.min(self.steps) as f64 / self.steps.max(1) as f64
    }

    /// Seconds that the rest takes if it goes on as it went.
    fn left(&self) -> Option<f64> {
        let done = self.done.min(self.steps);
        (done > 0).then(|| self.started.elapsed().as_secs_f64() * (self.steps - done) as f64 / done as f64)
    }

    /// Where it is, on one line.
    fn line(&self, detail: &str, run_left: Option<f64>) -> String {
        let said = |text: &str| if text.is_empty() { String::new() } else { format!(", {text}") };
        let left = self.left().filter(|_| self.done < self.steps);
        let mut left = left.map_or(String::new(), |left| format!(", about {} left", seconds(left)));
        if let Some(run) = run_left {
            left.push_str(&format!(
                "{} {} of the run",
                if left.is_empty() { ", about" } else { " and" },
                seconds(run)
            ));
        }
        let place = said(&self.place);
        let detail = said(detail);
        let taken = seconds(self.started.elapsed().as_secs_f64());
        format!("{}: {} of {}{place}{detail}, {taken}{left}", self.name, self.done, self.steps)
    }
}

/// Seconds as people say them.
fn seconds(count: f64) -> String {
    match count {
        c if c < 90.0 => format!("{c:.0} s"),
        c if c < 5400.0 => format!("{:.0} min", c / 60.0),
        c => format!("{:.1} h", c / 3600.0),
    }
}

impl Progress for Terminal {
    fn phase(&self, name: &str, steps: usize) {
        let bar = self.draws().then(|| {
            let bar = ProgressBar::with_draw_target(Some(steps as u64), ProgressDrawTarget::stderr());
            let style = ProgressStyle::with_template(
                "{prefix:<22} {bar:24} {pos:>4}/{len} {elapsed:>4} (left {eta}) {msg}",
            );
            bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
            bar.set_prefix(name.to_owned());
            bar.enable_steady_tick(Duration::from_millis(200));
            bar
        });
        if self.format == LogFormat::Json && self.verbosity != Verbosity::Quiet {
            say(&json!({"event": "phase", "name": name, "steps": steps}));
        }
        self.run().begin(name);
        let now = Instant::now();
        let place = String::new();
        let phase = Phase { name: name.to_owned(), steps, done: 0, started: now, told: now, place, bar };
        if let Some(Phase { bar: Some(old), .. }) = self.current().replace(phase) {
            old.finish_and_clear();
        }
    }

    fn expect(&self, phases: &[Work]) {
        *self.run() = Run { phases: phases.to_vec(), ..Run::default() };
    }

    fn at(&self, place: &str) {
        if let Some(phase) = self.current().as_mut() {
            place.clone_into(&mut phase.place);
            if let Some(bar) = &phase.bar {
                bar.set_message(place.to_owned());
            }
        }
    }

    fn step(&self, detail: &str) {
        let mut current = self.current();
        let Some(phase) = current.as_mut() else { return };
        phase.done += 1;
        let run_left = self.run_left(phase);
        if let Some(bar) = &phase.bar {
            bar.inc(1);
            let run_left = run_left.map(|left| format!("run: {} left", seconds(left)));
            let said: Vec<&str> = [detail, run_left.as_deref().unwrap_or("")]
                .into_iter()
                .filter(|text| !text.is_empty())
                .collect();
            if !said.is_empty() {
                bar.set_message(said.join(", "));
            }
            return;
        }
        match (self.verbosity, self.format) {
            (Verbosity::Quiet, _) => {}
            (_, LogFormat::Json) => say(&json!({
                "event": "step",
                "phase": phase.name,
                "done": phase.done,
                "steps": phase.steps,
                "place": phase.place,
                "detail": detail,
                "seconds": phase.started.elapsed().as_secs_f64(),
                "seconds_left": phase.left(),
                "run_seconds_left": run_left,
            })),
            (verbosity, LogFormat::Text) => {
                if verbosity == Verbosity::Verbose || phase.told.elapsed() >= SILENCE {
                    phase.told = Instant::now();
                    eprintln!("{}", phase.line(detail, run_left));
                }
            }
        }
    }

    fn finish(&self) {
        let Some(phase) = self.current().take() else { return };
        let took = phase.started.elapsed();
        self.run().end(took.as_secs_f64());
        match (&phase.bar, self.verbosity, self.format) {
            (Some(bar), ..) => bar.finish_and_clear(),
            (_, Verbosity::Quiet, _) => {}
            (_, _, LogFormat::Json) => {
                say(&json!({"event": "finished", "phase": phase.name, "seconds": took.as_secs_f64()}));
            }
            (_, verbosity, LogFormat::Text) => {
                if verbosity == Verbosity::Verbose || took >= SILENCE {
                    eprintln!("{}: done in {}", phase.name, seconds(took.as_secs_f64()));
                }
            }
        }
    }

    fn warn(&self, message: &str) {
        let current = self.current();
        let bar = current.as_ref().and_then(|phase| phase.bar.as_ref());
        match (bar, self.verbosity, self.format) {
            (_, Verbosity::Quiet, _) => {}
            (Some(bar), ..) => bar.suspend(|| eprintln!("warning: {}", printable(message))),
            (_, _, LogFormat::Json) => say(&json!({"event": "warning", "message": message})),
            (_, _, LogFormat::Text) => eprintln!("warning: {}", printable(message)),
        }
    }

    fn note(&self, message: &str) {
        let current = self.current();
        let bar = current.as_ref().and_then(|phase| phase.bar.as_ref());
        match (bar, self.verbosity, self.format) {
            (_, Verbosity::Quiet, _) => {}
            (Some(bar), ..) => bar.suspend(|| eprintln!("{message}")),
            (_, _, LogFormat::Json) => say(&json!({"event": "note", "message": message})),
            (_, _, LogFormat::Text) => eprintln!("{message}"),
        }
    }

    fn interrupted(&self) -> bool {
        INTERRUPTED.load(Ordering::SeqCst)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_left_is_that_of_the_steps_so_far() {
        let started =
            Instant::now().checked_sub(Duration::from_secs(20)).expect("the machine is up that long");
        let place = "layer 2".to_owned();
        let mut phase =
            Phase { name: "work".into(), steps: 12, done: 0, started, told: started, place, bar: None };
        assert!(phase.left().is_none());
        phase.done = 4;
        let left = phase.left().expect("steps are done");
        assert!((39.9..41.0).contains(&left), "{left}");
        assert_eq!(phase.line("loss 1", None), "work: 4 of 12, layer 2, loss 1, 20 s, about 40 s left");
        let told = "work: 4 of 12, layer 2, 20 s, about 40 s left and 2 min of the run";
        assert_eq!(phase.line("", Some(100.0)), told);
        phase.done = 13;
        assert_eq!(phase.left(), Some(0.0));
        assert_eq!(phase.line("", Some(7.0)), "work: 13 of 12, layer 2, 20 s, about 7 s of the run");
    }

    #[test]
    fn the_rest_of_a_run_is_that_of_its_work_at_the_speed_so_far() {
        let work = |phase: &str, work| Work { phase: phase.to_owned(), work };
        let phases = vec![work("a", 10.0), work("never", 5.0), work("b", 30.0), work("c", 60.0)];
        let mut run = Run { phases, ..Run::default() };
        run.begin("a");
        assert_eq!(run.left(0.0, 3.0), None);
        assert_eq!(run.left(0.5, 2.0), Some(2.0 * 100.0 / 5.0));
        run.end(4.0);
        run.begin("something else");
        assert_eq!(run.left(0.5, 1.0), None);
        run.end(9.0);
        // What did not come is neither done nor left.
        run.begin("b");
        assert_eq!(run.left(1.0, 16.0), Some(20.0 * 60.0 / 40.0));
        run.end(16.0);
        run.begin("c");
        assert_eq!(run.left(1.0, 20.0), None);
    }
}
