//! Ranks over MPI: processes that `mpirun` started.
//!
//! Whoever waits sleeps, so that a rank's processor time is its work: what is waited for is looked for now and then. A receiver says that it is
//! ready, the sender how much comes, and then both are there for the bytes. What everyone is to have goes down a binomial tree.
//!
//! Rank 0 has the last word. A rank that fails tells rank 0 why, rank 0 prints it and says farewell to all, and they end with the same code. Both
//! kinds of news are looked for while waiting. Ranks that do not end then, as they are far from their next exchange, are ended.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use kernels::account::section;
use kernels::ranks::{Failure, Ranks, Traffic};
use mpi::environment::Universe;
use mpi::request::{Request, Scope};
use mpi::topology::SimpleCommunicator;
use mpi::traits::{Communicator, Destination, Source};
use mpi::{Rank, Tag, Threading};

/// A receiver is there.
const READY: Tag = 1;
/// How many bytes come.
const LENGTH: Tag = 2;
const BYTES: Tag = 3;
/// To rank 0: why a rank cannot go on.
const FAILED: Tag = 4;
/// From rank 0: how the job ended.
const FAREWELL: Tag = 5;
/// To rank 0: that it was heard.
const HEARD: Tag = 6;

/// Bytes of one call, whose count is an `int`.
const PIECE: usize = 1 << 30;
/// Looks before the first sleep, and the shortest and the longest one.
const LOOKS: u32 = 64;
const SLEEPS: [Duration; 2] = [Duration::from_micros(20), Duration::from_millis(1)];
/// How long a rank has to hear that the job has failed.
const PATIENCE: Duration = Duration::from_secs(10);

/// What tells a process that it is one of several: Open MPI, others that speak PMIx, MPICH and its kin.
const STARTED: [&str; 3] = ["OMPI_COMM_WORLD_SIZE", "PMIX_RANK", "PMI_SIZE"];

/// The processes that this one was started with; none where it was started alone.
///
/// # Errors
/// An MPI that cannot be called from more than one thread.
pub fn join() -> io::Result<Option<Arc<dyn Ranks>>> {
    if !STARTED.iter().any(|name| std::env::var_os(name).is_some()) {
        return Ok(None);
    }
    // One thread calls at a time: the one that directs the work, and in the end the first.
    let Some((universe, threading)) = mpi::initialize_with_threading(Threading::Serialized) else {
        return Err(io::Error::other("MPI was started twice"));
    };
    let world = universe.world();
    let ranks = Arc::new(OverMpi {
        rank: world.rank(),
        size: world.size(),
        state: Mutex::new(State { universe: Some(universe), ended: None }),
        sent: AtomicU64::new(0),
        received: AtomicU64::new(0),
    });
    // What a panic drops must not wait for others: the launcher ends them.
    std::mem::forget(ranks.clone());
    if threading < Threading::Serialized {
        return Err(io::Error::other(format!("MPI allows calls as `{threading:?}`, expected `Serialized`")));
    }
    Ok(Some(ranks))
}

#[derive(Debug)]
struct OverMpi {
    rank: Rank,
    size: Rank,
    state: Mutex<State>,
    sent: AtomicU64,
    received: AtomicU64,
}

struct State {
    /// Until the end.
    universe: Option<Universe>,
    /// What was heard of the job's end.
    ended: Option<Failure>,
}

impl std::fmt::Debug for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("State").field("ended", &self.ended).finish_non_exhaustive()
    }
}

impl OverMpi {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until a message is there.
    fn wait_for(&self, from: Rank, tag: Tag) -> io::Result<()> {
        let world = SimpleCommunicator::world();
        let mut pause = Pause::default();
        while world.process_at_rank(from).immediate_probe_with_tag(tag).is_none() {
            self.look_for_news(&world)?;
            pause.rest();
        }
        Ok(())
    }

    /// Fails where a rank has, or rank 0 has said farewell.
    fn look_for_news(&self, world: &SimpleCommunicator) -> io::Result<()> {
        let news = match self.rank {
            0 => world.any_process().immediate_probe_with_tag(FAILED),
            _ => world.process_at_rank(0).immediate_probe_with_tag(FAREWELL),
        };
        let Some(status) = news else { return Ok(()) };
        let (message, status) =
            world.process_at_rank(status.source_rank()).receive_vec_with_tag::<u8>(status.tag());
        let failure = decoded(&message, status.source_rank());
        let problem = failure.as_ref().map_or("the job is over", |failure| &failure.problem).to_owned();
        self.state().ended = Some(failure.unwrap_or_else(|| Failure {
            code: 2,
            problem: problem.clone(),
            rank: status.source_rank() as usize,
        }));
        Err(io::Error::other(problem))
    }

    fn send(&self, to: Rank, message: &[u8]) -> io::Result<()> {
        let world = SimpleCommunicator::world();
        self.wait_for(to, READY)?;
        let other = world.process_at_rank(to);
        other.receive_vec_with_tag::<u8>(READY);
        other.send_with_tag(&(message.len() as u64), LENGTH);
        for piece in message.chunks(PIECE) {
            mpi::request::scope(|scope| done(other.immediate_send_with_tag(scope, piece, BYTES)));
        }
        self.sent.fetch_add(message.len() as u64, Ordering::Relaxed);
        Ok(())
    }

    fn receive(&self, from: Rank) -> io::Result<Vec<u8>> {
        let world = SimpleCommunicator::world();
        let other = world.process_at_rank(from);
        other.send_with_tag(&[0_u8; 1], READY);
        self.wait_for(from, LENGTH)?;
        let (length, _) = other.receive_with_tag::<u64>(LENGTH);
        let mut message = vec![0_u8; usize::try_from(length).map_err(io::Error::other)?];
        for piece in message.chunks_mut(PIECE) {
            mpi::request::scope(|scope| done(other.immediate_receive_into_with_tag(scope, piece, BYTES)));
        }
        self.received.fetch_add(length, Ordering::Relaxed);
        Ok(message)
    }

    /// Rank 0's last words to all; those who hear of a failure have some time to say so.
    fn say_farewell(&self, failure: Option<&Failure>) {
        let world = SimpleCommunicator::world();
        let message = encoded(failure);
        (1..self.size).for_each(|rank| world.process_at_rank(rank).send_with_tag(&message[..], FAREWELL));
        let Some(failure) = failure else { return };
        let (start, mut pause) = (Instant::now(), Pause::default());
        for rank in 1..self.size {
            let other = world.process_at_rank(rank);
            while other.immediate_probe_with_tag(HEARD).is_none() {
                if start.elapsed() > PATIENCE {
                    world.abort(i32::from(failure.code));
                }
                pause.rest();
            }
            other.receive_vec_with_tag::<u8>(HEARD);
        }
    }

    /// Another rank's wait for them.
    fn hear_farewell(&self) -> Option<Failure> {
        let world = SimpleCommunicator::world();
        if self.state().ended.is_none() {
            let (first, mut pause) = (world.process_at_rank(0), Pause::default());
            while first.immediate_probe_with_tag(FAREWELL).is_none() {
                pause.rest();
            }
            let (message, _) = first.receive_vec_with_tag::<u8>(FAREWELL);
            self.state().ended = decoded(&message, 0);
        }
        let ended = self.state().ended.clone();
        if ended.is_some() {
            world.process_at_rank(0).send_with_tag(&[0_u8; 1], HEARD);
        }
        ended
    }
}

impl Ranks for OverMpi {
    fn rank(&self) -> usize {
        self.rank as usize
    }

    fn size(&self) -> usize {
        self.size as usize
    }

    fn broadcast(&self, root: usize, mut message: Vec<u8>) -> io::Result<Vec<u8>> {
        let _section = section("between ranks");
        let size = self.size();
        // Counted from the root; each has its part of the tree from the one that lacks its lowest bit.
        let own = (self.rank() + size - root) % size;
        let other = |place: usize| ((place + root) % size) as Rank;
        let lowest = if own == 0 { size.next_power_of_two() } else { own & own.wrapping_neg() };
        if own != 0 {
            message = self.receive(other(own - lowest))?;
        }
        let mut bit = lowest / 2;
        while bit > 0 {
            if own + bit < size {
                self.send(other(own + bit), &message)?;
            }
            bit /= 2;
        }
        Ok(message)
    }

    fn pass(&self, from: usize, to: usize, message: Vec<u8>) -> io::Result<Vec<u8>> {
        let _section = section("between ranks");
        match (from == self.rank(), to == self.rank()) {
            (true, true) => Ok(message),
            (true, false) => self.send(to as Rank, &message).map(|()| Vec::new()),
            (false, true) => self.receive(from as Rank),
            (false, false) => Ok(Vec::new()),
        }
    }

    fn traffic(&self) -> Traffic {
        Traffic { sent: self.sent.load(Ordering::Relaxed), received: self.received.load(Ordering::Relaxed) }
    }

    fn known_failure(&self) -> Option<Failure> {
        self.state().ended.clone()
    }

    fn end(&self, failure: Option<Failure>) -> Option<Failure> {
        let ended = if self.rank == 0 {
            self.say_farewell(failure.as_ref());
            failure
        } else {
            if let Some(failure) = failure.filter(|_| self.state().ended.is_none()) {
                let world = SimpleCommunicator::world();
                world.process_at_rank(0).send_with_tag(&encoded(Some(&failure))[..], FAILED);
            }
            self.hear_farewell()
        };
        drop(self.state().universe.take());
        ended
    }
}

/// Waits until bytes are where they go.
fn done<'a, D: ?Sized, S: Scope<'a>>(mut request: Request<'a, D, S>) {
    let mut pause = Pause::default();
    while let Err(again) = request.test() {
        request = again;
        pause.rest();
    }
}

/// Rests longer and longer.
#[derive(Default)]
struct Pause {
    looks: u32,
    sleep: Duration,
}

impl Pause {
    fn rest(&mut self) {
        self.looks = self.looks.saturating_add(1);
        if self.looks < LOOKS {
            return std::thread::yield_now();
        }
        let [shortest, longest] = SLEEPS;
        self.sleep = (self.sleep * 5 / 4).clamp(shortest, longest);
        std::thread::sleep(self.sleep);
    }
}

/// A code and a text; no code where all went well.
fn encoded(failure: Option<&Failure>) -> Vec<u8> {
    failure.map_or_else(Vec::new, |failure| [&[failure.code], failure.problem.as_bytes()].concat())
}

fn decoded(message: &[u8], rank: Rank) -> Option<Failure> {
    let (&code, problem) = message.split_first()?;
    Some(Failure { code, problem: String::from_utf8_lossy(problem).into_owned(), rank: rank as usize })
}
