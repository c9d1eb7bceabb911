//! A phase that is on: how far it is, what is left of it, and how that is said.

use std::time::Instant;

use indicatif::ProgressBar;

use super::printable;
use super::run::Standing;

/// What is worked on. Moments are seconds after its start.
#[derive(Debug)]
pub(super) struct Phase {
    pub(super) name: String,
    pub(super) steps: usize,
    pub(super) done: usize,
    started: Instant,
    /// When the last step ended.
    stepped: f64,
    pub(super) place: String,
    pub(super) detail: String,
    pub(super) bar: Option<ProgressBar>,
}

/// Columns of a terminal, at least.
pub(super) const COLUMNS: usize = 80;

impl Phase {
    pub(super) fn new(name: &str, steps: usize, bar: Option<ProgressBar>) -> Self {
        Self {
            name: name.to_owned(),
            steps,
            done: 0,
            started: Instant::now(),
            stepped: 0.0,
            place: String::new(),
            detail: String::new(),
            bar,
        }
    }

    pub(super) fn now(&self) -> f64 {
        self.started.elapsed().as_secs_f64()
    }

    pub(super) fn step(&mut self, detail: &str, now: f64) {
        self.done += 1;
        self.stepped = now;
        detail.clone_into(&mut self.detail);
    }

    pub(super) fn standing(&self, now: f64) -> Standing {
        let share = self.done.min(self.steps) as f64 / self.steps.max(1) as f64;
        Standing { share, seconds: self.stepped, left: self.left(now) }
    }

    /// Seconds that the rest takes if it goes on as it went; none before the first step is done.
    pub(super) fn left(&self, now: f64) -> Option<f64> {
        let done = self.done.min(self.steps);
        let step = (done > 0).then(|| self.stepped / done as f64)?;
        let left = (self.steps - done) as f64;
        // A step that takes longer than the others is soon over, as far as is known.
        Some((left * step - (now - self.stepped)).max((left - 1.0).max(0.0) * step))
    }

    /// What is to come, after a comma; nothing where it is not known.
    fn ahead(&self, now: f64, run_left: Option<f64>) -> String {
        let left = self.left(now).filter(|_| self.done < self.steps);
        // The run's last phase is not said twice.
        let run = run_left.filter(|run| left.is_none_or(|left| run - left >= 0.5));
        match (left.map(seconds), run.map(seconds)) {
            (Some(left), Some(run)) => format!(", about {left} left and {run} of the run"),
            (Some(left), None) => format!(", about {left} left"),
            (None, Some(run)) => format!(", about {run} of the run left"),
            (None, None) => String::new(),
        }
    }

    /// Where it is and how that looks.
    fn work(&self) -> String {
        let parts = [self.place.as_str(), self.detail.as_str()];
        parts.into_iter().filter(|text| !text.is_empty()).collect::<Vec<_>>().join(", ")
    }

    /// All of it on one line.
    pub(super) fn line(&self, now: f64, run_left: Option<f64>) -> String {
        let work = self.work();
        let work = if work.is_empty() { work } else { format!(", {work}") };
        let (taken, ahead) = (seconds(now), self.ahead(now, run_left));
        let line = format!("{}: {} of {}{work}, {taken}{ahead}", self.name, self.done, self.steps);
        printable(&line).into_owned()
    }

    /// The line beside the bar, which has so many columns, and the one below it.
    pub(super) fn beside_bar(&self, now: f64, run_left: Option<f64>, columns: usize) -> (String, String) {
        let far = format!("{} of {}{}", self.done, self.steps, self.ahead(now, run_left));
        let name = cut(&printable(&self.name), columns.saturating_sub(far.chars().count() + 1));
        (cut(&format!("{name} {far}"), columns), cut(&printable(&self.work()), COLUMNS - 1))
    }
}

/// So many characters of a text, at most.
fn cut(text: &str, most: usize) -> String {
    if text.chars().count() <= most {
        return text.to_owned();
    }
    let kept: String = text.chars().take(most.saturating_sub(1)).collect();
    if most == 0 { kept } else { kept + "…" }
}

/// Seconds as people say them.
pub(super) fn seconds(count: f64) -> String {
    match count {
        c if c < 90.0 => format!("{c:.0} s"),
        c if c < 5400.0 => format!("{:.0} min", c / 60.0),
        c => format!("{:.1} h", c / 3600.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(done: usize, steps: usize, stepped: f64) -> Phase {
        let mut phase = Phase::new("work", steps, None);
        "layer 2".clone_into(&mut phase.place);
        (phase.done, phase.stepped) = (done, stepped);
        phase
    }

    #[test]
    fn the_time_left_is_that_of_the_steps_so_far() {
        let mut phase = after(0, 12, 0.0);
        // An hour within the first step is no estimate.
        assert_eq!(phase.left(3600.0), None);
        assert_eq!(phase.line(3600.0, None), "work: 0 of 12, layer 2, 60 min");
        (phase.done, phase.stepped) = (3, 10.0);
        phase.step("loss 1", 20.0);
        assert_eq!(phase.left(20.0), Some(40.0));
        assert_eq!(phase.left(22.0), Some(38.0));
        // Seven more steps are to come after one that drags.
        assert_eq!(phase.left(100.0), Some(35.0));
        assert_eq!(phase.line(20.0, None), "work: 4 of 12, layer 2, loss 1, 20 s, about 40 s left");
        let told = "work: 4 of 12, layer 2, loss 1, 20 s, about 40 s left and 2 min of the run";
        assert_eq!(phase.line(20.0, Some(100.0)), told);
        assert_eq!(phase.line(20.0, Some(40.0)), phase.line(20.0, None));
        phase.step("", 20.0);
        phase.done = 13;
        assert_eq!(phase.left(20.0), Some(0.0));
        assert_eq!(phase.line(20.0, Some(7.0)), "work: 13 of 12, layer 2, 20 s, about 7 s of the run left");
    }

    #[test]
    fn beside_a_bar_everything_fits_and_a_name_from_outside_is_cut_first() {
        let mut phase = after(12, 80, 4000.0);
        "quantizing".clone_into(&mut phase.name);
        "layer 12, q_proj k_proj v_proj, 262144 tokens".clone_into(&mut phase.place);
        "relative loss 1.2e-3".clone_into(&mut phase.detail);
        let (beside, below) = phase.beside_bar(4000.0, Some(40000.0), 62);
        assert_eq!(beside, "quantizing 12 of 80, about 6.3 h left and 11.1 h of the run");
        assert_eq!(below, "layer 12, q_proj k_proj v_proj, 262144 tokens, relative loss 1.2e-3");
        "getting a-name-as-long-as-those-who-upload-like.safetensors".clone_into(&mut phase.name);
        "long ".repeat(40).clone_into(&mut phase.place);
        let (beside, below) = phase.beside_bar(4000.0, Some(40000.0), 62);
        assert!(beside.ends_with("… 12 of 80, about 6.3 h left and 11.1 h of the run"), "{beside}");
        assert_eq!((beside.chars().count(), below.chars().count()), (62, 79));
        phase.done = 0;
        let (beside, _) = phase.beside_bar(4000.0, None, 62);
        assert!(beside.ends_with("… 0 of 80"), "{beside}");
    }
}
