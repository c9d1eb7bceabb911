//! `evaluate --choices`: multiple-choice questions, answered by what the model finds likeliest.
//!
//! The file has a JSON object on each line: `question`, text; `choices`, a list of at least two texts; `answer`, the right one, as its place
//! from 0 or its letter from A. Each choice follows the question after a space, or after what white space the question ends in, as
//! lm-evaluation-harness puts them; its tokens are those behind the question's own. A model answers with the choice of the largest
//! log-likelihood, and, length-normalised, of the largest per character of the choice. Of equals the first.

use std::io::{BufRead, BufReader, Read};
use std::ops::ControlFlow;
use std::path::Path;

use calibration::CalibrationError;
use calibration::evaluation::endings::{Ending, log_likelihoods};
use calibration::tokenizer::TextTokenizer;
use calibration::weights::WeightSource;
use model::Model;
use serde::Serialize;
use serde_json::Value;

use crate::error::Error;
use crate::progress::Progress;

/// Largest file that is read, bytes.
const MOST_BYTES: u64 = 1 << 30;
/// Choices of a question, at most: they have letters.
const MOST_CHOICES: usize = 26;
/// Tokens that go through the model together.
const TOGETHER: usize = 1 << 15;

/// Questions with their choices in tokens.
#[derive(Debug)]
pub(crate) struct Questions {
    path: String,
    questions: Vec<Question>,
    /// Questions whose beginning was cut off.
    cut: usize,
}

#[derive(Debug)]
struct Question {
    answer: usize,
    choices: Vec<Choice>,
}

#[derive(Debug)]
struct Choice {
    ending: Ending,
    characters: usize,
}

/// How many questions were answered rightly.
#[derive(Clone, Debug, Serialize)]
pub struct ChoicesReport {
    /// The file.
    pub file: String,
    /// Questions in it.
    pub questions: usize,
    /// Share that answers drawn evenly would get.
    pub by_chance: f64,
    /// Of the reference, when one was given.
    pub reference: Option<Accuracy>,
    /// Of the measured model.
    pub measured: Accuracy,
    /// Of the measured model with its adapter, when one was given.
    pub adapted: Option<Accuracy>,
    /// Measured less reference, when there is one.
    pub difference: Option<AccuracyDifference>,
    /// What the measured model made of each question.
    pub answers: Vec<Answered>,
}

/// Shares of questions, with standard errors.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Accuracy {
    /// By log-likelihood.
    pub accuracy: f64,
    /// Standard error of it.
    pub accuracy_stderr: f64,
    /// By log-likelihood per character.
    pub normalized: f64,
    /// Standard error of it.
    pub normalized_stderr: f64,
}

/// A difference of two models, question by question.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct AccuracyDifference {
    /// By log-likelihood.
    pub accuracy: f64,
    /// Standard error of the difference.
    pub accuracy_stderr: f64,
    /// By log-likelihood per character.
    pub normalized: f64,
    /// Standard error of the difference.
    pub normalized_stderr: f64,
}

/// What became of one question.
#[derive(Clone, Debug, Serialize)]
pub struct Answered {
    /// Place of the right choice.
    pub answer: usize,
    /// Place of the likeliest choice.
    pub likeliest: usize,
    /// Place of the choice likeliest per character.
    pub likeliest_normalized: usize,
    /// Log-likelihood of each choice, nats.
    pub log_likelihoods: Vec<f64>,
}

impl Questions {
    /// Reads the questions, in the model's tokens.
    pub(crate) fn read(path: &Path, model: &Model, tokenizer: Option<&TextTokenizer>) -> Result<Self, Error> {
        let name = path.display().to_string();
        let tokenizer = tokenizer.ok_or_else(|| CalibrationError::NoTokenizer { text: name.clone() })?;
        let file = std::fs::File::open(path).map_err(Error::io(path))?;
        let mut lines = BufReader::new(file.take(MOST_BYTES + 1));
        let mut read = Self { path: name, questions: Vec::new(), cut: 0 };
        let (mut line, mut number, mut bytes) = (String::new(), 0, 0);
        loop {
            line.clear();
            let length = lines.read_line(&mut line).map_err(Error::io(path))?;
            bytes += length as u64;
            if length == 0 {
                break;
            }
            number += 1;
            if bytes > MOST_BYTES {
                return Err(read.wrong(number, format!("the file is larger than {MOST_BYTES} bytes")));
            }
            if !line.trim().is_empty() {
                read.add(number, &line, model, tokenizer)?;
            }
        }
        if read.questions.is_empty() {
            return Err(CalibrationError::Empty { text: read.path }.into());
        }
        Ok(read)
    }

    /// What was not done as asked.
    pub(crate) fn note(&self) -> Option<String> {
        (self.cut > 0).then(|| {
            format!(
                "{} of {} questions of {} were longer than the model attends; their beginnings were cut off",
                self.cut,
                self.questions.len(),
                self.path
            )
        })
    }

    fn wrong(&self, line: usize, problem: String) -> Error {
        CalibrationError::Line { text: self.path.clone(), line, problem }.into()
    }

    fn add(
        &mut self,
        number: usize,
        line: &str,
        model: &Model,
        tokenizer: &TextTokenizer,
    ) -> Result<(), Error> {
        let value: Value = serde_json::from_str(line).map_err(|e| self.wrong(number, e.to_string()))?;
        let (question, choices, answer) = parse(&value).map_err(|problem| self.wrong(number, problem))?;
        // White space between the two belongs to the choice, as tokens begin with it.
        let asked = question.trim_end();
        let between = if asked.len() < question.len() { &question[asked.len()..] } else { " " };
        let before = tokenizer.encode(asked)?.len();
        let begin = tokenizer.begin();
        let context = model.hyperparameters.context;
        let mut shortened = false;
        let mut added = Vec::with_capacity(choices.len());
        for choice in choices {
            let between = if choice.starts_with(char::is_whitespace) { "" } else { between };
            let mut tokens = tokenizer.encode(&format!("{asked}{between}{choice}"))?;
            let scored = tokens.len().saturating_sub(before).max(1);
            let room = context.saturating_sub(usize::from(begin.is_some()));
            if tokens.len() > room {
                shortened = true;
                tokens.drain(..tokens.len() - room);
            }
            let tokens: Vec<u32> = begin.into_iter().chain(tokens).collect();
            if scored >= tokens.len() {
                let problem = if asked.is_empty() {
                    "`question` is empty, and the model has no beginning token to stand before a choice"
                        .to_owned()
                } else {
                    format!("a choice has {scored} tokens, and the model attends to {context}")
                };
                return Err(self.wrong(number, problem));
            }
            let vocabulary = model.hyperparameters.vocabulary;
            if let Some(token) = tokens.iter().find(|&&token| token as usize >= vocabulary) {
                let text = format!("{}, line {number}", self.path);
                return Err(
                    CalibrationError::TokenOutOfRange { text, token: token.to_string(), vocabulary }.into()
                );
            }
            added.push(Choice { ending: Ending { tokens, scored }, characters: choice.chars().count() });
        }
        self.cut += usize::from(shortened);
        self.questions.push(Question { answer, choices: added });
        Ok(())
    }

    /// Layers of models that [`Questions::answer`] steps through, for `models` models.
    pub(crate) fn steps(&self, model: &Model, models: usize) -> usize {
        self.batches().len() * model.layers.len() * models
    }

    /// What a model answers.
    pub(crate) fn answer(
        &self,
        model: &Model,
        source: &dyn WeightSource,
        progress: &dyn Progress,
    ) -> Result<Vec<Answered>, Error> {
        let mut step = || {
            progress.step("");
            if progress.interrupted() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        };
        let mut answers = Vec::with_capacity(self.questions.len());
        for batch in self.batches() {
            let questions = &self.questions[batch];
            let endings: Vec<Ending> = questions
                .iter()
                .flat_map(|question| question.choices.iter().map(|choice| choice.ending.clone()))
                .collect();
            let found = match log_likelihoods(model, source, &endings, &mut step) {
                Err(CalibrationError::Interrupted) => return Err(Error::Interrupted),
                found => found?,
            };
            let mut found = found.into_iter();
            for question in questions {
                let log_likelihoods: Vec<f64> = found.by_ref().take(question.choices.len()).collect();
                let per_character = question
                    .choices
                    .iter()
                    .zip(&log_likelihoods)
                    .map(|(choice, value)| value / choice.characters as f64);
                answers.push(Answered {
                    answer: question.answer,
                    likeliest: largest(log_likelihoods.iter().copied()),
                    likeliest_normalized: largest(per_character),
                    log_likelihoods,
                });
            }
        }
        Ok(answers)
    }

    /// Questions that are answered together.
    fn batches(&self) -> Vec<std::ops::Range<usize>> {
        let mut batches = Vec::new();
        let (mut first, mut tokens) = (0, 0);
        for (number, question) in self.questions.iter().enumerate() {
            let own: usize = question.choices.iter().map(|choice| choice.ending.tokens.len()).sum();
            if tokens > 0 && tokens + own > TOGETHER {
                batches.push(first..number);
                (first, tokens) = (number, 0);
            }
            tokens += own;
        }
        batches.push(first..self.questions.len());
        batches
    }

    /// The report.
    pub(crate) fn report(
        &self,
        measured: Vec<Answered>,
        adapted: Option<&[Answered]>,
        reference: Option<&[Answered]>,
    ) -> ChoicesReport {
        let chances = self.questions.iter().map(|question| 1.0 / question.choices.len() as f64);
        ChoicesReport {
            file: self.path.clone(),
            questions: self.questions.len(),
            by_chance: chances.sum::<f64>() / self.questions.len() as f64,
            reference: reference.map(Accuracy::of),
            adapted: adapted.map(Accuracy::of),
            difference: reference.map(|reference| AccuracyDifference::of(&measured, reference)),
            measured: Accuracy::of(&measured),
            answers: measured,
        }
    }
}

impl Answered {
    /// 1 for each of the two ways that is right.
    fn right(&self) -> [f64; 2] {
        [self.likeliest, self.likeliest_normalized].map(|choice| f64::from(u8::from(choice == self.answer)))
    }
}

impl Accuracy {
    fn of(answers: &[Answered]) -> Self {
        let [plain, normalized] =
            [0, 1].map(|way| mean(answers.iter().map(|answered| answered.right()[way])));
        Self {
            accuracy: plain.0,
            accuracy_stderr: plain.1,
            normalized: normalized.0,
            normalized_stderr: normalized.1,
        }
    }
}

impl AccuracyDifference {
    fn of(measured: &[Answered], reference: &[Answered]) -> Self {
        let pairs = || measured.iter().zip(reference);
        let [plain, normalized] =
            [0, 1].map(|way| mean(pairs().map(|(a, b)| a.right()[way] - b.right()[way])));
        Self {
            accuracy: plain.0,
            accuracy_stderr: plain.1,
            normalized: normalized.0,
            normalized_stderr: normalized.1,
        }
    }
}

/// Mean and its standard error; zero where one value shows no spread.
fn mean(values: impl Iterator<Item = f64> + Clone) -> (f64, f64) {
    let count = values.clone().count() as f64;
    let mean = values.clone().sum::<f64>() / count;
    let squares: f64 = values.map(|value| (value - mean).powi(2)).sum();
    (mean, if count > 1.0 { (squares / (count - 1.0) / count).sqrt() } else { 0.0 })
}

/// Place of the largest, the first of equals.
fn largest(values: impl Iterator<Item = f64>) -> usize {
    let mut best = (0, f64::NEG_INFINITY);
    for (place, value) in values.enumerate() {
        if value > best.1 {
            best = (place, value);
        }
    }
    best.0
}

fn parse<'v>(value: &'v Value) -> Result<(&'v str, Vec<&'v str>, usize), String> {
    let text = |key: &str| match value.get(key) {
        Some(Value::String(text)) => Ok(text.as_str()),
        Some(other) => Err(format!("`{key}` is {other}, expected text")),
        None => Err(format!("expected an object with `question`, `choices` and `answer`, found no `{key}`")),
    };
    let question = text("question")?;
    let listed = match value.get("choices") {
        Some(Value::Array(listed)) => listed,
        Some(other) => return Err(format!("`choices` is {other}, expected a list of texts")),
        None => return text("choices").map(|_| (question, Vec::new(), 0)),
    };
    if !(2..=MOST_CHOICES).contains(&listed.len()) {
        return Err(format!("`choices` has {} entries, expected 2 to {MOST_CHOICES}", listed.len()));
    }
    let choice = |value: &'v Value| match value {
        Value::String(text) if !text.trim().is_empty() => Ok(text.as_str()),
        other => Err(format!("`choices` holds {other}, expected texts that are not empty")),
    };
    let choices = listed.iter().map(choice).collect::<Result<Vec<_>, _>>()?;
    let expected = || {
        let last = char::from(b'A' + (choices.len() - 1) as u8);
        let (most, found) = (choices.len() - 1, value.get("answer").unwrap_or(&Value::Null));
        format!("`answer` is {found}, expected a number from 0 to {most} or a letter from A to {last}")
    };
    let answer = match value.get("answer") {
        Some(Value::Number(number)) => number.as_u64().and_then(|number| usize::try_from(number).ok()),
        Some(Value::String(text)) => match text.as_bytes() {
            [letter] => (letter.to_ascii_uppercase() as usize).checked_sub(usize::from(b'A')),
            _ => None,
        },
        _ => None,
    };
    let answer = answer.filter(|&answer| answer < choices.len()).ok_or_else(expected)?;
    Ok((question, choices, answer))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn answers_are_places_or_letters() {
        let line = |answer: Value| json!({"question": "Two?", "choices": ["one", "two"], "answer": answer});
        let answer = |value: Value| parse(&line(value)).map(|(_, _, answer)| answer);
        assert_eq!((answer(json!(1)), answer(json!("B")), answer(json!("a"))), (Ok(1), Ok(1), Ok(0)));
        for wrong in [json!(2), json!(-1), json!("C"), json!("two"), json!(0.5), Value::Null, json!("@")] {
            assert!(answer(wrong.clone()).unwrap_err().contains("A to B"), "{wrong}");
        }
        let missing = parse(&json!({"question": "Two?", "answer": 0})).unwrap_err();
        assert!(missing.contains("no `choices`"), "{missing}");
        assert!(parse(&json!({"question": "Two?", "choices": ["one", ""], "answer": 0})).is_err());
    }

    #[test]
    fn the_standard_error_of_a_share_is_the_binomial_s() {
        let values = [1.0, 0.0, 1.0, 1.0, 0.0, 1.0, 1.0, 0.0];
        let (share, stderr) = mean(values.into_iter());
        assert!(share == 0.625 && (stderr - (0.625_f64 * 0.375 / 7.0).sqrt()).abs() < 1e-12);
        assert_eq!(largest([-3.0, -1.0, -1.0].into_iter()), 1);
    }
}
