//! What is left of a whole run, from the speed of the phases that were on.

use std::collections::BTreeMap;

use super::{Pace, Work};

/// The phases of a run, and how fast those that are over went.
#[derive(Debug, Default)]
pub(super) struct Run {
    phases: Vec<Work>,
    /// How many of them are over, or never came.
    over: usize,
    /// Whether the next one is on.
    on: bool,
    measured: BTreeMap<Pace, Speed>,
}

/// Work that is done, and what it took.
#[derive(Clone, Copy, Debug, Default)]
struct Speed {
    work: f64,
    seconds: f64,
}

/// How the phase that is on stands.
#[derive(Clone, Copy, Debug)]
pub(super) struct Standing {
    /// The share of it that is done.
    pub(super) share: f64,
    /// Seconds that this share took.
    pub(super) seconds: f64,
    /// Seconds that its rest takes, where that is known.
    pub(super) left: Option<f64>,
}

/// Of what is left, the share whose speed may be unknown: it is then taken for as quick as the quickest.
const SLIGHT: f64 = 0.1;

impl Speed {
    /// Seconds for a unit.
    fn rate(self) -> f64 {
        self.seconds / self.work
    }
}

impl Run {
    pub(super) fn new(phases: &[Work]) -> Self {
        let phases = phases.iter().filter(|work| work.work > 0.0).cloned().collect();
        Self { phases, ..Self::default() }
    }

    pub(super) fn begin(&mut self, phase: &str) {
        let next = self.phases[self.over..].iter().position(|work| work.phase == phase);
        self.on = next.is_some();
        self.over += next.unwrap_or(0);
    }

    /// The phase that is on ends, of which `share` was done in so many seconds.
    pub(super) fn end(&mut self, share: f64, seconds: f64) {
        if std::mem::take(&mut self.on) {
            add(&mut self.measured, &self.phases[self.over], share, seconds);
            self.over += 1;
        }
    }

    /// Seconds that the rest of the run takes; none where that would be a guess: while much of it is of a pace that nothing ran at so far.
    pub(super) fn left(&self, standing: Standing) -> Option<f64> {
        let on = self.phases.get(self.over).filter(|_| self.on)?;
        let mut measured = self.measured.clone();
        add(&mut measured, on, standing.share, standing.seconds);
        let quickest = measured.values().map(|speed| speed.rate()).min_by(f64::total_cmp)?;
        let (mut known, mut guessed) = (standing.left.unwrap_or(0.0), 0.0);
        let waiting = self.over + usize::from(standing.left.is_some());
        for phase in &self.phases[waiting..] {
            match measured.get(&phase.pace) {
                Some(speed) => known += phase.work * speed.rate(),
                None => guessed += phase.work * quickest,
            }
        }
        // The last moments are not worth a word.
        Some(known + guessed).filter(|&left| guessed <= SLIGHT * left && left >= 0.5)
    }
}

fn add(measured: &mut BTreeMap<Pace, Speed>, phase: &Work, share: f64, seconds: f64) {
    if share > 0.0 {
        let speed = measured.entry(phase.pace).or_default();
        speed.work += share.min(1.0) * phase.work;
        speed.seconds += seconds;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(phases: &[(&str, f64, Pace)]) -> Run {
        let work = |&(phase, work, pace): &(&str, f64, Pace)| Work { phase: phase.to_owned(), work, pace };
        Run::new(&phases.iter().map(work).collect::<Vec<_>>())
    }

    fn standing(share: f64, seconds: f64, left: Option<f64>) -> Standing {
        Standing { share, seconds, left }
    }

    #[test]
    fn a_phase_to_come_goes_as_fast_as_those_of_its_pace() {
        let mut run = run(&[
            ("passing", 10.0, Pace::Passes),
            ("never", 5.0, Pace::Passes),
            ("solving", 1000.0, Pace::Solving),
            ("measuring", 30.0, Pace::Passes),
        ]);
        run.begin("passing");
        assert_eq!(run.left(standing(0.0, 0.0, None)), None);
        // Nothing is known of solving.
        assert_eq!(run.left(standing(0.5, 2.0, Some(2.0))), None);
        run.end(1.0, 4.0);
        run.begin("something else");
        assert_eq!(run.left(standing(0.5, 1.0, Some(1.0))), None);
        run.end(1.0, 9.0);
        // What did not come is neither done nor left, and what no one expected is not of the run.
        run.begin("solving");
        assert_eq!(run.left(standing(0.0, 0.0, None)), None);
        assert_eq!(run.left(standing(0.25, 50.0, Some(140.0))), Some(140.0 + 12.0));
        run.end(1.0, 200.0);
        // However long solving took.
        run.begin("measuring");
        assert_eq!(run.left(standing(0.0, 0.0, None)), Some(12.0));
        assert_eq!(run.left(standing(0.5, 3.0, Some(3.0))), Some(3.0));
        assert_eq!(run.left(standing(1.0, 6.0, Some(0.0))), None);
    }

    #[test]
    fn little_of_an_unknown_pace_is_taken_for_quick_and_much_is_not_guessed() {
        let phases = |reading| {
            let mut run = run(&[
                ("passing", 10.0, Pace::Passes),
                ("verifying", reading, Pace::Reading),
                ("verifying", reading, Pace::Reading),
                ("measuring", 30.0, Pace::Passes),
            ]);
            run.begin("passing");
            run.end(1.0, 10.0);
            run.begin("verifying");
            run
        };
        assert_eq!(phases(1.0).left(standing(0.0, 0.0, None)), Some(32.0));
        assert_eq!(phases(20.0).left(standing(0.0, 0.0, None)), None);
        // Its own first steps tell.
        let told = phases(20.0).left(standing(0.5, 5.0, Some(5.0)));
        assert_eq!(told, Some(5.0 + 10.0 + 30.0));
    }

    #[test]
    fn a_phase_without_steps_says_nothing_of_speed() {
        let mut run = run(&[("solving", 10.0, Pace::Solving), ("measuring", 30.0, Pace::Passes)]);
        run.begin("solving");
        run.end(0.0, 1.0);
        run.begin("measuring");
        assert_eq!(run.left(standing(0.0, 0.0, None)), None);
    }
}
