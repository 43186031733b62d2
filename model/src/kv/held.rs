//! How many bytes of memory contexts hold, all of a model's together.

use std::cell::Cell;
use std::rc::Rc;

/// A count of bytes. Its clones count together.
#[derive(Clone, Default)]
pub(crate) struct Held(Rc<Cell<usize>>);

/// One holder's part of the count, which ends with it.
pub(crate) struct Share {
    all: Held,
    bytes: usize,
}

impl Held {
    pub(crate) fn bytes(&self) -> usize {
        self.0.get()
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
        let all = &self.all.0;
        all.set(all.get() - self.bytes + bytes);
        self.bytes = bytes;
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.set(0);
    }
}
