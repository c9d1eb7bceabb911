//! What the processors' time went into, part by part of the work.
//!
//! [`start`] opens an account on the thread that directs the work; [`section`] says there what is being done until what it gives is dropped, and the
//! time in between is that section's, less that of sections inside. Other threads work for the section that is open: loops that run in parallel
//! are waited for. What they call themselves opens nothing, since they have no account. The clock is the caller's.
//!
//! A section costs two readings of the clock where there is an account and nothing elsewhere.

use std::cell::RefCell;
use std::marker::PhantomData;

/// A moment, or a span.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Time {
    /// Seconds on the clock.
    pub wall: f64,
    /// Seconds of all processors together.
    pub cpu: f64,
}

/// What a section took.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Spent {
    /// Its name.
    pub name: &'static str,
    /// Without sections inside.
    pub time: Time,
}

/// Time outside of all sections.
pub const REST: &str = "everything else";

struct Account {
    clock: fn() -> Time,
    /// Until when everything is charged.
    charged: Time,
    /// In the order in which they were opened first; time outside of all of them comes first.
    spent: Vec<Spent>,
    /// Those that are open, by number.
    open: Vec<usize>,
}

thread_local! {
    static ACCOUNT: RefCell<Option<Account>> = const { RefCell::new(None) };
}

/// Opens an account on this thread, in place of one that was open.
pub fn start(clock: fn() -> Time) {
    let rest = Spent { name: REST, time: Time::default() };
    let account = Account { clock, charged: clock(), spent: vec![rest], open: Vec::new() };
    ACCOUNT.set(Some(account));
}

/// Closes this thread's account, and gives what each section took: in the order in which they came, time outside of them last. Nothing
/// where there is none.
#[must_use]
pub fn finish() -> Vec<Spent> {
    let Some(mut account) = ACCOUNT.take() else { return Vec::new() };
    account.charge();
    account.spent.rotate_left(1);
    account.spent
}

/// Charges this thread's account to `name` until the result is dropped.
#[must_use = "the section ends when this is dropped"]
pub fn section(name: &'static str) -> Section {
    ACCOUNT.with_borrow_mut(|account| {
        if let Some(account) = account {
            account.open(name);
        }
    });
    Section(PhantomData)
}

/// A section that is open, on the thread that opened it.
#[derive(Debug)]
pub struct Section(PhantomData<*const ()>);

impl Drop for Section {
    fn drop(&mut self) {
        ACCOUNT.with_borrow_mut(|account| {
            if let Some(account) = account {
                account.charge();
                account.open.pop();
            }
        });
    }
}

impl Account {
    fn open(&mut self, name: &'static str) {
        self.charge();
        let known = self.spent.iter().position(|spent| spent.name == name);
        self.open.push(known.unwrap_or(self.spent.len()));
        if known.is_none() {
            self.spent.push(Spent { name, time: Time::default() });
        }
    }

    fn charge(&mut self) {
        let now = (self.clock)();
        let time = &mut self.spent[self.open.last().copied().unwrap_or(0)].time;
        time.wall += now.wall - self.charged.wall;
        time.cpu += now.cpu - self.charged.cpu;
        self.charged = now;
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    thread_local! {
        static NOW: Cell<f64> = const { Cell::new(0.0) };
    }

    /// Each reading comes a second after the one before.
    fn clock() -> Time {
        NOW.set(NOW.get() + 1.0);
        Time { wall: NOW.get(), cpu: 2.0 * NOW.get() }
    }

    #[test]
    fn sections_have_their_own_time_and_all_of_it_is_somebodys() {
        start(clock);
        let begun = NOW.get();
        for _ in 0..2 {
            let _outer = section("outer");
            drop(section("inner"));
            // No account of that thread.
            std::thread::spawn(|| drop(section("elsewhere"))).join().unwrap();
        }
        let spent = finish();
        let names: Vec<&str> = spent.iter().map(|spent| spent.name).collect();
        assert_eq!(names, ["outer", "inner", REST]);
        assert_eq!(spent[0].time, Time { wall: 4.0, cpu: 8.0 });
        assert_eq!(spent[1].time, Time { wall: 2.0, cpu: 4.0 });
        let total: f64 = spent.iter().map(|spent| spent.time.wall).sum();
        assert_eq!(total, NOW.get() - begun);
    }

    #[test]
    fn without_an_account_nothing_is_charged() {
        assert!(finish().is_empty());
        let open = section("left open");
        start(clock);
        // Not one of this account.
        drop(open);
        assert_eq!(finish().len(), 1);
        drop(section("after the end"));
        assert!(finish().is_empty());
    }
}
