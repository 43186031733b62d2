//! Beginnings of contexts whose KV is kept: what many requests have in common is computed once.
//!
//! Owns copies of KV in memory, a bounded number of bytes of them; what nobody used for longest goes
//! first. Invariants: a beginning is found by comparing its tokens, never by a digest of them; it is
//! used only under the weights revision it was computed under and within its namespace; it stands at
//! position 0, so that reading it is exact.

use std::rc::Rc;

use addenda_model::{PacketKv, SequenceKv};

use crate::digest::Digest;
use crate::engine::command::Forget;
use crate::error::Result;

/// Fewer tokens than this are sooner computed than looked up and read apart, where others are
/// computed behind them anyway.
const LEAST_TOKENS: usize = 16;

/// The kept beginnings.
pub(crate) struct Prefixes {
    kept: Vec<Kept>,
    budget: usize,
    clock: u64,
}

struct Kept {
    /// None: everybody's, for it holds nothing that a caller said.
    namespace: Option<String>,
    revision: Digest,
    ids: Vec<u32>,
    kv: Rc<PacketKv>,
    bytes: usize,
    used: u64,
}

impl Prefixes {
    /// None yet, and `budget` bytes of them at most.
    pub(crate) fn new(budget: usize) -> Self {
        Self {
            kept: Vec::new(),
            budget,
            clock: 0,
        }
    }

    /// The kept KV that has most of `ids` at its beginning, and how many of them. `whole` says that
    /// with all of `ids` a pass of their own is saved, however few they are.
    pub(crate) fn find(
        &mut self,
        namespace: &str,
        revision: Digest,
        (ids, whole): (&[u32], bool),
    ) -> Option<(Rc<PacketKv>, usize)> {
        self.clock += 1;
        let mine = self.kept.iter_mut();
        let mine = mine.filter(|kept| kept.revision == revision && kept.serves(namespace));
        let (kept, common) = mine
            .map(|kept| {
                let common = common(&kept.ids, ids);
                (kept, common)
            })
            .max_by_key(|(_, common)| *common)?;
        if common < LEAST_TOKENS && !(whole && common > 0 && common == ids.len()) {
            return None;
        }
        kept.used = self.clock;
        Some((Rc::clone(&kept.kv), common))
    }

    /// Keeps the KV of `ids`, with which the context `kv` begins, unless it is kept already. Those
    /// of other revisions and those that this one contains go.
    ///
    /// # Errors
    /// libtorch's.
    pub(crate) fn keep(
        &mut self,
        namespace: &str,
        revision: Digest,
        ids: &[u32],
        kv: &SequenceKv,
    ) -> Result<()> {
        self.kept.retain(|kept| kept.revision == revision);
        let bytes = kv.bytes_of(ids.len())?;
        let is_kept = |kept: &Kept| kept.serves(namespace) && common(&kept.ids, ids) == ids.len();
        if ids.len() < LEAST_TOKENS || bytes > self.budget || self.kept.iter().any(is_kept) {
            return Ok(());
        }
        let first = Rc::new(kv.first(ids.len())?);
        let is_mine = |kept: &Kept| kept.namespace.as_deref() == Some(namespace);
        self.kept
            .retain(|kept| !is_mine(kept) || common(&kept.ids, ids) < kept.ids.len());
        self.push((Some(namespace.to_owned()), revision), ids, first, bytes);
        Ok(())
    }

    /// Keeps the KV of `ids`, all of the context `kv`, for everybody: a beginning that the daemon
    /// itself puts before documents.
    ///
    /// # Errors
    /// libtorch's.
    pub(crate) fn share(&mut self, revision: Digest, ids: &[u32], kv: &SequenceKv) -> Result<()> {
        let (first, bytes) = (Rc::new(kv.first(ids.len())?), kv.bytes_of(ids.len())?);
        self.push((None, revision), ids, first, bytes);
        Ok(())
    }

    /// Lets go of the beginnings in which a text stands that is no more.
    pub(crate) fn forget(&mut self, forget: &Forget) {
        self.kept.retain(|kept| {
            let namespace = kept.namespace.as_deref();
            !namespace.is_some_and(|namespace| forget.is_in(namespace, &kept.ids))
        });
    }

    fn push(
        &mut self,
        (namespace, revision): (Option<String>, Digest),
        ids: &[u32],
        first: Rc<PacketKv>,
        bytes: usize,
    ) {
        self.make_room(bytes);
        self.clock += 1;
        self.kept.push(Kept {
            namespace,
            revision,
            ids: ids.to_vec(),
            kv: first,
            bytes,
            used: self.clock,
        });
    }

    fn make_room(&mut self, bytes: usize) {
        let taken = |kept: &[Kept]| kept.iter().map(|kept| kept.bytes).sum::<usize>();
        self.kept.sort_by_key(|kept| std::cmp::Reverse(kept.used));
        while taken(&self.kept).saturating_add(bytes) > self.budget && self.kept.pop().is_some() {}
    }
}

impl Kept {
    fn serves(&self, namespace: &str) -> bool {
        self.namespace.as_deref().is_none_or(|own| own == namespace)
    }
}

/// How many tokens two texts have in common at their beginning.
fn common(a: &[u32], b: &[u32]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use std::rc::Rc;

    use addenda_model::{PacketKv, PacketShape, SequenceKv};
    use tch::{Device, Kind};

    use super::{Forget, Prefixes};
    use crate::digest::Digest;

    const BASE: Digest = Digest([1; 32]);
    /// Bytes of a token of `shape`.
    const TOKEN: usize = 2 * 2 * 4 * 4;

    /// A context of so many tokens, in the shape of a model with 2 layers of one head of 4.
    fn context(tokens: usize) -> SequenceKv {
        let shape = PacketShape {
            layers: 2,
            kv_heads: 1,
            tokens,
            head_dim: 4,
            kind: Kind::Float,
        };
        let bytes = vec![0_u8; shape.bytes().unwrap()];
        let packet = PacketKv::from_owner(Box::new(bytes), shape, Device::Cpu).unwrap();
        let mut kv = SequenceKv::of_shape(shape, 4096, Device::Cpu).unwrap();
        kv.attach(Rc::new(packet)).unwrap();
        kv
    }

    fn ids(range: std::ops::Range<u32>) -> Vec<u32> {
        range.collect()
    }

    #[test]
    fn what_the_daemon_puts_before_documents_is_everybodys_however_short_it_is() {
        let mut prefixes = Prefixes::new(1 << 20);
        prefixes.share(BASE, &[7], &context(1)).unwrap();
        for namespace in ["a", "b"] {
            let found = prefixes.find(namespace, BASE, (&[7], true));
            assert_eq!(found.map(|(_, tokens)| tokens), Some(1));
            assert!(prefixes.find(namespace, BASE, (&[7, 8], true)).is_none());
            assert!(prefixes.find(namespace, BASE, (&[8], true)).is_none());
        }
    }

    #[test]
    fn the_longest_common_beginning_is_found_and_no_other_tenants() {
        let mut prefixes = Prefixes::new(1 << 20);
        prefixes.keep("a", BASE, &ids(0..40), &context(40)).unwrap();
        let other = [ids(0..30), ids(90..120)].concat();
        prefixes.keep("a", BASE, &other, &context(60)).unwrap();
        let mut common = |namespace, revision, ids: &[u32]| {
            let found = prefixes.find(namespace, revision, (ids, false));
            found.map(|(_, common)| common)
        };
        assert_eq!(common("a", BASE, &ids(0..50)), Some(40));
        assert_eq!(
            common("a", BASE, &[ids(0..30), ids(90..95)].concat()),
            Some(35)
        );
        assert_eq!(common("a", BASE, &ids(0..10)), None, "too little");
        assert_eq!(common("a", BASE, &ids(1..50)), None, "another beginning");
        assert_eq!(common("b", BASE, &ids(0..50)), None, "another tenant");
        let edited = Digest([2; 32]);
        assert_eq!(common("a", edited, &ids(0..50)), None, "other weights");
    }

    #[test]
    fn a_text_that_is_no_more_takes_every_beginning_of_its_namespace_along_and_no_other() {
        let mut prefixes = Prefixes::new(1 << 20);
        for namespace in ["a", "b"] {
            let kept = prefixes.keep(namespace, BASE, &ids(0..40), &context(40));
            kept.unwrap();
        }
        let other = ids(50..90);
        prefixes.keep("a", BASE, &other, &context(40)).unwrap();
        prefixes.forget(&Forget {
            namespace: "a".to_owned(),
            texts: vec![ids(10..20)],
            packets: Vec::new(),
            reply: tokio::sync::oneshot::channel().0,
        });
        assert!(prefixes.find("a", BASE, (&ids(0..40), false)).is_none());
        assert!(prefixes.find("b", BASE, (&ids(0..40), false)).is_some());
        assert!(prefixes.find("a", BASE, (&other, false)).is_some());
    }

    #[test]
    fn what_a_longer_beginning_contains_is_kept_once_and_old_weights_not_at_all() {
        let mut prefixes = Prefixes::new(1 << 20);
        prefixes.keep("a", BASE, &ids(0..20), &context(20)).unwrap();
        prefixes.keep("a", BASE, &ids(0..40), &context(40)).unwrap();
        prefixes.keep("a", BASE, &ids(0..30), &context(30)).unwrap();
        assert_eq!(prefixes.kept.len(), 1);
        let edited = Digest([2; 32]);
        prefixes
            .keep("a", edited, &ids(0..20), &context(20))
            .unwrap();
        assert_eq!(prefixes.kept.len(), 1);
        assert!(prefixes.find("a", BASE, (&ids(0..40), false)).is_none());
    }

    #[test]
    fn the_budget_is_kept_and_what_was_used_last_stays() {
        let mut prefixes = Prefixes::new(100 * TOKEN);
        prefixes.keep("a", BASE, &ids(0..40), &context(40)).unwrap();
        prefixes.keep("b", BASE, &ids(0..40), &context(40)).unwrap();
        assert!(prefixes.find("a", BASE, (&ids(0..40), false)).is_some());
        prefixes.keep("c", BASE, &ids(0..40), &context(40)).unwrap();
        assert!(prefixes.find("a", BASE, (&ids(0..40), false)).is_some());
        assert!(prefixes.find("b", BASE, (&ids(0..40), false)).is_none());
        prefixes
            .keep("d", BASE, &ids(0..101), &context(101))
            .unwrap();
        assert!(
            prefixes.find("d", BASE, (&ids(0..101), false)).is_none(),
            "too large"
        );
        assert!(prefixes.find("c", BASE, (&ids(0..40), false)).is_some());
    }
}
