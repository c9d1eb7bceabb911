//! Progress: what the library tells while it works, and the bars that a terminal shows.

use std::io::IsTerminal;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::error::Error;

/// Told how far the work is. Every method may be ignored.
pub trait Progress: Sync {
    /// A phase of `steps` steps begins.
    fn phase(&self, name: &str, steps: usize);
    /// One step is done; `detail` says what comes to mind while looking at it.
    fn step(&self, detail: &str);
    /// The phase is over.
    fn finish(&self);
    /// Something that the user should know even if all goes well.
    fn warn(&self, message: &str);
    /// Whether the work is to end early: asked between its pieces, which then fail with [`Error::Interrupted`].
    fn interrupted(&self) -> bool {
        false
    }
}

/// Fails when the work is to end early.
pub(crate) fn go_on(progress: &dyn Progress) -> Result<(), Error> {
    if progress.interrupted() { Err(Error::Interrupted) } else { Ok(()) }
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

/// Bars on standard error when it is a terminal, otherwise only warnings.
#[derive(Debug, Default)]
pub struct Terminal {
    bar: Mutex<Option<ProgressBar>>,
}

/// Set by the first signal that asks the process to end.
static INTERRUPTED: AtomicBool = AtomicBool::new(false);

impl Terminal {
    /// One that ends the work when the process is told to: Ctrl-C, SIGTERM or SIGHUP lets the current piece of work end, so that nothing
    /// half-written stays; a second one ends the process at once.
    ///
    /// # Errors
    /// The system's, or another handler that stands already.
    pub fn listening() -> Result<Self, Error> {
        ctrlc::set_handler(|| {
            if INTERRUPTED.swap(true, Ordering::SeqCst) {
                std::process::exit(i32::from(Error::Interrupted.exit_code()));
            }
            eprintln!("ending after the current piece of work; once more to end at once");
        })
        .map_err(|e| Error::Internal(format!("signals: {e}")))?;
        Ok(Self::default())
    }

    fn with_bar(&self, act: impl FnOnce(&mut Option<ProgressBar>)) {
        act(&mut self.bar.lock().unwrap_or_else(std::sync::PoisonError::into_inner));
    }
}

impl Progress for Terminal {
    fn phase(&self, name: &str, steps: usize) {
        if !std::io::stderr().is_terminal() {
            return;
        }
        let bar = ProgressBar::with_draw_target(Some(steps as u64), ProgressDrawTarget::stderr());
        let style = ProgressStyle::with_template(
            "{prefix:<22} {bar:24} {pos:>4}/{len} {elapsed:>4} (left {eta}) {msg}",
        );
        bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
        bar.set_prefix(name.to_owned());
        bar.enable_steady_tick(Duration::from_millis(200));
        self.with_bar(|slot| {
            if let Some(old) = slot.replace(bar) {
                old.finish_and_clear();
            }
        });
    }

    fn step(&self, detail: &str) {
        self.with_bar(|slot| {
            if let Some(bar) = slot {
                bar.inc(1);
                bar.set_message(detail.to_owned());
            }
        });
    }

    fn finish(&self) {
        self.with_bar(|slot| {
            if let Some(bar) = slot.take() {
                bar.finish_and_clear();
            }
        });
    }

    fn warn(&self, message: &str) {
        self.with_bar(|slot| match slot {
            Some(bar) => bar.suspend(|| eprintln!("warning: {message}")),
            None => eprintln!("warning: {message}"),
        });
    }

    fn interrupted(&self) -> bool {
        INTERRUPTED.load(Ordering::SeqCst)
    }
}
