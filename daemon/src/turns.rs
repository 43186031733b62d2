//! One at a time for each of many things, in the order in which they came.
//!
//! Owns who may go on with which key. Invariants: a turn ends when it is dropped, however its holder
//! ends; keys that nobody holds or waits for are forgotten.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use tokio::sync::OwnedMutexGuard;

/// Entries below which nothing is swept.
const SWEEP_AT: usize = 256;

/// The turns of all keys. Clones share them.
#[derive(Debug)]
pub(crate) struct Turns<K>(Arc<Mutex<Registry<K>>>);

#[derive(Debug)]
struct Registry<K> {
    held: HashMap<K, Weak<tokio::sync::Mutex<()>>>,
    /// Entries of those that are done are swept when there are more than this.
    sweep_at: usize,
}

/// Nobody else has the turn of the same key while this lives.
#[derive(Debug)]
pub(crate) struct Turn(#[expect(dead_code, reason = "held for its Drop")] OwnedMutexGuard<()>);

impl<K> Clone for Turns<K> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<K> Default for Turns<K> {
    fn default() -> Self {
        Self(Arc::new(Mutex::new(Registry {
            held: HashMap::new(),
            sweep_at: SWEEP_AT,
        })))
    }
}

impl<K: Eq + Hash> Turns<K> {
    /// Waits until all who asked for this key before are done.
    pub(crate) async fn take(&self, key: K) -> Turn {
        let lock = self.lock(key);
        Turn(lock.lock_owned().await)
    }

    fn lock(&self, key: K) -> Arc<tokio::sync::Mutex<()>> {
        // A poisoned registry is whole: nothing below panics half way.
        let mut registry = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(lock) = registry.held.get(&key).and_then(Weak::upgrade) {
            return lock;
        }
        if registry.held.len() >= registry.sweep_at {
            registry.held.retain(|_, lock| lock.strong_count() > 0);
            registry.sweep_at = registry.held.len().saturating_mul(2).max(SWEEP_AT);
        }
        let lock = Arc::new(tokio::sync::Mutex::new(()));
        registry.held.insert(key, Arc::downgrade(&lock));
        lock
    }
}

#[cfg(test)]
mod tests {
    use super::Turns;

    #[tokio::test]
    async fn a_key_is_held_by_one_and_others_are_free() {
        let turns = Turns::default();
        let first = turns.take("a").await;
        let other = turns.take("b").await;
        let waiting = turns.clone();
        let second = tokio::spawn(async move { drop(waiting.take("a").await) });
        tokio::task::yield_now().await;
        assert!(!second.is_finished());
        drop((first, other));
        assert!(second.await.is_ok());
    }
}
