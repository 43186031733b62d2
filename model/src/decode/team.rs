//! Threads that compute a decode step together.
//!
//! A step is some hundred products, each of a few dozen microseconds: waking threads for each would take
//! as long as the product. So the threads are woken once a step and then look for work without rest; what
//! there is, whoever is free takes, and a thread that the system has put aside holds nobody up.

use crate::error::{Error, Result};
use rayon::{ThreadPool, ThreadPoolBuilder};
use std::cell::UnsafeCell;
use std::hint::spin_loop;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

/// Looks for work before a thread lets others have its processor.
const PATIENCE: u32 = 2_000;

/// The threads.
pub(crate) struct Team {
    /// All but the one that asks; none where that is the only one.
    helpers: Option<ThreadPool>,
    threads: usize,
}

impl Team {
    /// So many threads, the caller's own among them.
    ///
    /// # Errors
    /// They can't be started.
    pub(crate) fn new(threads: usize) -> Result<Self> {
        let helpers = threads.saturating_sub(1);
        let pool = ThreadPoolBuilder::new()
            .num_threads(helpers)
            .thread_name(|index| format!("decode-{index}"));
        let pool = (helpers > 0).then(|| pool.build()).transpose();
        let helpers = pool.map_err(|error| {
            Error::Invalid(format!("threads for decoding can't be started: {error}"))
        })?;
        Ok(Self { helpers, threads })
    }

    /// Does `work`, beside which all threads are at hand.
    pub(crate) fn run<R>(&self, work: impl FnOnce(&mut Crew<'_>) -> R) -> R {
        let board = Board {
            open: AtomicBool::new(true),
            claims: AtomicU64::new(0),
            left: AtomicUsize::new(0),
            job: UnsafeCell::new(&|_| ()),
        };
        let mut crew = Crew {
            board: &board,
            threads: self.threads,
        };
        let Some(helpers) = &self.helpers else {
            return work(&mut crew);
        };
        helpers.in_place_scope(|scope| {
            for _ in 1..self.threads {
                scope.spawn(|_| board.help());
            }
            let _closing = Closing(&board);
            work(&mut crew)
        })
    }
}

/// The threads at work on one step, as their leader has them.
pub(crate) struct Crew<'a> {
    board: &'a Board,
    threads: usize,
}

impl Crew<'_> {
    pub(crate) fn threads(&self) -> usize {
        self.threads
    }

    /// Calls `work` with the number of each chunk of `all` and the chunk, on all threads.
    pub(crate) fn chunks<T: Send>(
        &mut self,
        all: &mut [T],
        size: usize,
        work: impl Fn(usize, &mut [T]) + Sync,
    ) {
        let size = size.max(1);
        let length = all.len();
        let count = length.div_ceil(size);
        if self.threads == 1 || count <= 1 {
            let chunks = all.chunks_mut(size).enumerate();
            return chunks.for_each(|(index, chunk)| work(index, chunk));
        }
        let start = Start(all.as_mut_ptr());
        self.board.lead(count, &|index| {
            let from = index * size;
            // SAFETY: it lies within `all`, which is borrowed till all tasks are done, and each index
            // is given out once.
            let chunk = unsafe {
                std::slice::from_raw_parts_mut(start.offset(from), size.min(length - from))
            };
            work(index, chunk);
        });
    }
}

/// Where a slice begins that is given out in pieces.
struct Start<T>(*mut T);

// SAFETY: each piece goes to one thread, as a `&mut [T]` of its own may.
unsafe impl<T: Send> Sync for Start<T> {}

impl<T> Start<T> {
    /// # Safety
    /// Within the slice.
    unsafe fn offset(&self, elements: usize) -> *mut T {
        // SAFETY: the caller's.
        unsafe { self.0.add(elements) }
    }
}

type Job = dyn Fn(usize) + Sync;

/// Where a step's work is put up.
struct Board {
    /// Whether there may be more.
    open: AtomicBool,
    /// The tasks of the job at hand, and below them how many of these are taken: 32 bits each.
    claims: AtomicU64,
    /// Tasks that are not done.
    left: AtomicUsize,
    /// What is to be done with a task. The leader writes it while no task is left; who has taken a task
    /// reads it before it is done: never both at once.
    job: UnsafeCell<&'static Job>,
}

// SAFETY: all but `job` is atomic, and see there.
unsafe impl Sync for Board {}

impl Board {
    /// Puts up a job and sees it done.
    fn lead(&self, tasks: usize, job: &(dyn Fn(usize) + Sync)) {
        // SAFETY: only the lifetime changes: the job is read within tasks alone, and `_waiting` sees all
        // of them done before this function is left, by a panic too.
        let job = unsafe { std::mem::transmute::<&(dyn Fn(usize) + Sync), &'static Job>(job) };
        // SAFETY: no task is left, and there is one leader: it has the `Crew` for itself.
        unsafe { *self.job.get() = job };
        self.left.store(tasks, Ordering::Relaxed);
        self.claims.store((tasks as u64) << 32, Ordering::Release);
        let _waiting = Waiting(self);
        while let Some(task) = self.claim() {
            task.run();
        }
    }

    /// Does tasks until there can be no more.
    fn help(&self) {
        let mut looks = 0;
        loop {
            if let Some(task) = self.claim() {
                task.run();
                looks = 0;
            } else if self.open.load(Ordering::Acquire) {
                pause(&mut looks);
            } else {
                return;
            }
        }
    }

    /// A task that nobody has taken.
    fn claim(&self) -> Option<Task<'_>> {
        let next = |claims: u64| (claims as u32) < (claims >> 32) as u32;
        let claim = self
            .claims
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, |claims| {
                next(claims).then(|| claims + 1)
            });
        let index = claim.ok()? as u32 as usize;
        Some(Task { board: self, index })
    }
}

/// A task that was taken; when it is dropped it counts as done.
struct Task<'a> {
    board: &'a Board,
    index: usize,
}

impl Task<'_> {
    fn run(self) {
        // SAFETY: this task is not done, so the leader does not write.
        let job = unsafe { *self.board.job.get() };
        job(self.index);
    }
}

impl Drop for Task<'_> {
    fn drop(&mut self) {
        self.board.left.fetch_sub(1, Ordering::Release);
    }
}

/// Sees a job done: takes what nobody has taken, which is something after a panic only, and waits for the
/// others.
struct Waiting<'a>(&'a Board);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        while self.0.claim().is_some() {}
        let mut looks = 0;
        while self.0.left.load(Ordering::Acquire) > 0 {
            pause(&mut looks);
        }
    }
}

/// Lets helpers go.
struct Closing<'a>(&'a Board);

impl Drop for Closing<'_> {
    fn drop(&mut self) {
        self.0.open.store(false, Ordering::Release);
    }
}

fn pause(looks: &mut u32) {
    *looks += 1;
    match looks.is_multiple_of(PATIENCE) {
        true => std::thread::yield_now(),
        false => spin_loop(),
    }
}

#[cfg(test)]
mod tests {
    use super::Team;
    use std::panic::{AssertUnwindSafe, catch_unwind};

    fn team(threads: usize) -> Team {
        match Team::new(threads) {
            Ok(team) => team,
            Err(error) => panic!("{error}"),
        }
    }

    #[test]
    fn every_chunk_is_done_once_whatever_the_threads() {
        for threads in [1, 2, 5] {
            let mut numbers = vec![0_usize; 1001];
            team(threads).run(|crew| {
                for _ in 0..200 {
                    crew.chunks(&mut numbers, 7, |index, chunk| {
                        for (place, number) in chunk.iter_mut().enumerate() {
                            *number += index * 7 + place;
                        }
                    });
                }
            });
            let right = numbers.iter().enumerate().all(|(i, n)| *n == 200 * i);
            assert!(right, "{threads} threads");
        }
    }

    #[test]
    fn a_panic_comes_out_and_the_threads_stay() {
        let team = team(3);
        for bad in [0, 50, 99] {
            let caught = catch_unwind(AssertUnwindSafe(|| {
                team.run(|crew| {
                    crew.chunks(&mut [0_u8; 100], 1, |index, _| {
                        assert!(index != bad, "task {bad} fails");
                    });
                });
            }));
            assert!(caught.is_err());
        }
        let mut all = [0_u8; 100];
        team.run(|crew| crew.chunks(&mut all, 3, |_, chunk| chunk.fill(1)));
        assert_eq!(all, [1; 100]);
    }
}
