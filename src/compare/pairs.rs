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
    /// Difference of the mean KL divergences to the reference, nats; none against the reference.
    pub kl_mean: Option<Difference>,
    /// Difference of the shares of tokens where the reference's first choice is theirs; none against the reference.
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
    let distances = ours.distance.as_ref().zip(theirs.distance.as_ref());
    let kl_mean = distances
        .map(|(ours, theirs)| Difference::of(PairedDifference::of(&ours.divergence, &theirs.divergence)));
    let top1_agreement = distances
        .map(|(ours, theirs)| Difference::of(PairedDifference::of(&ours.agreement, &theirs.agreement)));
    let judged = [
        ("perplexity", Some(perplexity.judged(-1.0))),
        ("KL", kl_mean.map(|found| found.judged(-1.0))),
        ("top token", top1_agreement.map(|found| found.judged(1.0))),
    ];
    let judged: Vec<(&str, i8)> =
        judged.into_iter().filter_map(|(name, found)| Some((name, found?))).collect();
    let verdict = verdict(&letter(model), &letter(against), &judged);
    Pair { model: letter(model), against: letter(against), perplexity, kl_mean, top1_agreement, verdict }
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
    use super::verdict;

    #[test]
    fn verdicts_say_what_is_shown_and_what_is_not() {
        let found = |perplexity, kl| verdict("B", "A", &[("perplexity", perplexity), ("KL", kl)]);
        assert_eq!(found(0, 0), "no difference shown between B and A");
        assert_eq!(found(1, 1), "B is better than A in perplexity, KL");
        assert_eq!(found(0, -1), "B is worse than A in KL; no difference shown in perplexity");
        assert_eq!(found(1, -1), "B is better than A in perplexity, worse in KL");
    }
}
