//! The texts of a job: what the Hessians are gathered on, and what is measured on.

use calibration::tokenizer::TextTokenizer;
use kernels::bf16::Precision;

use crate::corpora::{self, ReadText};
use crate::error::Error;
use crate::expert_tokens;
use crate::importance::MeanSquares;
use crate::job::{Calibration, QuantizeJob, Text, WindowRequest};
use crate::journal::Journal;
use crate::own_text;
use crate::plan::Plan;
use crate::precision;
use crate::progress::Progress;
use crate::quantize::Phases;
use crate::report::TextSummary;
use crate::stored::StoredModel;

/// Share of the evaluation text that may be in the calibration text, as licences and headlines are.
const MOST_OVERLAP: f64 = 0.01;

/// Everything that was read or written by the model, before any other work.
pub(crate) struct Texts {
    /// Calibration windows; none where nothing is gathered.
    pub(crate) windows: Vec<Vec<u32>>,
    /// Where they are from.
    pub(crate) calibration: Option<TextSummary>,
    /// What the model wrote beside.
    pub(crate) own: Option<TextSummary>,
    pub(crate) evaluation: Option<ReadText>,
    /// What has to be said about them.
    pub(crate) notes: Vec<String>,
}

impl Texts {
    /// Reads what `plans` need, or what is to be gathered in any case; `known` inputs need no text.
    pub(crate) fn read(
        job: &QuantizeJob,
        source: &StoredModel,
        plans: &[Plan],
        known: Option<&MeanSquares>,
        gathers: bool,
        journal: &mut Journal,
        (phases, progress): (&mut Phases, &dyn Progress),
    ) -> Result<Self, Error> {
        let tokenizer = source.tokenizer()?;
        let mut texts =
            Self { windows: Vec::new(), calibration: None, own: None, evaluation: None, notes: Vec::new() };
        if let Some((text, request)) = &job.evaluation {
            let read = corpora::read(text, *request, &source.model, tokenizer.as_ref(), progress)?;
            texts.notes.extend(read.notes.iter().cloned());
            texts.evaluation = Some(read);
        }
        let needed = known.is_none() && plans.iter().any(Plan::needs_calibration) || gathers;
        if needed {
            let written_in = precision::settle(plans);
            let tokenizer = (tokenizer.as_ref(), written_in);
            texts.read_calibration(job, source, tokenizer, journal, (&mut *phases, progress))?;
        } else {
            texts.explain_unread(job, known.is_some());
        }
        texts.explain(job, plans, known);
        texts.warn_of_overlap(progress);
        texts.warn_of_few_tokens(plans, progress);
        let writes = needed && (job.calibration == Calibration::Own || texts.own.is_some());
        phases.end(if writes { "writing text" } else { "reading" });
        Ok(texts)
    }

    fn read_calibration(
        &mut self,
        job: &QuantizeJob,
        source: &StoredModel,
        (tokenizer, precision): (Option<&TextTokenizer>, Precision),
        journal: &mut Journal,
        (phases, progress): (&mut Phases, &dyn Progress),
    ) -> Result<(), Error> {
        let request = job.calibration_windows;
        let read = match &job.calibration {
            Calibration::Text(text) => match job.min_expert_tokens {
                None => corpora::read(text, request, &source.model, tokenizer, progress)?,
                Some(least) => expert_tokens::read(text, request, least, source, tokenizer, progress)?,
            },
            // All of it in one draw: a second one would repeat the first.
            Calibration::Own => {
                phases.end("reading");
                let samples = request.samples.saturating_mul(1 + job.recipe.own_text());
                own_text::write(
                    source,
                    tokenizer,
                    (WindowRequest { samples, ..request }, precision),
                    journal,
                    progress,
                )?
            }
        };
        self.notes.extend(read.notes);
        self.windows = read.windows.tokens;
        if job.recipe.own_text() > 0 && job.calibration != Calibration::Own {
            let samples = self.windows.len() * job.recipe.own_text();
            phases.end("reading");
            let own = own_text::write(
                source,
                tokenizer,
                (WindowRequest { samples, ..request }, precision),
                journal,
                progress,
            )?;
            self.windows.extend(own.windows.tokens);
            self.own = Some(own.summary);
        }
        self.calibration = Some(read.summary);
        Ok(())
    }

    /// Text that was given and is not used.
    fn explain_unread(&mut self, job: &QuantizeJob, known: bool) {
        let recipe = &job.recipe.name;
        self.notes.extend(match &job.calibration {
            Calibration::Text(Text::File(path)) if !known => {
                let path = path.display();
                Some(format!("{path} was not read: recipe {recipe} needs no calibration text"))
            }
            Calibration::Own => {
                Some(format!("the model wrote no text: recipe {recipe} needs no calibration text"))
            }
            Calibration::Text(_) if !known && job.recipe.own_text() > 0 => {
                Some(format!("the model wrote no text: recipe {recipe} needs none"))
            }
            Calibration::Text(_) => None,
        });
    }

    /// What the recipe asks for that these texts cannot give.
    fn explain(&mut self, job: &QuantizeJob, plans: &[Plan], known: Option<&MeanSquares>) {
        let recipe = &job.recipe.name;
        if job.adapter_rank.is_some() && job.recipe.scale_passes() > 0 {
            self.notes.push(
                "scales do not learn beside an adapter, which corrects what the solver left".to_owned(),
            );
        }
        if job.recipe.scale_passes() > 0 && self.windows.len() < 2 {
            self.notes.push("scales do not learn: that takes calibration text of two windows".to_owned());
        }
        let propagates = plans.iter().any(Plan::propagates_errors);
        let Some(known) = known else {
            if self.windows.len() == 1 && propagates {
                self.notes.push(
                    "one calibration window leaves none to hold out: no error of earlier layers is made up for"
                        .to_owned(),
                );
            }
            return;
        };
        if !plans.iter().any(Plan::solves_with_data) {
            self.notes.push(format!("{} was not used: recipe {recipe} weighs no inputs", known.summary.path));
        }
        if propagates {
            self.notes.push(
                "an importance matrix has no correlations of inputs: no weight makes up for another's error, nor for earlier layers'"
                    .to_owned(),
            );
        }
        if plans.iter().any(|plan| plan.couples_rows().next().is_some()) || job.recipe.own_text() > 0 {
            self.notes.push(format!(
                "with an importance matrix no text is read or written: recipe {recipe} weighs no outputs or tokens"
            ));
        }
    }

    /// Second moments of fewer tokens than inputs have directions that nothing is known about.
    fn warn_of_few_tokens(&mut self, plans: &[Plan], progress: &dyn Progress) {
        let tokens: usize = self.windows.iter().map(Vec::len).sum();
        let solved = plans.iter().filter(|plan| plan.needs_calibration());
        let linears = solved.flat_map(Plan::quantized).map(|(linear, _)| linear);
        let widest = linears.reduce(|a, b| if b.in_features > a.in_features { b } else { a });
        let Some(widest) = widest.filter(|widest| (1..widest.in_features).contains(&tokens)) else { return };
        let note = format!(
            "{tokens} calibration tokens are fewer than the {} inputs of `{}`: give more (--samples, --context)",
            widest.in_features, widest.name
        );
        progress.warn(&note);
        self.notes.push(note);
    }

    fn warn_of_overlap(&mut self, progress: &dyn Progress) {
        let Some(evaluation) = &self.evaluation else { return };
        let shared = corpora::overlap(&self.windows, &evaluation.windows.tokens);
        if shared >= MOST_OVERLAP {
            let percent = 100.0 * shared;
            let note = format!(
                "{percent:.0} % of the evaluation text is in the calibration text: the figures flatter the result"
            );
            progress.warn(&note);
            self.notes.push(note);
        }
    }
}
