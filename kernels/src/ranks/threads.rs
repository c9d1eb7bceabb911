//! Ranks of one process, each on a thread of its own.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};

use super::{Failure, Ranks, Traffic};

/// So many ranks.
#[must_use]
pub fn threads(size: usize) -> Vec<Arc<dyn Ranks>> {
    let mut ways: Vec<Ways> = (0..size).map(|_| Ways::default()).collect();
    for from in 0..size {
        for to in 0..size {
            let (sender, receiver) = channel();
            ways[from].to.push(sender);
            ways[to].from.push(receiver);
        }
    }
    let rank = |(rank, ways)| -> Arc<dyn Ranks> {
        Arc::new(Thread {
            rank,
            ways: Mutex::new(ways),
            sent: AtomicU64::new(0),
            received: AtomicU64::new(0),
        })
    };
    ways.into_iter().enumerate().map(rank).collect()
}

#[derive(Debug)]
struct Thread {
    rank: usize,
    ways: Mutex<Ways>,
    sent: AtomicU64,
    received: AtomicU64,
}

/// Those to all ranks and from them, by their numbers.
#[derive(Debug, Default)]
struct Ways {
    to: Vec<Sender<Vec<u8>>>,
    from: Vec<Receiver<Vec<u8>>>,
}

impl Thread {
    fn send(&self, to: usize, message: Vec<u8>) -> io::Result<()> {
        self.sent.fetch_add(message.len() as u64, Ordering::Relaxed);
        let ways = self.ways.lock().unwrap_or_else(PoisonError::into_inner);
        ways.to[to].send(message).map_err(|_| gone(to))
    }

    fn receive(&self, from: usize) -> io::Result<Vec<u8>> {
        let ways = self.ways.lock().unwrap_or_else(PoisonError::into_inner);
        let message = ways.from[from].recv().map_err(|_| gone(from))?;
        self.received.fetch_add(message.len() as u64, Ordering::Relaxed);
        Ok(message)
    }
}

impl Ranks for Thread {
    fn rank(&self) -> usize {
        self.rank
    }

    fn size(&self) -> usize {
        self.ways.lock().unwrap_or_else(PoisonError::into_inner).to.len()
    }

    fn broadcast(&self, root: usize, message: Vec<u8>) -> io::Result<Vec<u8>> {
        if root != self.rank {
            return self.receive(root);
        }
        for to in (0..self.size()).filter(|&to| to != root) {
            self.send(to, message.clone())?;
        }
        Ok(message)
    }

    fn pass(&self, from: usize, to: usize, message: Vec<u8>) -> io::Result<Vec<u8>> {
        match (from == self.rank, to == self.rank) {
            (true, true) => Ok(message),
            (true, false) => self.send(to, message).map(|()| Vec::new()),
            (false, true) => self.receive(from),
            (false, false) => Ok(Vec::new()),
        }
    }

    fn traffic(&self) -> Traffic {
        Traffic { sent: self.sent.load(Ordering::Relaxed), received: self.received.load(Ordering::Relaxed) }
    }

    fn end(&self, failure: Option<Failure>) -> Option<Failure> {
        failure
    }
}

fn gone(rank: usize) -> io::Error {
    io::Error::new(io::ErrorKind::BrokenPipe, format!("rank {rank} is gone"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everyone_has_what_was_told_and_bytes_are_counted() {
        let found: Vec<_> = std::thread::scope(|scope| {
            let run = |ranks: Arc<dyn Ranks>| {
                scope.spawn(move || {
                    let own = vec![ranks.rank() as u8; 2];
                    let told: Vec<_> =
                        (0..3).map(|root| ranks.broadcast(root, own.clone()).unwrap()).collect();
                    let passed = ranks.pass(2, 1, own).unwrap();
                    (told, passed, ranks.traffic(), ranks.owns(4))
                })
            };
            let runs: Vec<_> = threads(3).into_iter().map(run).collect();
            runs.into_iter().map(|run| run.join().unwrap()).collect()
        });
        for (rank, (told, passed, traffic, owns)) in found.iter().enumerate() {
            assert_eq!(*told, [[0, 0], [1, 1], [2, 2]]);
            assert_eq!((passed.len(), *owns), (if rank == 1 { 2 } else { 0 }, rank == 1));
            let sent = 4 + if rank == 2 { 2 } else { 0 };
            assert_eq!(*traffic, Traffic { sent, received: 4 + passed.len() as u64 });
        }
        let ranks = threads(2);
        let first = ranks[0].clone();
        drop(ranks);
        assert!(first.broadcast(1, Vec::new()).unwrap_err().to_string().contains("rank 1"));
    }
}
