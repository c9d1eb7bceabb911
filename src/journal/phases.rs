//! What is known before the first layer and behind the last: text, widths, gradients, scales.

use std::collections::BTreeMap;

use formats::segment::Segment;
use formats::solution::ArrayPart;
use model::linear::Linear;
use ndarray::Array2;
use quantizer::output::OutputHessian;
use serde::{Deserialize, Serialize};

use super::Journal;
use crate::error::Error;
use crate::scales::{LearnedScales, Learning, PupilState};

pub(super) const TEXT: &str = "text";
pub(super) const WIDTHS: &str = "widths";
pub(super) const GRADIENTS: &str = "gradients";

/// Gradients as they are in the journal, read a layer at a time.
#[derive(Debug)]
pub(crate) struct KeptGradients {
    segment: Segment,
    head: GradientsHead,
}

#[derive(Debug, Default, Serialize, Deserialize)]
struct GradientsHead {
    /// Parts of each linear's triangles, by module path.
    outputs: BTreeMap<String, Vec<ArrayPart>>,
    /// By layer and place of the stage: a part for each window.
    tokens: Vec<((usize, usize), Vec<ArrayPart>)>,
}

#[derive(Serialize, Deserialize)]
struct ScalesHead {
    done: Option<LearnedScales>,
    step: usize,
    /// Scales, means and squares of each linear.
    pupils: Vec<[ArrayPart; 3]>,
}

impl Journal {
    /// Text that the model wrote.
    pub(crate) fn own_text(&self) -> Result<Option<Vec<Vec<u32>>>, Error> {
        self.head_of(TEXT)
    }

    /// Keeps it.
    pub(crate) fn keep_own_text(&mut self, tokens: &[Vec<u32>]) -> Result<(), Error> {
        self.keep_head(TEXT, &tokens)
    }

    /// What each width of each stage would do.
    pub(crate) fn damages(&self) -> Result<Option<Vec<Vec<f64>>>, Error> {
        self.head_of(WIDTHS)
    }

    /// Keeps it.
    pub(crate) fn keep_damages(&mut self, damages: &[Vec<f64>]) -> Result<(), Error> {
        self.keep_head(WIDTHS, &damages)
    }

    /// Gradients that were gathered.
    pub(crate) fn gradients(&self) -> Result<Option<KeptGradients>, Error> {
        let Some(segment) = self.segment(GRADIENTS)? else { return Ok(None) };
        let head = segment.head().map_err(|error| self.damaged(&error.to_string()))?;
        Ok(Some(KeptGradients { segment, head }))
    }

    /// Keeps them: of each linear, and of each stage's tokens by window.
    pub(crate) fn keep_gradients<'g>(
        &mut self,
        outputs: impl Iterator<Item = Result<(&'g Linear, OutputHessian), Error>>,
        tokens: impl Iterator<Item = ((usize, usize), Vec<Vec<f32>>)>,
    ) -> Result<(), Error> {
        let mut writer = self.write(GRADIENTS)?;
        let mut head = GradientsHead::default();
        let row = |numbers: &[f32]| {
            ndarray::ArrayView2::from_shape((1, numbers.len()), numbers).map(|v| v.to_owned())
        };
        let mut put = |numbers: &[f32]| {
            let row = row(numbers).map_err(|e| Error::Internal(e.to_string()))?;
            Ok::<_, Error>(writer.put_array(row.view())?)
        };
        for output in outputs {
            let (linear, hessian) = output?;
            let parts = hessian.triangles().iter().map(|triangle| put(triangle)).collect::<Result<_, _>>()?;
            head.outputs.insert(linear.name.clone(), parts);
        }
        for (stage, windows) in tokens {
            let parts = windows.iter().map(|roots| put(roots)).collect::<Result<_, _>>()?;
            head.tokens.push((stage, parts));
        }
        self.finish(writer, &head)?;
        self.holds = self.lasting;
        Ok(())
    }

    /// How far a track's scales have learned.
    pub(crate) fn learning(&self, track: usize) -> Result<Option<Learning>, Error> {
        let Some(segment) = self.segment(&scales(track))? else { return Ok(None) };
        let fail = |error: formats::FormatsError| self.damaged(&error.to_string());
        let head: ScalesHead = segment.head().map_err(fail)?;
        let mut pupils = Vec::with_capacity(head.pupils.len());
        for [scales, mean, square] in head.pupils {
            let array = |part| segment.array(part).map_err(fail);
            pupils.push(PupilState { scales: array(scales)?, mean: array(mean)?, square: array(square)? });
        }
        Ok(Some(Learning { done: head.done, step: head.step, pupils }))
    }

    /// Keeps it.
    pub(crate) fn keep_learning(&mut self, track: usize, learning: &Learning) -> Result<(), Error> {
        let mut writer = self.write(&scales(track))?;
        let mut pupils = Vec::with_capacity(learning.pupils.len());
        for PupilState { scales, mean, square } in &learning.pupils {
            let mut put = |array: &Array2<f32>| writer.put_array(array.view());
            pupils.push([put(scales)?, put(mean)?, put(square)?]);
        }
        self.finish(writer, &ScalesHead { done: learning.done, step: learning.step, pupils })
    }

    fn head_of<T: serde::de::DeserializeOwned>(&self, name: &str) -> Result<Option<T>, Error> {
        let segment = self.segment(name)?;
        let head = segment.map(|segment| segment.head()).transpose();
        head.map_err(|error| self.damaged(&error.to_string()))
    }

    fn keep_head(&mut self, name: &str, head: &impl Serialize) -> Result<(), Error> {
        let writer = self.write(name)?;
        self.finish(writer, head)?;
        self.holds = self.lasting;
        Ok(())
    }
}

impl KeptGradients {
    /// Of one linear, where there are any.
    pub(crate) fn output(&self, linear: &Linear) -> Result<Option<OutputHessian>, Error> {
        let Some(parts) = self.head.outputs.get(&linear.name) else { return Ok(None) };
        let triangles = parts.iter().map(|&part| self.numbers(part)).collect::<Result<_, _>>()?;
        let hessian = OutputHessian::from_triangles(linear.out_features, triangles);
        let wrong = || self.segment.malformed(format!("`{}` has other outputs", linear.name));
        hessian.ok_or_else(wrong).map(Some).map_err(Error::from)
    }

    /// Of the tokens of one stage by window, where there are any.
    pub(crate) fn tokens(&self, stage: (usize, usize)) -> Result<Option<Vec<Vec<f32>>>, Error> {
        let found = self.head.tokens.iter().find(|(known, _)| *known == stage);
        found.map(|(_, parts)| parts.iter().map(|&part| self.numbers(part)).collect()).transpose()
    }

    fn numbers(&self, part: ArrayPart) -> Result<Vec<f32>, Error> {
        Ok(self.segment.array(part)?.into_raw_vec_and_offset().0)
    }
}

fn scales(track: usize) -> String {
    format!("scales-{track}")
}
