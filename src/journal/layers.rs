//! Whole layers: what each track solved, and what else is known when a layer is done.

use formats::segment::SegmentWriter;
use formats::solution::{ArrayPart, SolutionParts};
use model::{Layer, Model};
use quantizer::adapter::Adapter;
use quantizer::tensor::QuantizedTensor;
use serde::{Deserialize, Serialize};

use super::{Journal, StateFile, StreamSums, states};
use crate::error::Error;
use crate::experts::ExpertCoverage;
use crate::importance::{Importance, ImportanceGatherer};
use crate::report::LinearRow;

/// How names of layers' segments begin.
pub(super) const PREFIX: &str = "layer-";

/// Name of a layer's segment.
pub(super) fn name(layer: usize) -> String {
    format!("{PREFIX}{layer:05}")
}

/// Whether that is the name of a whole layer.
pub(super) fn is_whole(name: &str) -> bool {
    let number = name.strip_prefix(PREFIX).and_then(|number| number.parse().ok());
    number.is_some_and(|number| self::name(number) == name)
}

/// What a segment says of itself.
#[derive(Default, Serialize, Deserialize)]
struct Head {
    /// Which it is.
    layer: usize,
    tracks: Vec<TrackHead>,
    importance: Vec<Importance>,
    /// Of the streams behind the layer; none behind the last.
    states: Vec<StreamSums>,
}

/// What one track did.
#[derive(Default, Serialize, Deserialize)]
struct TrackHead {
    /// By module path, in the order in which they were solved.
    solutions: Vec<(String, SolutionParts)>,
    /// By module path, `A` and `B`.
    adapters: Vec<(String, ArrayPart, ArrayPart)>,
    rows: Vec<LinearRow>,
    notes: Vec<String>,
    experts: Vec<ExpertCoverage>,
}

/// A layer that is being solved.
pub(crate) struct LayerEntry {
    layer: usize,
    /// None where layers are not kept.
    writer: Option<SegmentWriter>,
    head: Head,
}

/// What one track had of a layer.
pub(crate) struct Restored {
    /// By module path, in the order in which they were solved.
    pub(crate) solutions: Vec<(String, QuantizedTensor)>,
    pub(crate) adapters: Vec<(String, Adapter)>,
    pub(crate) rows: Vec<LinearRow>,
    pub(crate) notes: Vec<String>,
    pub(crate) experts: Vec<ExpertCoverage>,
}

impl Journal {
    /// Begins the entry of a layer for so many tracks.
    pub(crate) fn begin_layer(&mut self, layer: &Layer, tracks: usize) -> Result<LayerEntry, Error> {
        let tracks = (0..tracks).map(|_| TrackHead::default()).collect();
        let head = Head { layer: layer.index, tracks, ..Head::default() };
        let writer = self.lasting.then(|| self.write(&name(layer.index))).transpose()?;
        Ok(LayerEntry { layer: layer.index, writer, head })
    }

    /// Ends it: from here on the next run goes on behind this layer.
    pub(crate) fn end_layer(&mut self, mut entry: LayerEntry, states: Vec<StreamSums>) -> Result<(), Error> {
        entry.head.states = states;
        let Some(writer) = entry.writer else { return self.demand_unchanged() };
        self.finish(writer, &entry.head)?;
        self.layers = entry.layer + 1;
        self.holds = true;
        Ok(())
    }

    /// What each of so many tracks had of a whole layer; what was gathered of the original goes to `importance`.
    pub(crate) fn layer(
        &self,
        model: &Model,
        layer: usize,
        tracks: usize,
        importance: Option<&mut ImportanceGatherer>,
    ) -> Result<Vec<Restored>, Error> {
        let (segment, head) = self.head(layer)?;
        if head.tracks.len() != tracks {
            return Err(
                self.damaged(&format!("layer {layer} has {} tracks, not {tracks}", head.tracks.len()))
            );
        }
        if let Some(importance) = importance {
            importance.restore(&model.layers[layer], head.importance);
        }
        let fail = |error: formats::FormatsError| self.damaged(&error.to_string());
        let mut restored = Vec::with_capacity(tracks);
        for track in head.tracks {
            let mut solutions = Vec::with_capacity(track.solutions.len());
            for (name, parts) in &track.solutions {
                solutions.push((name.clone(), segment.solution(parts).map_err(fail)?));
            }
            let mut adapters = Vec::with_capacity(track.adapters.len());
            for (name, down, up) in &track.adapters {
                let (down, up) = (segment.array(*down).map_err(fail)?, segment.array(*up).map_err(fail)?);
                adapters.push((name.clone(), Adapter { down, up }));
            }
            let TrackHead { rows, notes, experts, .. } = track;
            restored.push(Restored { solutions, adapters, rows, notes, experts });
        }
        Ok(restored)
    }

    /// The states of so many streams behind a whole layer.
    pub(crate) fn states_behind(&self, layer: usize, streams: usize) -> Result<Vec<StateFile>, Error> {
        let (_, head) = self.head(layer)?;
        if head.states.len() != streams {
            let found = head.states.len();
            return Err(self.damaged(&format!("behind layer {layer} are {found} streams, not {streams}")));
        }
        let open = |(stream, sums)| {
            let file = StateFile::open(&self.path(&states::name(layer, stream)), sums);
            file.map_err(|error| self.damaged(&error.to_string()))
        };
        head.states.into_iter().enumerate().map(open).collect()
    }

    fn head(&self, layer: usize) -> Result<(formats::segment::Segment, Head), Error> {
        let missing = || self.damaged(&format!("layer {layer} is missing"));
        let segment = self.segment(&name(layer))?.ok_or_else(missing)?;
        let head: Head = segment.head().map_err(|error| self.damaged(&error.to_string()))?;
        if head.layer != layer {
            return Err(self.damaged(&format!("`{}` is layer {}", name(layer), head.layer)));
        }
        Ok((segment, head))
    }
}

impl LayerEntry {
    /// Takes in what a track solved.
    pub(crate) fn solution(
        &mut self,
        track: usize,
        name: &str,
        tensor: &QuantizedTensor,
    ) -> Result<(), Error> {
        let Some(writer) = &mut self.writer else { return Ok(()) };
        let parts = writer.put_solution(tensor)?;
        self.head.tracks[track].solutions.push((name.to_owned(), parts));
        Ok(())
    }

    /// Takes in an adapter, as it is stored.
    pub(crate) fn adapter(&mut self, track: usize, name: &str, adapter: &Adapter) -> Result<(), Error> {
        let Some(writer) = &mut self.writer else { return Ok(()) };
        let down = writer.put_array(adapter.down.view())?;
        let up = writer.put_array(adapter.up.view())?;
        self.head.tracks[track].adapters.push((name.to_owned(), down, up));
        Ok(())
    }

    /// Takes in what the report says of a linear.
    pub(crate) fn told(&mut self, track: usize, row: Option<&LinearRow>, notes: &[String]) {
        self.head.tracks[track].rows.extend(row.cloned());
        self.head.tracks[track].notes.extend_from_slice(notes);
    }

    /// Takes in what a track's experts were solved on.
    pub(crate) fn experts(&mut self, track: usize, coverage: &[ExpertCoverage]) {
        self.head.tracks[track].experts = coverage.to_vec();
    }

    /// Takes in what was gathered of the original's inputs.
    pub(crate) fn importance(&mut self, gathered: Vec<Importance>) {
        self.head.importance = gathered;
    }
}
