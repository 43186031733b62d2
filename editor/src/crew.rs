//! Pieces of one work that know nothing of each other, several at once.
//!
//! libtorch parts each operation among its threads and waits for the slowest; on a few dozen tokens at a time that
//! takes most of what it gains. So threads are parted among pieces instead: the calling thread and its helpers take one
//! piece after another, each with its share of the threads and handles of its own on the weights. While the calling
//! thread serves others, helpers end the step they are in and wait. Invariant: which piece is worked out by whom, and
//! beside which other, changes nothing in its result but what the number of threads does to rounding.

use std::panic::resume_unwind;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread::{self, Thread};

use addenda_model::Transformer;
use addenda_model::tensor::{set_threads, threads};

use crate::error::{Error, Result};
use crate::pace::{Pace, Phase, Progress};

/// Pieces worked on at once, at most: each has activations and logits of its own.
const MOST: usize = 4;

/// To be called between the small steps of a piece; an error stops it.
pub(crate) type Rest<'a> = dyn FnMut() -> Result<()> + 'a;

/// The calling thread and its helpers, each with an `M` of its own.
pub(crate) struct Crew<M> {
    own: M,
    helpers: Vec<M>,
}

impl<M: Send> Crew<M> {
    /// As many as can work on so many pieces at once: on a CPU, where small operations leave threads idle.
    pub(crate) fn of(
        model: &Transformer,
        pieces: usize,
        equip: impl Fn() -> Result<M>,
    ) -> Result<Self> {
        let spare = match model.device().is_cuda() {
            true => 1,
            false => threads(),
        };
        let helpers = 1..spare.min(MOST).min(pieces).max(1);
        Ok(Self {
            own: equip()?,
            helpers: helpers.map(|_| equip()).collect::<Result<_>>()?,
        })
    }

    /// How many pieces are worked on at once.
    pub(crate) fn size(&self) -> usize {
        1 + self.helpers.len()
    }

    /// Changes what each of them has.
    pub(crate) fn each(&mut self, change: impl FnMut(&mut M)) {
        std::iter::once(&mut self.own)
            .chain(&mut self.helpers)
            .for_each(change);
    }

    /// Works out every piece, each in `steps` small steps at most; gives the results in the pieces' order.
    ///
    /// # Errors
    /// The first that `work` or `pace` gave; the others are stopped then.
    pub(crate) fn share<P: Sync, T: Send>(
        &mut self,
        pieces: &[P],
        (phase, steps): (Phase, u64),
        pace: &mut Pace<'_>,
        work: impl Fn(&M, &P, &mut Rest<'_>) -> Result<T> + Sync,
    ) -> Result<Vec<T>> {
        let (all, workers) = (threads(), self.size());
        let each = (all / workers).max(1);
        let board = &Board::new(pieces.len(), steps, workers);
        let (own, helpers, work) = (&self.own, &mut self.helpers, &work);
        let _lent = Threads::lent(each, all);
        let outcomes = thread::scope(|scope| {
            let helpers = helpers.iter_mut().map(|helper| {
                scope.spawn(move || {
                    let helper: &M = helper;
                    set_threads(each);
                    let piece = |piece: &P, rest: &mut Rest<'_>| work(helper, piece, rest);
                    board.work(pieces, piece, &mut || {
                        board.let_serve();
                        Ok(())
                    })
                })
            });
            let helpers: Vec<_> = helpers.collect();
            let mut serve = || {
                let _serving = board.serving.lock().unwrap_or_else(PoisonError::into_inner);
                let _lent = Threads::lent(all, each);
                pace(board.progress(phase))
            };
            let piece = |piece: &P, rest: &mut Rest<'_>| work(own, piece, rest);
            let mine = board.work(pieces, piece, &mut serve);
            let mine = mine.and_then(|mine| board.see_out(&mut serve).map(|()| mine));
            let theirs = helpers
                .into_iter()
                .map(|helper| helper.join().unwrap_or_else(|panic| resume_unwind(panic)));
            std::iter::once(mine).chain(theirs).collect::<Vec<_>>()
        });
        gathered(outcomes)
    }
}

/// The results in the pieces' order; or the error that was first, and not the word of those who were stopped by it.
fn gathered<T>(outcomes: Vec<Result<Vec<(usize, T)>>>) -> Result<Vec<T>> {
    let (mut results, mut stopped) = (Vec::new(), None);
    for outcome in outcomes {
        match outcome {
            Ok(own) => results.extend(own),
            Err(Error::Cancelled) => stopped = Some(Error::Cancelled),
            Err(error) => return Err(error),
        }
    }
    if let Some(error) = stopped {
        return Err(error);
    }
    results.sort_by_key(|(at, _)| *at);
    Ok(results.into_iter().map(|(_, result)| result).collect())
}

/// Gives the calling thread so many threads when it is dropped, also through a panic.
struct Threads(usize);

impl Threads {
    /// `now` for a while, then `before`; nothing is to be given back where those are as many.
    fn lent(now: usize, before: usize) -> Option<Self> {
        (now != before).then(|| {
            set_threads(now);
            Self(before)
        })
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        set_threads(self.0);
    }
}

/// What the calling thread and its helpers share.
struct Board {
    /// The first piece that nobody has taken.
    next: AtomicUsize,
    /// Steps done, with those that a piece did not need.
    done: AtomicU64,
    /// Steps of a piece, and of all.
    steps: u64,
    total: u64,
    /// Workers that have not ended yet, and the calling thread, which waits for them.
    working: AtomicUsize,
    chief: Thread,
    stopped: AtomicBool,
    /// Held while the calling thread serves others.
    serving: Mutex<()>,
}

impl Board {
    fn new(pieces: usize, steps: u64, workers: usize) -> Self {
        Self {
            next: AtomicUsize::new(0),
            done: AtomicU64::new(0),
            steps,
            total: steps.saturating_mul(pieces as u64),
            working: AtomicUsize::new(workers),
            chief: thread::current(),
            stopped: AtomicBool::new(false),
            serving: Mutex::new(()),
        }
    }

    /// Takes one piece after another while there are any, and `rest`s between steps.
    fn work<P, T>(
        &self,
        pieces: &[P],
        work: impl Fn(&P, &mut Rest<'_>) -> Result<T>,
        rest: &mut Rest<'_>,
    ) -> Result<Vec<(usize, T)>> {
        let mut shift = Shift {
            board: self,
            well: false,
        };
        let mut results = Vec::new();
        while let Some((at, piece)) = self.take(pieces) {
            let mut steps = 0;
            let mut step = || {
                rest()?;
                steps += 1;
                self.step(1)
            };
            results.push((at, work(piece, &mut step)?));
            self.step(self.steps.saturating_sub(steps))?;
        }
        shift.well = true;
        Ok(results)
    }

    fn take<'a, P>(&self, pieces: &'a [P]) -> Option<(usize, &'a P)> {
        let at = self.next.fetch_add(1, Ordering::Relaxed);
        Some((at, pieces.get(at)?))
    }

    fn step(&self, steps: u64) -> Result<()> {
        self.done.fetch_add(steps, Ordering::Relaxed);
        self.chief.unpark();
        match self.stopped.load(Ordering::Relaxed) {
            true => Err(Error::Cancelled),
            false => Ok(()),
        }
    }

    /// Waits while the calling thread serves others.
    fn let_serve(&self) {
        drop(self.serving.lock().unwrap_or_else(PoisonError::into_inner));
    }

    /// The calling thread has no piece left: it `serve`s others at each step of its helpers, until they end.
    fn see_out(&self, serve: &mut Rest<'_>) -> Result<()> {
        while self.working.load(Ordering::Acquire) > 0 {
            thread::park();
            let served = serve();
            if served.is_err() {
                self.stopped.store(true, Ordering::Relaxed);
                return served;
            }
        }
        Ok(())
    }

    fn progress(&self, phase: Phase) -> Progress {
        Progress {
            phase,
            done: self.done.load(Ordering::Relaxed).min(self.total),
            total: self.total,
        }
    }
}

/// A worker's time at the board. All are stopped if it does not end well: by an error, or by a panic.
struct Shift<'a> {
    board: &'a Board,
    well: bool,
}

impl Drop for Shift<'_> {
    fn drop(&mut self) {
        if !self.well {
            self.board.stopped.store(true, Ordering::Relaxed);
        }
        self.board.working.fetch_sub(1, Ordering::Release);
        self.board.chief.unpark();
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test may fail loudly")]

    use std::sync::Barrier;

    use addenda_model::tensor::threads;

    use super::{Crew, Rest};
    use crate::error::{Error, Result};
    use crate::pace::{Phase, Progress};

    const STEPS: u64 = 10;

    fn two() -> Crew<()> {
        Crew {
            own: (),
            helpers: vec![()],
        }
    }

    fn go_on(_: Progress) -> Result<()> {
        Ok(())
    }

    #[test]
    fn results_come_in_the_pieces_order_whoever_worked_them_out() {
        // Each worker's first piece waits for the other's: both take part.
        let together = Barrier::new(2);
        let (before, mut last) = (threads(), 0);
        let work = |_: &(), piece: &u64, rest: &mut Rest<'_>| {
            if *piece < 2 {
                together.wait();
            }
            for _ in 0..*piece % STEPS {
                rest()?;
            }
            Ok((*piece, std::thread::current().id()))
        };
        let pieces: Vec<u64> = (0..50).collect();
        let mut pace = |progress: Progress| {
            assert!(progress.done >= last && progress.done <= progress.total);
            (last, _) = (progress.done, assert_eq!(progress.total, 50 * STEPS));
            Ok(())
        };
        let steps = (Phase::Value, STEPS);
        let results = two().share(&pieces, steps, &mut pace, work).unwrap();
        assert!(results.iter().map(|(piece, _)| *piece).eq(0..50));
        let mine = |(_, id): &&(u64, _)| *id == std::thread::current().id();
        assert!((1..50).contains(&results.iter().filter(mine).count()));
        assert_eq!(threads(), before);
    }

    #[test]
    fn an_error_of_one_stops_all_and_is_the_one_that_is_told() {
        for failing in [0, 1] {
            let together = Barrier::new(2);
            let work = |_: &(), piece: &u64, rest: &mut Rest<'_>| {
                together.wait();
                if *piece == failing {
                    return Err(Error::NotFinite("a state"));
                }
                // Goes on for ever, unless it is stopped.
                loop {
                    rest()?;
                }
            };
            let steps = (Phase::Value, STEPS);
            let outcome: Result<Vec<()>> = two().share(&[0, 1], steps, &mut go_on, work);
            assert!(matches!(outcome, Err(Error::NotFinite("a state"))));
        }
    }

    #[test]
    fn who_stops_the_calling_thread_stops_its_helpers_also_when_it_only_waits_for_them() {
        let together = Barrier::new(2);
        let me = std::thread::current().id();
        let work = |_: &(), _: &u64, rest: &mut Rest<'_>| {
            together.wait();
            while std::thread::current().id() != me {
                rest()?;
            }
            Ok(())
        };
        let mut asked = 0;
        let mut pace = |_: Progress| {
            asked += 1;
            match asked < 3 {
                true => Ok(()),
                false => Err(Error::Cancelled),
            }
        };
        let steps = (Phase::Value, STEPS);
        let outcome = two().share(&[0, 1], steps, &mut pace, work);
        assert!(matches!(outcome, Err(Error::Cancelled)));
        assert_eq!(asked, 3);
    }
}
