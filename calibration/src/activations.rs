//! The hidden states of a stream between stages: in memory as far as there is room, the rest elsewhere.
//!
//! Windows are independent of each other, so a stage reads a window's state, advances it and puts it back, some windows at a time, in order:
//! what is elsewhere is read and written in long runs. Numbers come back as they went, so where a window was kept changes nothing. Of a mixture of
//! experts each sees few tokens, so an expert's stages read and write the rows of its own tokens alone ([`ExpertStage`]); where tokens are sent stays in memory.
//!
//! At the end of a layer all that is known of a window is its residual stream. Whoever wants to go on from there later has it written to a
//! room of its own ([`Activations::advance`]'s `keep`); windows that have no place in memory then simply stay there until the next stage.
//!
//! This crate knows no files: a [`Room`] is whatever keeps numbers.

use std::borrow::Cow;
use std::ops::Range;
use std::sync::Arc;

use ndarray::{Array2, ArrayView2};
use rayon::prelude::*;

use crate::error::CalibrationError;
use crate::forward::routing::{Routed, Sent};
use crate::forward::{WAITING, WindowState};
use crate::weights::SourceError;

/// Numbers elsewhere than in memory, at places from 0 on.
pub trait Room: Send + Sync {
    /// Keeps `numbers` from `place` on.
    ///
    /// # Errors
    /// The room's own.
    fn write(&self, place: u64, numbers: &[f32]) -> Result<(), SourceError>;

    /// What was written at `place`.
    ///
    /// # Errors
    /// The room's own.
    fn read(&self, place: u64, numbers: &mut [f32]) -> Result<(), SourceError>;
}

/// How much of a stream is in memory.
#[derive(Clone)]
#[expect(missing_debug_implementations, reason = "a room need not have one")]
pub struct Space {
    /// Tokens whose states stay in memory, those of the first windows.
    pub tokens_in_memory: usize,
    /// Windows that a stage works on at a time.
    pub together: usize,
    /// Where the others wait between stages, in turns: what a stage leaves may be wider than what it found, and would lie on what later windows
    /// are still to find. None: all stay in memory.
    pub elsewhere: Option<[Arc<dyn Room>; 2]>,
}

impl Space {
    /// Everything in memory.
    #[must_use]
    pub fn unbounded() -> Self {
        Self { tokens_in_memory: usize::MAX, together: usize::MAX, elsewhere: None }
    }
}

/// The states of all windows.
#[expect(missing_debug_implementations, reason = "a room need not have one")]
pub struct Activations {
    windows: Vec<Window>,
    space: Space,
    /// Tokens of all windows.
    tokens: usize,
}

struct Window {
    /// Tokens of the windows before it, and its own.
    tokens: Range<usize>,
    state: State,
}

#[expect(clippy::large_enum_variant, reason = "nearly all are the large one")]
enum State {
    Here(WindowState),
    There(Away),
}

/// A state in a room.
#[derive(Clone)]
struct Away {
    room: Arc<dyn Room>,
    hidden: Part,
    waiting: [Option<Part>; WAITING],
    /// What experts are given, and which of them.
    routed: Option<(Part, Arc<Sent>)>,
}

/// `[rows, columns]` from a place on.
#[derive(Clone, Copy)]
struct Part {
    place: u64,
    rows: usize,
    columns: usize,
}

/// A stage of one expert that is not the last of its layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExpertStage {
    /// Its number in the layer.
    pub expert: usize,
    /// Whether its results are added to the residual stream, which else is not looked at; or else it reads what experts are given.
    pub writes_residual: bool,
}

impl Activations {
    /// The states that `embed` gives for windows of these lengths, by their numbers.
    ///
    /// # Errors
    /// Those of `embed` and of the room.
    pub fn start(
        lengths: &[usize],
        space: Space,
        embed: impl Fn(usize) -> Result<WindowState, SourceError> + Sync,
    ) -> Result<Self, CalibrationError> {
        let ranges = ranges(lengths);
        let tokens = lengths.iter().sum();
        let mut windows = Vec::with_capacity(lengths.len());
        for (first, chunk) in chunks(&ranges, space.together) {
            let embedded: Vec<Window> = chunk
                .par_iter()
                .enumerate()
                .map(|(offset, range)| {
                    let state = embed(first + offset)?;
                    let state = match space.home(range) {
                        None => State::Here(state),
                        Some(rooms) => State::There(put(&rooms[0], &state, range, tokens)?),
                    };
                    Ok::<_, SourceError>(Window { tokens: range.clone(), state })
                })
                .collect::<Result<_, _>>()
                .map_err(CalibrationError::Source)?;
            windows.extend(embedded);
        }
        Ok(Self { windows, space, tokens })
    }

    /// The states that [`Activations::advance`] left in `kept`, `[tokens, hidden]` for each window.
    ///
    /// # Errors
    /// Those of the room.
    pub fn restore(
        lengths: &[usize],
        hidden: usize,
        space: Space,
        kept: &Arc<dyn Room>,
    ) -> Result<Self, CalibrationError> {
        let ranges = ranges(lengths);
        let tokens = lengths.iter().sum();
        let mut windows = Vec::with_capacity(lengths.len());
        for (_, chunk) in chunks(&ranges, space.together) {
            let read: Vec<Window> = chunk
                .par_iter()
                .map(|range| {
                    let place = (range.start * hidden) as u64;
                    let hidden = Part { place, rows: range.len(), columns: hidden };
                    let there = Away::of_residual(kept, hidden);
                    // Read in any case, so that damage shows now.
                    let state = get(&there)?;
                    let away = space.home(range).is_some();
                    let state = if away { State::There(there) } else { State::Here(state) };
                    Ok::<_, SourceError>(Window { tokens: range.clone(), state })
                })
                .collect::<Result<_, _>>()
                .map_err(CalibrationError::Source)?;
            windows.extend(read);
        }
        Ok(Self { windows, space, tokens })
    }

    /// Tokens of all windows.
    #[must_use]
    pub fn tokens(&self) -> usize {
        self.tokens
    }

    /// How many windows there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.windows.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.windows.is_empty()
    }

    /// The state of one window.
    ///
    /// # Errors
    /// Those of the room.
    pub fn window(&self, index: usize) -> Result<Cow<'_, WindowState>, CalibrationError> {
        let window = &self.windows[index];
        match &window.state {
            State::Here(state) => Ok(Cow::Borrowed(state)),
            State::There(away) => get(away).map(Cow::Owned).map_err(CalibrationError::Source),
        }
    }

    /// What an expert's stage sees of one window: all of it, or the rows of its own tokens.
    ///
    /// # Errors
    /// Those of the room.
    pub fn window_for(
        &self,
        index: usize,
        stage: ExpertStage,
    ) -> Result<Cow<'_, WindowState>, CalibrationError> {
        match &self.windows[index].state {
            State::There(away) if away.routed.is_some() => {
                get_rows(away, stage).map(Cow::Owned).map_err(CalibrationError::Source)
            }
            _ => self.window(index),
        }
    }

    /// Tokens of all windows that are sent to an expert of the layer whose attention was run last.
    #[must_use]
    pub fn sent_to(&self, expert: usize) -> usize {
        let of_window = |window: &Window| match &window.state {
            State::Here(state) => state.sent_to(expert),
            State::There(away) => away.routed.as_ref().map_or(0, |(_, sent)| sent.to(expert).len()),
        };
        self.windows.iter().map(of_window).sum()
    }

    /// Advances every window by `step`. Residual streams are looked at where there is a `place`, the name of where they are then. With `keep`, at the end of a layer, the residual streams
    /// are left there too, `[tokens, hidden]` window after window. With `expert`, `step` is that stage's, and may be shown the rows of its tokens alone.
    ///
    /// # Errors
    /// A residual stream that is not finite, and those of the rooms.
    pub fn advance(
        &mut self,
        place: Option<&str>,
        keep: Option<&Arc<dyn Room>>,
        expert: Option<ExpertStage>,
        step: impl Fn(&mut WindowState) + Sync,
    ) -> Result<(), CalibrationError> {
        let (space, tokens) = (&self.space, self.tokens);
        let together = space.together.clamp(1, self.windows.len().max(1));
        // Where it was kept, if it was to be; nothing where it is not finite.
        let run =
            |state: &mut WindowState, range: &Range<usize>| -> Result<Option<Option<Away>>, SourceError> {
                step(state);
                if place.is_some() && !state.is_finite() {
                    return Ok(None);
                }
                let Some(room) = keep else { return Ok(Some(None)) };
                let place = (range.start * state.hidden().ncols()) as u64;
                let hidden = write(room, place, state.hidden())?;
                Ok(Some(Some(Away::of_residual(room, hidden))))
            };
        for (chunk, windows) in self.windows.chunks_mut(together).enumerate() {
            let advance = |window: &mut Window| -> Result<bool, SourceError> {
                let range = &window.tokens;
                let away = match &mut window.state {
                    State::Here(state) => return Ok(run(state, range)?.is_some()),
                    State::There(away) => away,
                };
                if let (Some(stage), true) = (expert, away.routed.is_some()) {
                    let mut state = get_rows(away, stage)?;
                    step(&mut state);
                    put_rows(away, stage, &state, range, tokens)?;
                    return Ok(true);
                }
                let mut state = get(away)?;
                *away = match (run(&mut state, range)?, &space.elsewhere) {
                    (None, _) => return Ok(false),
                    (Some(Some(kept)), _) => kept,
                    (Some(None), Some(rooms)) => {
                        let here = Arc::ptr_eq(&away.room, &rooms[0]);
                        put(&rooms[usize::from(here)], &state, range, tokens)?
                    }
                    (Some(None), None) => return Err("a window is elsewhere, and nowhere to go".into()),
                };
                Ok(true)
            };
            let results: Vec<Result<bool, SourceError>> = windows.par_iter_mut().map(advance).collect();
            for (offset, result) in results.into_iter().enumerate() {
                if !result.map_err(CalibrationError::Source)? {
                    let (window, place) = (chunk * together + offset, place.unwrap_or_default().to_owned());
                    return Err(CalibrationError::NotFinite { window, place });
                }
            }
        }
        Ok(())
    }
}

impl Space {
    /// The rooms of a window that does not stay in memory.
    fn home(&self, tokens: &Range<usize>) -> Option<[Arc<dyn Room>; 2]> {
        self.elsewhere.clone().filter(|_| tokens.end > self.tokens_in_memory)
    }
}

/// Tokens before each window and its own.
fn ranges(lengths: &[usize]) -> Vec<Range<usize>> {
    let mut end = 0;
    let mut range = |&length: &usize| {
        end += length;
        end - length..end
    };
    lengths.iter().map(&mut range).collect()
}

fn chunks<T>(items: &[T], together: usize) -> impl Iterator<Item = (usize, &[T])> {
    let together = together.clamp(1, items.len().max(1));
    items.chunks(together).enumerate().map(move |(number, chunk)| (number * together, chunk))
}

impl Away {
    /// One of a residual stream alone.
    fn of_residual(room: &Arc<dyn Room>, hidden: Part) -> Self {
        Self { room: room.clone(), hidden, waiting: [None; WAITING], routed: None }
    }
}

/// Writes a state to its home: the residual streams of all windows first, then what experts are given, then what waits for the next stage.
fn put(
    room: &Arc<dyn Room>,
    state: &WindowState,
    tokens: &Range<usize>,
    all: usize,
) -> Result<Away, SourceError> {
    let mut before = 0;
    // The same columns in every window.
    let mut place = |columns: usize| {
        let place = all * before + tokens.start * columns;
        before += columns;
        place as u64
    };
    let mut put = |numbers: ArrayView2<'_, f32>| write(room, place(numbers.ncols()), numbers);
    let hidden = put(state.hidden())?;
    let routed = state.routing().map(|routed| {
        let (input, sent) = routed.parts();
        Ok::<_, SourceError>((put(input)?, sent.clone()))
    });
    let routed = routed.transpose()?;
    let mut waiting = [None; WAITING];
    for (part, numbers) in waiting.iter_mut().zip(state.waiting()) {
        *part = numbers.map(&mut put).transpose()?;
    }
    Ok(Away { room: room.clone(), hidden, waiting, routed })
}

fn write(room: &Arc<dyn Room>, place: u64, numbers: ArrayView2<'_, f32>) -> Result<Part, SourceError> {
    room.write(place, numbers.as_standard_layout().as_slice().unwrap_or_default())?;
    let (rows, columns) = numbers.dim();
    Ok(Part { place, rows, columns })
}

fn read(room: &Arc<dyn Room>, Part { place, rows, columns }: Part) -> Result<Array2<f32>, SourceError> {
    let mut numbers = vec![0.0; rows * columns];
    room.read(place, &mut numbers)?;
    Ok(Array2::from_shape_vec((rows, columns), numbers)?)
}

fn get(away: &Away) -> Result<WindowState, SourceError> {
    let mut waiting = [const { None }; WAITING];
    for (numbers, part) in waiting.iter_mut().zip(away.waiting) {
        *numbers = part.map(|part| read(&away.room, part)).transpose()?;
    }
    let routed = away.routed.as_ref().map(|(input, sent)| {
        Ok::<_, SourceError>(Routed::from_parts(read(&away.room, *input)?, sent.clone()))
    });
    Ok(WindowState::from_parts(read(&away.room, away.hidden)?, waiting, routed.transpose()?))
}

/// The rows of an expert's tokens of what its stage looks at; of the rest rows without columns.
fn get_rows(away: &Away, stage: ExpertStage) -> Result<WindowState, SourceError> {
    let (input, sent) = away.routed.as_ref().ok_or("no token was sent to experts")?;
    let tokens = runs(sent.to(stage.expert));
    let count = sent.to(stage.expert).len();
    let rows = |part: Part, wanted: bool| {
        let columns = if wanted { part.columns } else { 0 };
        let mut numbers = Array2::zeros((count, columns));
        let mut rest = numbers.as_slice_mut().unwrap_or_default();
        for run in tokens.iter().filter(|_| wanted) {
            let (part_of, behind) = rest.split_at_mut(run.len() * columns);
            away.room.read(part.place + (run.start * columns) as u64, part_of)?;
            rest = behind;
        }
        Ok::<_, SourceError>(numbers)
    };
    let routed = Routed::of_expert(sent, stage.expert, rows(*input, !stage.writes_residual)?);
    let mut waiting = [const { None }; WAITING];
    for (numbers, part) in waiting.iter_mut().zip(away.waiting).filter(|_| stage.writes_residual) {
        *numbers = part.map(|part| read(&away.room, part)).transpose()?;
    }
    let hidden = rows(away.hidden, stage.writes_residual)?;
    Ok(WindowState::from_parts(hidden, waiting, Some(routed)))
}

/// Writes back what the stage made of them.
fn put_rows(
    away: &mut Away,
    stage: ExpertStage,
    state: &WindowState,
    tokens: &Range<usize>,
    all: usize,
) -> Result<(), SourceError> {
    let (input, sent) = away.routed.as_ref().ok_or("no token was sent to experts")?;
    if stage.writes_residual {
        let hidden = state.hidden();
        let hidden = hidden.as_standard_layout();
        let mut rest = hidden.as_slice().unwrap_or_default();
        for run in runs(sent.to(stage.expert)) {
            let columns = away.hidden.columns;
            let (part_of, behind) = rest.split_at(run.len() * columns);
            away.room.write(away.hidden.place + (run.start * columns) as u64, part_of)?;
            rest = behind;
        }
    }
    let mut before = away.hidden.columns + input.columns;
    let mut waiting = [None; WAITING];
    for (part, numbers) in waiting.iter_mut().zip(state.waiting()) {
        let Some(numbers) = numbers else { continue };
        let place = all * before + tokens.start * numbers.ncols();
        *part = Some(write(&away.room, place as u64, numbers)?);
        before += numbers.ncols();
    }
    away.waiting = waiting;
    Ok(())
}

/// Tokens that follow each other.
fn runs(sent: &[(usize, f32)]) -> Vec<Range<usize>> {
    sent.chunk_by(|(a, _), (b, _)| a + 1 == *b).map(|run| run[0].0..run[0].0 + run.len()).collect()
}

/// What a pass backwards needs of the pass forwards: the residual streams before every layer, last in, first out.
#[expect(missing_debug_implementations, reason = "a room need not have one")]
pub struct History {
    room: Option<Arc<dyn Room>>,
    layers: Vec<Vec<Past>>,
    end: u64,
}

enum Past {
    Here(Array2<f32>),
    There(Part),
}

impl History {
    /// In memory, or in a room.
    #[must_use]
    pub fn new(room: Option<Arc<dyn Room>>) -> Self {
        Self { room, layers: Vec::new(), end: 0 }
    }

    /// Adds the residual streams before a layer.
    ///
    /// # Errors
    /// Those of the room.
    pub fn push<'a>(
        &mut self,
        streams: impl Iterator<Item = ArrayView2<'a, f32>>,
    ) -> Result<(), CalibrationError> {
        let (room, end) = (&self.room, &mut self.end);
        let past = streams.map(|stream| match room {
            None => Ok(Past::Here(stream.to_owned())),
            Some(room) => {
                let part = write(room, *end, stream).map_err(CalibrationError::Source)?;
                *end += stream.len() as u64;
                Ok(Past::There(part))
            }
        });
        let past = past.collect::<Result<_, CalibrationError>>()?;
        self.layers.push(past);
        Ok(())
    }

    /// Takes out those before the layer that was added last; none behind the first.
    ///
    /// # Errors
    /// Those of the room.
    pub fn pop(&mut self) -> Result<Vec<Array2<f32>>, CalibrationError> {
        let past = self.layers.pop().unwrap_or_default();
        let back = past.into_iter().map(|past| match (past, &self.room) {
            (Past::There(part), Some(room)) => {
                self.end = self.end.min(part.place);
                read(room, part).map_err(CalibrationError::Source)
            }
            (Past::Here(stream), _) => Ok(stream),
            (Past::There(_), None) => Err(CalibrationError::Source("the room is gone".into())),
        });
        back.collect()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    #[derive(Default)]
    struct Shelf(Mutex<Vec<f32>>);

    impl Room for Shelf {
        fn write(&self, place: u64, numbers: &[f32]) -> Result<(), SourceError> {
            let mut shelf = self.0.lock().unwrap();
            let place = place as usize;
            let end = shelf.len().max(place + numbers.len());
            shelf.resize(end, f32::NAN);
            shelf[place..place + numbers.len()].copy_from_slice(numbers);
            Ok(())
        }

        fn read(&self, place: u64, numbers: &mut [f32]) -> Result<(), SourceError> {
            let shelf = self.0.lock().unwrap();
            numbers.copy_from_slice(&shelf[place as usize..place as usize + numbers.len()]);
            Ok(())
        }
    }

    const LENGTHS: [usize; 4] = [3, 1, 5, 2];

    fn rows(window: usize) -> Array2<f32> {
        Array2::from_shape_fn((LENGTHS[window], 2), |(i, j)| (window * 100 + i * 10 + j) as f32)
    }

    fn embed(window: usize) -> Result<WindowState, SourceError> {
        Ok(WindowState::new(rows(window)))
    }

    fn first_half(state: &mut WindowState) {
        let wide =
            Array2::from_shape_fn((state.hidden().nrows(), 3), |(i, j)| state.hidden()[[i, j % 2]] * 2.0);
        let wider = Array2::from_shape_fn((wide.nrows(), 4), |(i, j)| wide[[i, j % 3]] - 1.0);
        *state = WindowState::from_parts(
            state.hidden().to_owned(),
            [Some(wide), Some(wider), None, None, None],
            None,
        );
    }

    fn second_half(state: &mut WindowState) {
        let [wide, wider, ..] = state.waiting().map(|part| part.map(|part| part.to_owned()));
        let (wide, wider) = (wide.unwrap(), wider.unwrap());
        let hidden = Array2::from_shape_fn(state.hidden().dim(), |(i, j)| {
            state.hidden()[[i, j]] + wide[[i, j + 1]] * wider[[i, j + 2]]
        });
        *state = WindowState::new(hidden);
    }

    fn all(activations: &Activations) -> Vec<Array2<f32>> {
        (0..activations.len()).map(|w| activations.window(w).unwrap().hidden().to_owned()).collect()
    }

    #[test]
    fn where_windows_are_changes_nothing_and_kept_states_go_on() {
        let run = |tokens_in_memory, together| {
            let elsewhere = [0, 1].map(|_| Arc::new(Shelf::default()) as Arc<dyn Room>);
            let space = Space { tokens_in_memory, together, elsewhere: Some(elsewhere) };
            let mut stream = Activations::start(&LENGTHS, space.clone(), embed).unwrap();
            let rooms: [Arc<dyn Room>; 2] = [Arc::new(Shelf::default()), Arc::new(Shelf::default())];
            for layer in 0..3 {
                stream.advance(None, None, None, first_half).unwrap();
                stream.advance(Some("b"), Some(&rooms[layer % 2]), None, second_half).unwrap();
            }
            let found = all(&stream);
            for again in [tokens_in_memory, 0, usize::MAX] {
                let space = Space { tokens_in_memory: again, ..space.clone() };
                let restored = Activations::restore(&LENGTHS, 2, space, &rooms[0]).unwrap();
                assert_eq!(all(&restored), found);
            }
            found
        };
        let expected = run(usize::MAX, usize::MAX);
        for tokens in [0, 3, 4, 9, 11] {
            for together in [1, 2, 3] {
                assert_eq!(run(tokens, together), expected, "{tokens} {together}");
            }
        }
    }

    #[test]
    fn what_grows_from_stage_to_stage_spoils_no_other_window() {
        let widen = |state: &mut WindowState| {
            let [wide, ..] = state.waiting().map(|part| part.map(|part| part.to_owned()));
            let columns = wide.as_ref().map_or(2, |wide| 3 * wide.ncols());
            let wide = wide.unwrap_or_else(|| state.hidden().to_owned());
            let grown = Array2::from_shape_fn((wide.nrows(), columns), |(i, j)| wide[[i, j / 3]] + 1.0);
            *state = WindowState::from_parts(
                state.hidden().to_owned(),
                [Some(grown), None, None, None, None],
                None,
            );
        };
        let run = |tokens_in_memory| {
            let elsewhere = [0, 1].map(|_| Arc::new(Shelf::default()) as Arc<dyn Room>);
            let space = Space { tokens_in_memory, together: 1, elsewhere: Some(elsewhere) };
            let mut stream = Activations::start(&LENGTHS, space, embed).unwrap();
            (0..4).for_each(|_| stream.advance(None, None, None, widen).unwrap());
            let wide = |w| stream.window(w).unwrap().waiting()[0].unwrap().to_owned();
            (0..stream.len()).map(wide).collect::<Vec<_>>()
        };
        assert_eq!(run(0), run(usize::MAX));
    }

    #[test]
    fn experts_read_and_write_the_rows_of_their_tokens() {
        const EXPERTS: usize = 3;
        let route = |state: &mut WindowState| {
            let input = state.hidden().mapv(|x| x + 0.5);
            let to = |expert: usize| {
                let tokens = (0..input.nrows()).filter(|token| (token * 7 + expert * 5) % 3 != 1);
                tokens.map(|token| (token, 0.25 + expert as f32)).collect()
            };
            let sent = Sent { to: (0..EXPERTS).map(to).collect(), shared: None };
            let routed = Routed::from_parts(input, Arc::new(sent));
            *state =
                WindowState::from_parts(state.hidden().to_owned(), [const { None }; WAITING], Some(routed));
        };
        let run = |tokens_in_memory| {
            let elsewhere = [0, 1].map(|_| Arc::new(Shelf::default()) as Arc<dyn Room>);
            let space = Space { tokens_in_memory, together: 2, elsewhere: Some(elsewhere) };
            let mut stream = Activations::start(&LENGTHS, space, embed).unwrap();
            stream.advance(Some("a"), None, None, route).unwrap();
            let mut seen = Vec::new();
            for expert in 0..EXPERTS {
                let first = ExpertStage { expert, writes_residual: false };
                for window in 0..stream.len() {
                    let state = stream.window_for(window, first).unwrap();
                    seen.push(state.routing().unwrap().gathered(expert));
                }
                let inner = |state: &mut WindowState| {
                    let routed = state.routing().unwrap().clone();
                    let given = routed.gathered(expert);
                    let inner = Array2::from_shape_fn((given.nrows(), 5), |(i, j)| given[[i, j % 2]] * 2.0);
                    let waiting = [None, Some(inner), None, None, None];
                    *state = WindowState::from_parts(state.hidden().to_owned(), waiting, Some(routed));
                };
                stream.advance(None, None, Some(first), inner).unwrap();
                let second = ExpertStage { expert, writes_residual: true };
                for window in 0..stream.len() {
                    seen.push(stream.window_for(window, second).unwrap().waiting()[1].unwrap().to_owned());
                }
                let add = |state: &mut WindowState| {
                    let routed = state.routing().unwrap().clone();
                    let inner = state.waiting()[1].unwrap().to_owned();
                    let mut hidden = state.hidden().to_owned();
                    for (row, &(token, weight)) in inner.outer_iter().zip(routed.sent(expert)) {
                        hidden.row_mut(token).mapv_inplace(|x| x + weight * row[4]);
                    }
                    *state = WindowState::from_parts(hidden, [const { None }; WAITING], Some(routed));
                };
                stream.advance(None, None, Some(second), add).unwrap();
            }
            let sent: Vec<usize> = (0..EXPERTS).map(|expert| stream.sent_to(expert)).collect();
            (all(&stream), seen, sent)
        };
        let expected = run(usize::MAX);
        assert!(expected.2.iter().all(|&sent| sent > 4));
        for tokens in [0, 4, 9] {
            assert_eq!(run(tokens), expected, "{tokens}");
        }
    }

    #[test]
    fn the_window_that_is_not_finite_is_named() {
        let mut stream = Activations::start(&LENGTHS, Space::unbounded(), embed).unwrap();
        let spoil = |state: &mut WindowState| {
            if state.hidden().nrows() == 5 {
                *state = WindowState::new(Array2::from_elem((5, 2), f32::NAN));
            }
        };
        let error = stream.advance(Some("layer 7"), None, None, spoil).unwrap_err();
        assert!(matches!(error, CalibrationError::NotFinite { window: 2, place } if place == "layer 7"));
    }

    #[test]
    fn the_past_comes_back_in_reverse_from_memory_and_from_a_room() {
        let room: Arc<dyn Room> = Arc::new(Shelf::default());
        for room in [None, Some(room)] {
            let mut history = History::new(room);
            let layers: Vec<Vec<_>> =
                (0..3).map(|layer| (0..4).map(|w| rows(w) * layer as f32).collect()).collect();
            for layer in &layers {
                history.push(layer.iter().map(|stream| stream.view())).unwrap();
            }
            for layer in layers.iter().rev() {
                assert_eq!(history.pop().unwrap(), *layer);
            }
            assert!(history.pop().unwrap().is_empty());
        }
    }
}
