//! What a thread allocates, counted.
//!
//! Owns the allocator of the test binaries. Never refuses a sensible allocation. Invariant: it does what the system's
//! allocator does, and counts.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

thread_local! {
    static COUNT: Cell<Count> = const { Cell::new(Count { held: 0, most: 0 }) };
}

/// Bytes of one thread since the count was last set back; freed ones of before count against it.
#[derive(Clone, Copy)]
struct Count {
    held: isize,
    most: isize,
}

struct Counting;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// More at once is taken for a length field that was believed; it is refused, which ends the process.
const ABSURD: usize = 8 << 30;

fn count(size: isize) {
    // A thread that is ending has no count any more.
    let _ = COUNT.try_with(|count| {
        let Count { held, most } = count.get();
        let held = held.saturating_add(size);
        let most = most.max(held);
        count.set(Count { held, most });
    });
}

#[expect(
    clippy::cast_possible_wrap,
    reason = "no allocation is longer than isize::MAX"
)]
fn signed(size: usize) -> isize {
    size as isize
}

// SAFETY: the system's allocator does all of it; counting allocates nothing, for the cell is made without.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if layout.size() > ABSURD {
            return std::ptr::null_mut();
        }
        count(signed(layout.size()));
        // SAFETY: the caller's promise is handed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        count(-signed(layout.size()));
        // SAFETY: the caller's promise is handed on.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        if layout.size() > ABSURD {
            return std::ptr::null_mut();
        }
        count(signed(layout.size()));
        // SAFETY: the caller's promise is handed on.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        if size > ABSURD {
            return std::ptr::null_mut();
        }
        count(signed(size) - signed(layout.size()));
        // SAFETY: the caller's promise is handed on.
        unsafe { System.realloc(pointer, layout, size) }
    }
}

/// Does something that may hold at most so many bytes more than before, at any moment, on this thread.
///
/// # Panics
/// It held more.
pub fn within<T>(bytes: usize, work: impl FnOnce() -> T) -> T {
    COUNT.set(Count { held: 0, most: 0 });
    let done = work();
    let most = COUNT.get().most;
    assert!(
        most <= signed(bytes),
        "{most} bytes were held at once, where {bytes} are enough"
    );
    done
}

#[cfg(test)]
mod tests {
    use super::within;

    #[test]
    #[should_panic(expected = "were held at once")]
    fn what_is_allocated_for_a_moment_counts() {
        within(1000, || drop(vec![0_u8; 4000]));
    }

    #[test]
    fn what_is_freed_again_does_not_add_up() {
        within(5000, || (0..100).for_each(|_| drop(vec![0_u8; 4000])));
    }
}
