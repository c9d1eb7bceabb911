//! Two models against each other: differences of the same tokens' figures, and whether they are more than chance.

use calibration::evaluation::comparison::Compared;
use calibration::evaluation::{Estimate, PairedDifference};
use serde::Serialize;

use super::letter;

/// A figure with its standard error.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Measured {
    /// The figure.
    pub value: f64,
    /// Its standard error.
    pub stderr: f64,
}

impl From<Estimate> for Measured {
    fn from(found: Estimate) -> Self {
        Self { value: found.value, stderr: found.stderr }
    }
}

/// One model's figures less another's, token by token.
#[derive(Clone, Debug, Serialize)]
pub struct Pair {
    /// Letter of the model that is judged.
    pub model: String,
    /// Letter of the one that it is compared with.
    pub against: String,
    /// Ratio of the perplexities less 1.
    pub perplexity: Difference,
    /// Difference of the mean KL divergences to the reference, nats; the reference's own is 0.
    pub kl_mean: Option<Difference>,
    /// Difference of the shares of tokens where the reference's first choice is theirs; the reference's own is 1.
    pub top1_agreement: Option<Difference>,
    /// All of it in a few words.
    pub verdict: String,
}

/// A paired difference.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Difference {
    /// The difference.
    pub value: f64,
    /// Standard error of the difference itself.
    pub stderr: f64,
    /// Whether chance alone would show one so large less than 5 times in 100.
    pub significant: bool,
}

impl Difference {
    fn of(found: PairedDifference) -> Self {
        let Estimate { value, stderr } = found.difference;
        Self { value, stderr, significant: found.is_significant() }
    }

    /// Of a mean logarithm's, as a ratio less 1.
    fn ratio(found: PairedDifference) -> Self {
        let Self { value, stderr, significant } = Self::of(found);
        Self { value: value.exp_m1(), stderr: value.exp() * stderr, significant }
    }

    /// 1 better, -1 worse, 0 not shown, where `sign` is that of a better difference.
    fn judged(&self, sign: f64) -> i8 {
        match (self.significant, self.value * sign > 0.0) {
            (false, _) => 0,
            (true, true) => 1,
            (true, false) => -1,
        }
    }
}

/// Every model against every one before it.
pub(super) fn all(compared: &[Compared]) -> Vec<Pair> {
    let pairs = (1..compared.len()).flat_map(|model| (0..model).map(move |against| (model, against)));
    pairs.map(|(model, against)| pair(compared, model, against)).collect()
}

fn pair(compared: &[Compared], model: usize, against: usize) -> Pair {
    let (ours, theirs) = (&compared[model], &compared[against]);
    let perplexity = Difference::ratio(ours.nll_less(theirs));
    let names = (letter(model), letter(against));
    let (kl_mean, top1_agreement, verdict) = match (&ours.distance, &theirs.distance) {
        (Some(ours), Some(theirs)) => {
            let kl = Difference::of(PairedDifference::of(&ours.divergence, &theirs.divergence));
            let top = Difference::of(PairedDifference::of(&ours.agreement, &theirs.agreement));
            let judged = [
                ("perplexity", perplexity.judged(-1.0)),
                ("KL", kl.judged(-1.0)),
                ("top token", top.judged(1.0)),
            ];
            (Some(kl), Some(top), verdict(&names.0, &names.1, &judged))
        }
        (Some(ours), None) => {
            let like = |windows: &[Vec<f32>], value: f32| -> Vec<Vec<f32>> {
                windows.iter().map(|window| vec![value; window.len()]).collect()
            };
            let (divergence, agreement) = (&ours.divergence, &ours.agreement);
            let kl = Difference::of(PairedDifference::of(divergence, &like(divergence, 0.0)));
            let top = Difference::of(PairedDifference::of(agreement, &like(agreement, 1.0)));
            let verdict = from_reference(&names.0, &names.1, perplexity.judged(-1.0), (kl, top));
            (Some(kl), Some(top), verdict)
        }
        _ => (None, None, verdict(&names.0, &names.1, &[("perplexity", perplexity.judged(-1.0))])),
    };
    Pair { model: names.0, against: names.1, perplexity, kl_mean, top1_agreement, verdict }
}

/// A sentence about a model and the reference. One that predicts otherwise may do so as well: its distance is said beside.
fn from_reference(model: &str, against: &str, judged: i8, (kl, top): (Difference, Difference)) -> String {
    let said = verdict(model, against, &[("perplexity", judged)]);
    if kl.value == 0.0 && top.value == 0.0 {
        return said;
    }
    let said = match judged {
        0 => format!("between {model} and {against} no difference is shown in perplexity"),
        _ => said,
    };
    let share = |value: f64| value * 100.0;
    format!(
        "{said}; the KL divergence is {:.5} ± {:.5} nats a token, and {:.2} ± {:.2} % of top tokens are others",
        kl.value,
        kl.stderr,
        share(top.value.abs()),
        share(top.stderr)
    )
}

/// A sentence without figures.
fn verdict(model: &str, against: &str, judged: &[(&str, i8)]) -> String {
    let named = |wanted: i8| {
        let names: Vec<&str> =
            judged.iter().filter(|(_, found)| *found == wanted).map(|(name, _)| *name).collect();
        names.join(", ")
    };
    let (better, worse, open) = (named(1), named(-1), named(0));
    let rest = if open.is_empty() { String::new() } else { format!("; no difference shown in {open}") };
    match (better.is_empty(), worse.is_empty()) {
        (true, true) => format!("no difference shown between {model} and {against}"),
        (false, true) => format!("{model} is better than {against} in {better}{rest}"),
        (true, false) => format!("{model} is worse than {against} in {worse}{rest}"),
        (false, false) => format!("{model} is better than {against} in {better}, worse in {worse}{rest}"),
    }
}

#[cfg(test)]
mod tests {
    use super::{Difference, from_reference, verdict};

    #[test]
    fn a_model_that_predicts_otherwise_is_not_said_to_be_the_reference() {
        let found = |value, stderr| Difference { value, stderr, significant: false };
        let said = |judged, kl, top| from_reference("B", "A", judged, (found(kl, 0.001), found(top, 0.002)));
        assert_eq!(said(0, 0.0, 0.0), "no difference shown between B and A");
        let distance =
            "the KL divergence is 0.00840 ± 0.00100 nats a token, and 6.00 ± 0.20 % of top tokens are others";
        let open = "between B and A no difference is shown in perplexity";
        assert_eq!(said(0, 0.0084, -0.06), format!("{open}; {distance}"));
        assert_eq!(said(-1, 0.0084, -0.06), format!("B is worse than A in perplexity; {distance}"));
    }

    #[test]
    fn verdicts_say_what_is_shown_and_what_is_not() {
        let found = |perplexity, kl| verdict("B", "A", &[("perplexity", perplexity), ("KL", kl)]);
        assert_eq!(found(0, 0), "no difference shown between B and A");
        assert_eq!(found(1, 1), "B is better than A in perplexity, KL");
        assert_eq!(found(0, -1), "B is worse than A in KL; no difference shown in perplexity");
        assert_eq!(found(1, -1), "B is better than A in perplexity, worse in KL");
    }
}
