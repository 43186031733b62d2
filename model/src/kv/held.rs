//! How many bytes of memory contexts hold, all of a model's together.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// A count of bytes. Its clones count together.
#[derive(Clone, Default)]
pub(crate) struct Held(Arc<AtomicUsize>);

/// One holder's part of the count, which ends with it.
pub(crate) struct Share {
    all: Held,
    bytes: usize,
}

impl Held {
    pub(crate) fn bytes(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }

    pub(crate) fn share(&self, bytes: usize) -> Share {
        let mut share = Share {
            all: self.clone(),
            bytes: 0,
        };
        share.set(bytes);
        share
    }
}

impl Share {
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Holds so many bytes from now on.
    pub(crate) fn set(&mut self, bytes: usize) {
        self.all.0.fetch_add(bytes, Ordering::Relaxed);
        self.all.0.fetch_sub(self.bytes, Ordering::Relaxed);
        self.bytes = bytes;
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.set(0);
    }
}
