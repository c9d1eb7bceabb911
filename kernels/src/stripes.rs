//! Symmetric and triangular matrices that may be too large for memory: lower triangles in stripes of rows.
//!
//! A stripe is [`HEIGHT`] rows down to and with the tile on the diagonal, so that a matrix takes half of what its square does. Stripes are in memory or
//! in a [`Store`], all of them, as the [`Shelf`] says on which a matrix is made; what is made of it lies there too. Every operation is cut by rows and
//! columns alone, in one order, so that neither the shelf nor the number of threads changes a bit.
//!
//! Here: keeping and visiting stripes. `stripes/factor.rs` factors and solves, `stripes/forms.rs` multiplies.

mod factor;
mod forms;
#[cfg(test)]
mod tests;

use std::fmt::Debug;
use std::io;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use ndarray::{Array2, ArrayView2, ArrayViewMut2, CowArray, Ix2, s};
use rayon::prelude::*;

pub use factor::FactorError;

use crate::ranks::{self, Ranks};

/// Rows of a stripe.
pub const HEIGHT: usize = 256;
/// Columns of a tile that one thread computes.
pub const WIDTH: usize = 512;
/// Numbers that become bytes, and back, at a time.
const NUMBERS: usize = 1 << 16;

/// Bytes elsewhere than in memory, at places from 0 on.
pub trait Store: Debug + Send + Sync {
    /// Keeps `bytes` from `place` on.
    ///
    /// # Errors
    /// The store's own.
    fn write(&self, place: u64, bytes: &[u8]) -> io::Result<()>;

    /// What was written at `place`.
    ///
    /// # Errors
    /// The store's own.
    fn read(&self, place: u64, bytes: &mut [u8]) -> io::Result<()>;
}

/// Where matrices are kept.
#[derive(Debug, Default)]
pub struct Shelf(Option<Away>);

#[derive(Debug)]
struct Away {
    store: Arc<dyn Store>,
    /// Bytes of stripes that may be in memory at a time.
    working: u64,
    extents: Mutex<Extents>,
}

/// What of a store is taken.
#[derive(Debug, Default)]
struct Extents {
    end: u64,
    free: Vec<(u64, u64)>,
}

impl Shelf {
    /// All in memory.
    #[must_use]
    pub fn memory() -> Arc<Self> {
        Arc::default()
    }

    /// All in `store`, but for about `working` bytes while they are worked on, and two stripes at least. The more of them, the fewer times a
    /// factorization reads what it has written.
    #[must_use]
    pub fn of_store(store: Arc<dyn Store>, working: u64) -> Arc<Self> {
        Arc::new(Self(Some(Away { store, working, extents: Mutex::default() })))
    }

    fn take(&self, bytes: u64) -> Option<u64> {
        let away = self.0.as_ref()?;
        let mut extents = away.extents.lock().unwrap_or_else(PoisonError::into_inner);
        let fits = extents.free.iter().position(|&(_, length)| length == bytes);
        Some(match fits {
            Some(index) => extents.free.swap_remove(index).0,
            None => {
                extents.end += bytes;
                extents.end - bytes
            }
        })
    }

    fn give_back(&self, place: u64, bytes: u64) {
        if let Some(away) = &self.0 {
            away.extents.lock().unwrap_or_else(PoisonError::into_inner).free.push((place, bytes));
        }
    }
}

/// A type of numbers with a form in bytes.
pub trait Number: Copy + Default + Debug + PartialEq + Send + Sync {
    /// Bytes of one.
    const BYTES: usize;

    /// Writes numbers, the least significant byte of each first, as many as there is room for.
    fn put(numbers: &[Self], bytes: &mut [u8]);

    /// Reads them.
    fn get(bytes: &[u8], numbers: &mut [Self]);
}

macro_rules! number {
    ($type:ty) => {
        impl Number for $type {
            const BYTES: usize = size_of::<$type>();

            fn put(numbers: &[Self], bytes: &mut [u8]) {
                for (bytes, number) in bytes.as_chunks_mut().0.iter_mut().zip(numbers) {
                    *bytes = number.to_le_bytes();
                }
            }

            fn get(bytes: &[u8], numbers: &mut [Self]) {
                for (number, bytes) in numbers.iter_mut().zip(bytes.as_chunks().0) {
                    *number = Self::from_le_bytes(*bytes);
                }
            }
        }
    };
}

number!(u8);
number!(u16);
number!(f32);
number!(f64);

/// The lower triangle of a matrix `[n, n]`. What its tiles on the diagonal hold above it is for their maker to say.
#[derive(Debug)]
pub struct Triangle<T: Number> {
    size: usize,
    stripes: Vec<Stripe<T>>,
    shelf: Arc<Shelf>,
    /// Where all stripes that are away lie.
    extent: Option<(u64, u64)>,
}

#[derive(Debug)]
enum Stripe<T> {
    Here(Array2<T>),
    /// Zeros until it was written.
    There {
        place: u64,
        written: bool,
    },
}

/// Bytes of the triangle of a matrix `[n, n]` of numbers of so many bytes.
#[must_use]
pub fn bytes(n: u64, number: u64) -> u64 {
    let height = HEIGHT as u64;
    let whole = n / height;
    number * (height * height * (whole * (whole + 1) / 2) + n % height * n)
}

impl<T: Number> Triangle<T> {
    /// Zeros, on `shelf`.
    #[must_use]
    pub fn zeros(size: usize, shelf: &Arc<Shelf>) -> Self {
        let length = bytes(size as u64, T::BYTES as u64);
        let extent = shelf.take(length).map(|place| (place, length));
        let mut end = extent.map_or(0, |(place, _)| place);
        let stripe = |number: usize| {
            let rows = number * HEIGHT..size.min((number + 1) * HEIGHT);
            if extent.is_none() {
                // Pages of zeros are there once they are written to.
                return Stripe::Here(Array2::from_elem((rows.len(), rows.end), T::default()));
            }
            let place = end;
            end += (rows.len() * rows.end * T::BYTES) as u64;
            Stripe::There { place, written: false }
        };
        let stripes = (0..size.div_ceil(HEIGHT)).map(stripe).collect();
        Self { size, stripes, shelf: shelf.clone(), extent }
    }

    /// The lower triangle of `matrix` `[n, n]`, and its mirror image in the tiles on the diagonal, in memory.
    ///
    /// # Panics
    /// When `matrix` is not square.
    #[must_use]
    pub fn of_symmetric(matrix: ArrayView2<'_, T>) -> Self {
        let n = matrix.nrows();
        assert_eq!(matrix.ncols(), n, "a triangle of a matrix {:?}", matrix.dim());
        let mut triangle = Self::zeros(n, &Shelf::memory());
        for (number, stripe) in triangle.stripes.iter_mut().enumerate() {
            let first = number * HEIGHT;
            let Stripe::Here(stripe) = stripe else { continue };
            for ((row, column), entry) in stripe.indexed_iter_mut() {
                let row = first + row;
                *entry = matrix[[row.max(column), row.min(column)]];
            }
        }
        triangle
    }

    /// A diagonal matrix, on `shelf`.
    ///
    /// # Errors
    /// Those of the store.
    pub fn of_diagonal(values: &[T], shelf: &Arc<Shelf>) -> io::Result<Self> {
        let mut triangle = Self::zeros(values.len(), shelf);
        triangle.modify(|rows, mut stripe| {
            for (row, place) in rows.enumerate() {
                stripe[[row, place]] = values[place];
            }
        })?;
        Ok(triangle)
    }

    /// `n`.
    #[must_use]
    pub fn size(&self) -> usize {
        self.size
    }

    /// Where it is kept.
    #[must_use]
    pub fn shelf(&self) -> &Arc<Shelf> {
        &self.shelf
    }

    /// How many stripes there are.
    #[must_use]
    pub fn stripes(&self) -> usize {
        self.stripes.len()
    }

    /// The rows of a stripe; it has as many columns as its last row's place and one.
    #[must_use]
    pub fn rows(&self, stripe: usize) -> Range<usize> {
        stripe * HEIGHT..self.size.min((stripe + 1) * HEIGHT)
    }

    /// A stripe, `[rows, rows.end]`.
    ///
    /// # Errors
    /// Those of the store.
    pub fn read(&self, stripe: usize) -> io::Result<CowArray<'_, T, Ix2>> {
        match &self.stripes[stripe] {
            Stripe::Here(numbers) => Ok(numbers.view().into()),
            &Stripe::There { place, written } => self.fetch(stripe, place, written).map(Into::into),
        }
    }

    fn fetch(&self, stripe: usize, place: u64, written: bool) -> io::Result<Array2<T>> {
        let rows = self.rows(stripe);
        let mut numbers = Array2::default((rows.len(), rows.end));
        let Some(away) = self.shelf.0.as_ref().filter(|_| written) else { return Ok(numbers) };
        let flat = numbers.as_slice_mut().unwrap_or_default();
        let mut bytes = vec![0; T::BYTES * NUMBERS.min(flat.len())];
        for (part, numbers) in flat.chunks_mut(NUMBERS).enumerate() {
            let bytes = &mut bytes[..T::BYTES * numbers.len()];
            away.store.read(place + (part * NUMBERS * T::BYTES) as u64, bytes)?;
            T::get(bytes, numbers);
        }
        Ok(numbers)
    }

    /// Takes a stripe out, to be put back.
    fn take(&mut self, stripe: usize) -> io::Result<Array2<T>> {
        match &mut self.stripes[stripe] {
            Stripe::Here(numbers) => Ok(std::mem::take(numbers)),
            &mut Stripe::There { place, written } => self.fetch(stripe, place, written),
        }
    }

    /// Puts a stripe in its place.
    fn put(&mut self, stripe: usize, numbers: Array2<T>) -> io::Result<()> {
        let away = self.shelf.0.as_ref();
        match (&mut self.stripes[stripe], away) {
            (Stripe::There { place, written }, Some(away)) => {
                let numbers = numbers.as_standard_layout();
                let flat = numbers.as_slice().unwrap_or_default();
                let mut bytes = vec![0; T::BYTES * NUMBERS.min(flat.len())];
                for (part, numbers) in flat.chunks(NUMBERS).enumerate() {
                    let bytes = &mut bytes[..T::BYTES * numbers.len()];
                    T::put(numbers, bytes);
                    away.store.write(*place + (part * NUMBERS * T::BYTES) as u64, bytes)?;
                }
                *written = true;
            }
            (here, _) => *here = Stripe::Here(numbers),
        }
        Ok(())
    }

    /// What `look` makes of each stripe, given its rows, in their order; at the same time where they are in memory.
    ///
    /// # Errors
    /// Those of the store.
    pub fn map<R: Send>(
        &self,
        look: impl Fn(Range<usize>, ArrayView2<'_, T>) -> R + Sync,
    ) -> io::Result<Vec<R>> {
        let visit = |stripe: usize| Ok(look(self.rows(stripe), self.read(stripe)?.view()));
        if self.shelf.0.is_some() {
            return (0..self.stripes()).map(visit).collect();
        }
        (0..self.stripes()).into_par_iter().map(visit).collect()
    }

    /// Lets `change` work on each stripe, given its rows; at the same time where they are in memory.
    ///
    /// # Errors
    /// Those of the store.
    pub fn modify(&mut self, change: impl Fn(Range<usize>, ArrayViewMut2<'_, T>) + Sync) -> io::Result<()> {
        self.modify_some(|_| true, change)
    }

    /// The same with stripes of whose numbers `chosen` holds.
    ///
    /// # Errors
    /// Those of the store.
    pub fn modify_some(
        &mut self,
        chosen: impl Fn(usize) -> bool + Sync,
        change: impl Fn(Range<usize>, ArrayViewMut2<'_, T>) + Sync,
    ) -> io::Result<()> {
        if self.shelf.0.is_some() {
            return (0..self.stripes()).filter(|&stripe| chosen(stripe)).try_for_each(|stripe| {
                let mut numbers = self.take(stripe)?;
                change(self.rows(stripe), numbers.view_mut());
                self.put(stripe, numbers)
            });
        }
        let size = self.size;
        let stripes = self.stripes.par_iter_mut().enumerate().filter(|(stripe, _)| chosen(*stripe));
        stripes.for_each(|(stripe, numbers)| {
            if let Stripe::Here(numbers) = numbers {
                change(stripe * HEIGHT..size.min((stripe + 1) * HEIGHT), numbers.view_mut());
            }
        });
        Ok(())
    }

    /// Gives `readers` each stripe as the rank has it that owns its number, counted from `first` on. Everyone else has what it had.
    ///
    /// # Errors
    /// Those of the store, and a rank that failed.
    pub fn share(&mut self, ranks: &dyn Ranks, first: usize, readers: &[usize]) -> io::Result<()> {
        let reads = readers.contains(&ranks.rank());
        for stripe in 0..self.stripes() {
            let owner = (first + stripe) % ranks.size();
            let mut message = Vec::new();
            if owner == ranks.rank() {
                ranks::put(&mut message, self.read(stripe)?.view());
            }
            let message = ranks::tell(ranks, owner, readers, message)?;
            if reads && owner != ranks.rank() {
                self.put(stripe, ranks::take(&mut &message[..])?)?;
            }
        }
        Ok(())
    }

    /// Entries of another type, on the same shelf.
    ///
    /// # Errors
    /// Those of the store.
    pub fn convert<U: Number>(&self, entry: impl Fn(T) -> U + Sync) -> io::Result<Triangle<U>> {
        let mut made = Triangle::zeros(self.size, &self.shelf);
        self.fill(&mut made, |to, from| *to = entry(*from))?;
        Ok(made)
    }

    /// A second one, on the same shelf.
    ///
    /// # Errors
    /// Those of the store.
    pub fn copy(&self) -> io::Result<Self> {
        self.convert(|entry| entry)
    }

    /// Changes each entry by that of `other`.
    ///
    /// # Errors
    /// Those of the stores.
    ///
    /// # Panics
    /// When the sizes differ.
    pub fn combine(&mut self, other: &Self, change: impl Fn(&mut T, &T) + Sync) -> io::Result<()> {
        other.fill(self, change)
    }

    fn fill<U: Number>(&self, to: &mut Triangle<U>, change: impl Fn(&mut U, &T) + Sync) -> io::Result<()> {
        assert_eq!(to.size, self.size, "sizes of two triangles");
        for stripe in 0..self.stripes() {
            let from = self.read(stripe)?;
            let mut numbers = to.take(stripe)?;
            let rows = numbers.outer_iter_mut().collect::<Vec<_>>();
            rows.into_par_iter().zip_eq(from.outer_iter().collect::<Vec<_>>()).for_each(|(mut to, from)| {
                to.iter_mut().zip(from).for_each(|(to, from)| change(to, from));
            });
            to.put(stripe, numbers)?;
        }
        Ok(())
    }

    /// The diagonal.
    ///
    /// # Errors
    /// Those of the store.
    pub fn diagonal(&self) -> io::Result<Vec<T>> {
        let parts = self.map(|rows, stripe| stripe.slice(s![.., rows.start..]).diag().to_vec())?;
        Ok(parts.concat())
    }

    /// The whole matrix, `[n, n]`: symmetric, or, where it is `triangular`, with zeros above the diagonal.
    ///
    /// # Errors
    /// Those of the store.
    pub fn dense<U: Number>(&self, triangular: bool, entry: impl Fn(T) -> U + Sync) -> io::Result<Array2<U>> {
        let mut dense = Array2::default((self.size, self.size));
        for stripe in 0..self.stripes() {
            let (rows, numbers) = (self.rows(stripe), self.read(stripe)?);
            for (row, numbers) in rows.zip(numbers.outer_iter()) {
                for (column, &number) in numbers.iter().enumerate().take(row + 1) {
                    let number = entry(number);
                    dense[[row, column]] = number;
                    if !triangular {
                        dense[[column, row]] = number;
                    }
                }
            }
        }
        Ok(dense)
    }

    /// Fills it by groups of stripes that are in memory together: `visit` is told their numbers and given them.
    ///
    /// # Errors
    /// Those of the store and of `visit`.
    pub fn fill_groups<E: From<io::Error>>(
        &mut self,
        mut visit: impl FnMut(Range<usize>, &mut [Array2<T>]) -> Result<(), E>,
    ) -> Result<(), E> {
        for group in self.groups() {
            let mut stripes =
                group.clone().map(|stripe| self.take(stripe)).collect::<io::Result<Vec<_>>>()?;
            visit(group.clone(), &mut stripes)?;
            for (stripe, numbers) in group.zip(stripes) {
                self.put(stripe, numbers)?;
            }
        }
        Ok(())
    }

    /// Stripes that are in memory together.
    fn groups(&self) -> Vec<Range<usize>> {
        let all = self.stripes();
        let widest = (HEIGHT * self.size * T::BYTES) as u64;
        let together = match &self.shelf.0 {
            None => all,
            // One passes by beside them.
            Some(away) => usize::try_from(away.working / widest.max(1)).unwrap_or(all).saturating_sub(1),
        };
        let together = together.clamp(1, all.max(1));
        (0..all).step_by(together).map(|first| first..all.min(first + together)).collect()
    }
}

impl<T: Number> Drop for Triangle<T> {
    fn drop(&mut self) {
        if let Some((place, length)) = self.extent {
            self.shelf.give_back(place, length);
        }
    }
}
