//! Standard error, for people or for programs.

use std::io::IsTerminal;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use clap::ValueEnum;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::{Value, json};

use super::phase::{COLUMNS, Phase, seconds};
use super::run::Run;
use super::{Progress, Work, printable};
use crate::error::Error;

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
    state: Arc<Mutex<State>>,
    /// Set once something looks at the clock.
    watched: OnceLock<()>,
}

/// What is known of the work.
#[derive(Debug, Default)]
struct State {
    phase: Option<Phase>,
    run: Run,
    /// When a line was written last, or the first phase began.
    told: Option<Instant>,
}

/// Seconds between lines of a log, and before its first.
const SILENCE: Duration = Duration::from_secs(15);

/// How often the clock is looked at: work says nothing within a stage, which may take minutes.
const BEAT: Duration = Duration::from_secs(1);

/// Columns of the bar and of the time before it.
const BAR: usize = 18;
const BESIDE: &str = "{elapsed:>4} {bar:12} {prefix}";
const BESIDE_AND_BELOW: &str = "{elapsed:>4} {bar:12} {prefix}\n{wide_msg}";

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
        Self { verbosity, format, ..Self::default() }
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
        // What was on is over.
        let phase = self.state().phase.take();
        if let Some(Phase { bar: Some(bar), .. }) = phase {
            bar.finish_and_clear();
        }
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

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn draws(&self) -> bool {
        self.format == LogFormat::Text
            && self.verbosity == Verbosity::Normal
            && std::io::stderr().is_terminal()
    }

    /// From now on something is said however long a step takes.
    fn watch(&self) {
        if self.verbosity == Verbosity::Quiet {
            return;
        }
        self.watched.get_or_init(|| {
            let (state, format) = (Arc::downgrade(&self.state), self.format);
            std::thread::spawn(move || {
                loop {
                    std::thread::sleep(BEAT);
                    let Some(state) = state.upgrade() else { return };
                    state.lock().unwrap_or_else(PoisonError::into_inner).beat(format);
                }
            });
        });
    }
}

fn say(event: &Value) {
    eprintln!("{event}");
}

impl State {
    /// Says where the work is, if a log was silent for long; a bar is drawn with the time that is left now.
    fn beat(&mut self, format: LogFormat) {
        if self.phase.as_ref().is_some_and(|phase| phase.bar.is_some()) {
            self.draw();
        } else if self.is_silent() {
            match format {
                LogFormat::Text => self.tell(),
                LogFormat::Json => self.emit("working"),
            }
        }
    }

    fn is_silent(&self) -> bool {
        self.told.is_some_and(|told| told.elapsed() >= SILENCE)
    }

    fn draw(&self) {
        let Some(phase) = &self.phase else { return };
        let Some(bar) = &phase.bar else { return };
        let now = phase.now();
        let run_left = self.run.left(phase.standing(now));
        let (beside, below) = phase.beside_bar(now, run_left, COLUMNS - 1 - BAR);
        bar.set_prefix(beside);
        if !below.is_empty() {
            if bar.message().is_empty() {
                bar.set_style(style(BESIDE_AND_BELOW));
            }
            bar.set_message(below);
        }
    }

    /// A line of a log for people.
    fn tell(&mut self) {
        let Some(phase) = &self.phase else { return };
        let now = phase.now();
        eprintln!("{}", phase.line(now, self.run.left(phase.standing(now))));
        self.told = Some(Instant::now());
    }

    /// A line of a log for programs.
    fn emit(&mut self, event: &str) {
        let Some(phase) = &self.phase else { return };
        let now = phase.now();
        say(&json!({
            "event": event,
            "phase": phase.name,
            "done": phase.done,
            "steps": phase.steps,
            "place": phase.place,
            "detail": phase.detail,
            "seconds": now,
            "seconds_left": phase.left(now),
            "run_seconds_left": self.run.left(phase.standing(now)),
        }));
        self.told = Some(Instant::now());
    }
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar())
}

impl Progress for Terminal {
    fn phase(&self, name: &str, steps: usize) {
        self.watch();
        let bar = self.draws().then(|| {
            let bar = ProgressBar::with_draw_target(Some(steps as u64), ProgressDrawTarget::stderr());
            bar.set_style(style(BESIDE));
            bar.enable_steady_tick(Duration::from_millis(200));
            bar
        });
        let mut state = self.state();
        if self.format == LogFormat::Json && self.verbosity != Verbosity::Quiet {
            say(&json!({"event": "phase", "name": name, "steps": steps}));
        }
        state.run.begin(name);
        // A log stays as silent as it was: many short phases take long as well.
        state.told.get_or_insert_with(Instant::now);
        if let Some(Phase { bar: Some(old), .. }) = state.phase.replace(Phase::new(name, steps, bar)) {
            old.finish_and_clear();
        }
        state.draw();
    }

    fn expect(&self, phases: &[Work]) {
        self.state().run = Run::new(phases);
    }

    fn at(&self, place: &str) {
        let mut state = self.state();
        if let Some(phase) = &mut state.phase {
            place.clone_into(&mut phase.place);
        }
        state.draw();
    }

    fn so_far(&self, detail: &str) {
        let mut state = self.state();
        if let Some(phase) = &mut state.phase {
            detail.clone_into(&mut phase.detail);
        }
        state.draw();
    }

    fn step(&self, detail: &str) {
        let mut state = self.state();
        let Some(phase) = &mut state.phase else { return };
        let now = phase.now();
        phase.step(detail, now);
        if let Some(bar) = &phase.bar {
            bar.inc(1);
            state.draw();
            return;
        }
        match (self.verbosity, self.format) {
            (Verbosity::Quiet, _) => {}
            (_, LogFormat::Json) => state.emit("step"),
            (verbosity, LogFormat::Text) => {
                if verbosity == Verbosity::Verbose || state.is_silent() {
                    state.tell();
                }
            }
        }
    }

    fn finish(&self) {
        let mut state = self.state();
        let Some(phase) = state.phase.take() else { return };
        let took = phase.now();
        state.run.end(phase.standing(took).share, took);
        match (&phase.bar, self.verbosity, self.format) {
            (Some(bar), ..) => bar.finish_and_clear(),
            (_, Verbosity::Quiet, _) => {}
            (_, _, LogFormat::Json) => {
                say(&json!({"event": "finished", "phase": phase.name, "seconds": took}));
            }
            (_, verbosity, LogFormat::Text) => {
                if verbosity == Verbosity::Verbose || took >= SILENCE.as_secs_f64() {
                    eprintln!("{}: done in {}", printable(&phase.name), seconds(took));
                    state.told = Some(Instant::now());
                }
            }
        }
    }

    fn warn(&self, message: &str) {
        let state = self.state();
        let bar = state.phase.as_ref().and_then(|phase| phase.bar.as_ref());
        match (bar, self.verbosity, self.format) {
            (_, Verbosity::Quiet, _) => {}
            (Some(bar), ..) => bar.suspend(|| eprintln!("warning: {}", printable(message))),
            (_, _, LogFormat::Json) => say(&json!({"event": "warning", "message": message})),
            (_, _, LogFormat::Text) => eprintln!("warning: {}", printable(message)),
        }
    }

    fn note(&self, message: &str) {
        let state = self.state();
        let bar = state.phase.as_ref().and_then(|phase| phase.bar.as_ref());
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
