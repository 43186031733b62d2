//! The engine's door: a bounded queue of things to do, with a bell.
//!
//! Owns who waits, in order of arrival. Never runs anything. Invariants: no more than `capacity`
//! items wait; after [`Queue::close`] nothing enters; the bell is never lost: a ring before
//! [`Queue::wait`] makes that wait return at once.

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use tokio::sync::Notify;

/// Why an item was not taken in; it comes back.
#[derive(Debug)]
pub(crate) enum Refused<T> {
    /// As many wait as may wait.
    Full(T),
    /// The engine takes nothing more.
    Closed(T),
}

/// A bounded queue whose consumer chooses what it takes next.
#[derive(Debug)]
pub(crate) struct Queue<T> {
    state: Mutex<State<T>>,
    bell: Condvar,
    /// Told whenever somebody left, for those who wait for a place.
    room: Notify,
    capacity: usize,
}

#[derive(Debug)]
struct State<T> {
    waiting: VecDeque<T>,
    rung: bool,
    closed: bool,
}

impl<T> Queue<T> {
    pub(crate) fn new(capacity: usize) -> Self {
        Self {
            state: Mutex::new(State {
                waiting: VecDeque::new(),
                rung: false,
                closed: false,
            }),
            bell: Condvar::new(),
            room: Notify::new(),
            capacity,
        }
    }

    pub(crate) fn capacity(&self) -> usize {
        self.capacity
    }

    pub(crate) fn len(&self) -> usize {
        self.lock().waiting.len()
    }

    /// Puts an item at the end, or gives it back. Never blocks on the engine.
    pub(crate) fn push(&self, item: T) -> Result<(), Refused<T>> {
        let mut state = self.lock();
        if state.closed {
            return Err(Refused::Closed(item));
        }
        if state.waiting.len() >= self.capacity {
            return Err(Refused::Full(item));
        }
        state.waiting.push_back(item);
        state.rung = true;
        self.bell.notify_one();
        Ok(())
    }

    /// The oldest item that `admits` accepts; those before it keep their places.
    pub(crate) fn take_first(&self, admits: impl FnMut(&T) -> bool) -> Option<T> {
        let mut state = self.lock();
        let place = state.waiting.iter().position(admits)?;
        let item = state.waiting.remove(place);
        self.room.notify_waiters();
        item
    }

    /// Of those items to which `rank` gives a number the oldest with the lowest, if `admits` accepts it.
    pub(crate) fn take_least_if(
        &self,
        rank: impl FnMut(&T) -> Option<usize>,
        admits: impl FnOnce(&T) -> bool,
    ) -> Option<T> {
        let mut state = self.lock();
        let ranks = state.waiting.iter().map(rank).enumerate();
        let ranked = ranks.filter_map(|(place, rank)| Some((rank?, place)));
        let (_, place) = ranked.min()?;
        state.waiting.get(place).filter(|item| admits(item))?;
        let item = state.waiting.remove(place);
        self.room.notify_waiters();
        item
    }

    /// Takes every item that `leaves` accepts.
    pub(crate) fn take_all(&self, mut leaves: impl FnMut(&T) -> bool) -> Vec<T> {
        let mut state = self.lock();
        let (taken, kept) = state.waiting.drain(..).partition(|item| leaves(item));
        state.waiting = kept;
        self.room.notify_waiters();
        Vec::from_iter::<VecDeque<T>>(taken)
    }

    /// Becomes ready when somebody leaves after this call.
    pub(crate) fn room(&self) -> impl Future<Output = ()> + '_ {
        // A `Notified` counts from its making, not from its first poll.
        self.room.notified()
    }

    /// Calls `look` with each waiting item, in order.
    pub(crate) fn each(&self, look: impl FnMut(&T)) {
        self.lock().waiting.iter().for_each(look);
    }

    /// Calls `change` with each waiting item, in order.
    pub(crate) fn each_mut(&self, change: impl FnMut(&mut T)) {
        self.lock().waiting.iter_mut().for_each(change);
    }

    /// Makes the present or next [`Queue::wait`] return: something outside the queue changed.
    pub(crate) fn ring(&self) {
        self.lock().rung = true;
        self.bell.notify_one();
    }

    /// Sleeps until the bell rings or `until` has come.
    pub(crate) fn wait(&self, until: Option<Instant>) {
        let mut state = self.lock();
        while !state.rung {
            match until {
                None => {
                    state = self
                        .bell
                        .wait(state)
                        .unwrap_or_else(PoisonError::into_inner);
                }
                Some(until) => {
                    let Some(left) = until.checked_duration_since(Instant::now()) else {
                        break;
                    };
                    let (woken, timeout) = self
                        .bell
                        .wait_timeout(state, left)
                        .unwrap_or_else(PoisonError::into_inner);
                    state = woken;
                    if timeout.timed_out() {
                        break;
                    }
                }
            }
        }
        state.rung = false;
    }

    /// Lets nothing more in. What waits can still be taken.
    pub(crate) fn close(&self) {
        self.lock().closed = true;
        self.room.notify_waiters();
        self.ring();
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.lock().closed
    }

    // A panic while the lock is held cannot leave the queue half changed, so poison is no news.
    fn lock(&self) -> MutexGuard<'_, State<T>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::{Queue, Refused};
    use std::time::{Duration, Instant};

    #[test]
    fn the_item_that_does_not_fit_comes_back() {
        let queue = Queue::new(2);
        queue.push(1).unwrap();
        queue.push(2).unwrap();
        assert!(matches!(queue.push(3), Err(Refused::Full(3))));
        assert_eq!(queue.take_first(|_| true), Some(1));
        queue.push(3).unwrap();
        assert_eq!(queue.len(), 2);
    }

    #[test]
    fn taking_one_leaves_the_order_of_the_others() {
        let queue = Queue::new(8);
        for item in 1..=5 {
            queue.push(item).unwrap();
        }
        assert_eq!(queue.take_first(|item| item % 2 == 0), Some(2));
        assert_eq!(queue.take_all(|item| *item > 3), [4, 5]);
        assert_eq!(queue.take_all(|_| true), [1, 3]);
    }

    #[test]
    fn a_ring_before_the_wait_is_not_lost() {
        let queue: Queue<()> = Queue::new(1);
        queue.ring();
        queue.wait(None);
    }

    #[test]
    fn a_wait_ends_at_its_time() {
        let queue: Queue<()> = Queue::new(1);
        let until = Instant::now() + Duration::from_millis(20);
        queue.wait(Some(until));
        assert!(Instant::now() >= until);
    }

    #[test]
    fn whoever_has_least_comes_first_and_of_those_the_oldest_if_there_is_room() {
        let queue = Queue::new(8);
        for item in [("a", 1), ("a", 2), ("b", 3), ("c", 4), ("b", 5)] {
            queue.push(item).unwrap();
        }
        // Of a's requests two run already, of the others' one each; c is not asked.
        let rank = |item: &(&str, u32)| match item.0 {
            "a" => Some(2),
            "b" => Some(1),
            _ => None,
        };
        assert_eq!(queue.take_least_if(rank, |_| true), Some(("b", 3)));
        // The next one does not fit: nobody overtakes it.
        assert_eq!(queue.take_least_if(rank, |item| item.1 != 5), None);
        assert_eq!(queue.take_least_if(rank, |_| true), Some(("b", 5)));
        assert_eq!(queue.take_least_if(rank, |_| true), Some(("a", 1)));
        assert_eq!(queue.len(), 2);
    }

    #[test]
    fn a_closed_queue_takes_nothing_but_gives_what_it_has() {
        let queue = Queue::new(2);
        queue.push(1).unwrap();
        queue.close();
        assert!(matches!(queue.push(2), Err(Refused::Closed(2))));
        assert_eq!(queue.take_first(|_| true), Some(1));
    }
}
