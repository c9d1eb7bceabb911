//! Ranks: several processes that do one job. Each is shown the same numbers in the same order and does its share of the work on them, so that
//! what comes of it does not depend on how many there are.
//!
//! Whatever can be shared out is numbered, and number `n` is rank `n % size`'s. What comes of a share is told to the others, or to one of
//! them: that is all that ranks do. Every rank makes the same calls in the same order, on the thread that directs the work.
//!
//! [`Alone`] is the one process of a run without others. [`threads()`] are ranks of one process, for tests.

mod parcel;
mod threads;

use std::fmt::Debug;
use std::io;
use std::sync::Arc;

pub use parcel::{put, put_factors, take, take_factors};
pub use threads::threads;

/// The processes of a run, as one of them sees them.
pub trait Ranks: Debug + Send + Sync {
    /// This one's number.
    fn rank(&self) -> usize;

    /// How many there are.
    fn size(&self) -> usize;

    /// Gives everyone the `message` of `root`; that of others is not looked at.
    ///
    /// # Errors
    /// Another rank has failed, or the way to it.
    fn broadcast(&self, root: usize, message: Vec<u8>) -> io::Result<Vec<u8>>;

    /// Gives `to` the `message` of `from`, and everyone else an empty one at once.
    ///
    /// # Errors
    /// Another rank has failed, or the way to it.
    fn pass(&self, from: usize, to: usize, message: Vec<u8>) -> io::Result<Vec<u8>>;

    /// What this rank has sent and received so far.
    fn traffic(&self) -> Traffic;

    /// What another rank has told of its end, once a call has failed for that reason.
    fn known_failure(&self) -> Option<Failure> {
        None
    }

    /// The last call: rank 0 tells how the job ended, `failure` being this rank's own word; gives what everyone is to end with.
    fn end(&self, failure: Option<Failure>) -> Option<Failure>;

    /// Whether this rank does the share of this number.
    fn owns(&self, number: usize) -> bool {
        number % self.size() == self.rank()
    }

    /// Whether there is no other.
    fn is_alone(&self) -> bool {
        self.size() == 1
    }

    /// Whether what happens outside of the job's numbers, such as files, is this rank's.
    fn is_first(&self) -> bool {
        self.rank() == 0
    }
}

/// Why a job ended before it was done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// What the process ends with.
    pub code: u8,
    /// What to tell.
    pub problem: String,
    /// The rank that failed.
    pub rank: usize,
}

/// Bytes between ranks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// From this one to others.
    pub sent: u64,
    /// From others to this one.
    pub received: u64,
}

/// Gives `readers` the `message` of `from`: all at once where there are several, even if there are ranks besides.
///
/// # Errors
/// Another rank has failed, or the way to it.
pub fn tell(ranks: &dyn Ranks, from: usize, readers: &[usize], message: Vec<u8>) -> io::Result<Vec<u8>> {
    match readers {
        [] => Ok(Vec::new()),
        &[reader] => ranks.pass(from, reader, message),
        _ => ranks.broadcast(from, message),
    }
}

/// One process without others.
#[derive(Clone, Copy, Debug, Default)]
pub struct Alone;

impl Alone {
    /// It.
    #[must_use]
    pub fn ranks() -> Arc<dyn Ranks> {
        Arc::new(Self)
    }
}

impl Ranks for Alone {
    fn rank(&self) -> usize {
        0
    }

    fn size(&self) -> usize {
        1
    }

    fn broadcast(&self, _root: usize, message: Vec<u8>) -> io::Result<Vec<u8>> {
        Ok(message)
    }

    fn pass(&self, _from: usize, _to: usize, message: Vec<u8>) -> io::Result<Vec<u8>> {
        Ok(message)
    }

    fn traffic(&self) -> Traffic {
        Traffic::default()
    }

    fn end(&self, failure: Option<Failure>) -> Option<Failure> {
        failure
    }
}
