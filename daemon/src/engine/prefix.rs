//! Beginnings of contexts whose KV is kept: what many requests have in common is computed once.
//!
//! A radix tree for each namespace: a node is a block of tokens and their KV, its children are what followed them.
//! Blocks are shared with the contexts that read them; what nobody used for longest goes first. Invariants: a
//! beginning is found by comparing its tokens, never by a digest of them; it is used only under the weights
//! revision it was computed under and within its namespace; it stands at position 0, so that reading it is exact.

use std::collections::BTreeMap;
use std::rc::Rc;

use addenda_model::{KvBlock, SequenceKv};

use crate::digest::Digest;
use crate::engine::command::Forget;
use crate::error::Result;

/// Fewer tokens than this are sooner computed than looked up and copied, where others are
/// computed behind them anyway.
const LEAST_TOKENS: usize = 16;

/// The kept beginnings.
pub(crate) struct Prefixes {
    /// Of each namespace, and under `None` everybody's: what holds nothing that a caller said.
    trees: BTreeMap<Option<String>, Vec<Node>>,
    /// The weights that all of them were computed under.
    revision: Option<Digest>,
    budget: usize,
    clock: u64,
}

/// Tokens that follow those of the parents, up to a whole block. Only whole blocks have children.
struct Node {
    ids: Vec<u32>,
    block: Rc<KvBlock>,
    children: Vec<Node>,
    used: u64,
}

impl Prefixes {
    /// None yet, and `budget` bytes of them at most.
    pub(crate) fn new(budget: usize) -> Self {
        Self {
            trees: BTreeMap::new(),
            revision: None,
            budget,
            clock: 0,
        }
    }

    /// The kept blocks that have most of `ids` at their beginning, and how many of them. `whole` says that
    /// with all of `ids` a pass of their own is saved, however few they are.
    pub(crate) fn find(
        &mut self,
        namespace: &str,
        revision: Digest,
        (ids, whole): (&[u32], bool),
    ) -> Option<(Vec<Rc<KvBlock>>, usize)> {
        if self.revision != Some(revision) {
            return None;
        }
        self.clock += 1;
        let clock = self.clock;
        let places = [None, Some(namespace.to_owned())];
        let found = places.iter().filter_map(|place| {
            let tree = self.trees.get_mut(place)?;
            Some(follow(tree, ids, clock))
        });
        let (blocks, common) = found.max_by_key(|(_, common)| *common)?;
        let enough = common >= LEAST_TOKENS || (whole && common > 0 && common == ids.len());
        enough.then_some((blocks, common))
    }

    /// How many of `ids` would be found in this namespace.
    pub(crate) fn kept(&self, namespace: &str, revision: Digest, ids: &[u32]) -> usize {
        let places = [None, Some(namespace)];
        let found = places.map(|place| self.common(place, revision, ids));
        found.into_iter().max().unwrap_or(0)
    }

    /// Whether `ids` are neither too few to be kept nor too many for the budget; the context `kv` begins with them.
    pub(crate) fn takes(&self, ids: &[u32], kv: &SequenceKv) -> bool {
        let fits = |bytes| bytes <= self.budget;
        ids.len() >= LEAST_TOKENS && kv.bytes_of(ids.len()).is_ok_and(fits)
    }

    /// Keeps the KV of `ids`, with which the context `kv` begins, unless it is kept already. Those
    /// of other revisions go, and parts of blocks that this one contains.
    ///
    /// # Errors
    /// The context does not begin with so many tokens of its own, or libtorch's.
    pub(crate) fn keep(
        &mut self,
        namespace: &str,
        revision: Digest,
        ids: &[u32],
        kv: &mut SequenceKv,
    ) -> Result<()> {
        let is_kept = self.common(None, revision, ids) == ids.len();
        if is_kept || !self.takes(ids, kv) {
            return Ok(());
        }
        self.insert(Some(namespace.to_owned()), revision, ids, kv)
    }

    /// Keeps the KV of `ids`, all of the context `kv`, for everybody: a beginning that the daemon
    /// itself puts before documents.
    ///
    /// # Errors
    /// libtorch's.
    pub(crate) fn share(
        &mut self,
        revision: Digest,
        ids: &[u32],
        kv: &mut SequenceKv,
    ) -> Result<()> {
        self.insert(None, revision, ids, kv)
    }

    /// Lets go of the beginnings in which a text stands that is no more.
    pub(crate) fn forget(&mut self, forget: &Forget) {
        let Some(tree) = self.trees.get_mut(&Some(forget.namespace.clone())) else {
            return;
        };
        let stands = |ids: &[u32]| forget.is_in(&forget.namespace, ids);
        prune(tree, &mut Vec::new(), &stands);
    }

    /// Lets go of what nobody used for longest; false where there is nothing.
    pub(crate) fn let_go(&mut self) -> bool {
        let leaves = |tree: &Vec<Node>| tree.iter().map(Node::oldest).min();
        let oldest = self
            .trees
            .iter()
            .filter_map(|(place, tree)| Some((leaves(tree)?, place.clone())));
        let Some((used, place)) = oldest.min() else {
            return false;
        };
        if let Some(tree) = self.trees.get_mut(&place) {
            drop_leaf(tree, used);
            if tree.is_empty() {
                self.trees.remove(&place);
            }
        }
        true
    }

    fn insert(
        &mut self,
        place: Option<String>,
        revision: Digest,
        ids: &[u32],
        kv: &mut SequenceKv,
    ) -> Result<()> {
        if self.revision != Some(revision) {
            self.trees.clear();
            self.revision = Some(revision);
        }
        if self.common(place.as_deref(), revision, ids) < ids.len() {
            let blocks = kv.leading(ids.len())?;
            self.clock += 1;
            let mut nodes = self.trees.entry(place).or_default();
            for (ids, block) in ids.chunks(SequenceKv::BLOCK).zip(blocks) {
                let Some(node) = put(nodes, ids, block, self.clock) else {
                    break;
                };
                nodes = &mut node.children;
            }
            while self.bytes() > self.budget && self.let_go() {}
        }
        Ok(())
    }

    /// How many of `ids` are kept there.
    fn common(&self, place: Option<&str>, revision: Digest, ids: &[u32]) -> usize {
        let place = place.map(str::to_owned);
        let tree = self
            .trees
            .get(&place)
            .filter(|_| self.revision == Some(revision));
        tree.map_or(0, |tree| kept(tree, ids))
    }

    /// Bytes of all of them.
    pub(crate) fn bytes(&self) -> usize {
        self.trees.values().flatten().map(Node::bytes).sum()
    }
}

impl Node {
    /// Bytes of its block and those behind it.
    fn bytes(&self) -> usize {
        let behind: usize = self.children.iter().map(Self::bytes).sum();
        self.block.bytes() + behind
    }

    /// When the leaf behind it that nobody used for longest was used.
    fn oldest(&self) -> u64 {
        let behind = self.children.iter().map(Self::oldest);
        behind.min().unwrap_or(self.used)
    }
}

/// The child that has most of `ids`, and how many.
fn best(nodes: &[Node], ids: &[u32]) -> Option<(usize, usize)> {
    let shared = nodes.iter().map(|node| common(&node.ids, ids));
    shared.enumerate().max_by_key(|(_, common)| *common)
}

/// The blocks that have most of `ids`, which are marked as used.
fn follow(mut nodes: &mut Vec<Node>, ids: &[u32], clock: u64) -> (Vec<Rc<KvBlock>>, usize) {
    let (mut blocks, mut at) = (Vec::new(), 0);
    while let Some((place, common)) = best(nodes, ids.get(at..).unwrap_or_default())
        && common > 0
        && let Some(node) = nodes.get_mut(place)
    {
        node.used = clock;
        at += common;
        blocks.push(Rc::clone(&node.block));
        if common < SequenceKv::BLOCK {
            break;
        }
        nodes = &mut node.children;
    }
    (blocks, at)
}

/// How many of `ids` are kept.
fn kept(nodes: &[Node], ids: &[u32]) -> usize {
    match best(nodes, ids) {
        Some((place, SequenceKv::BLOCK)) => {
            let behind = nodes.get(place).map_or(&[][..], |node| &node.children);
            let rest = ids.get(SequenceKv::BLOCK..).unwrap_or_default();
            SequenceKv::BLOCK + kept(behind, rest)
        }
        Some((_, common)) => common,
        None => 0,
    }
}

/// The node of `ids` among its like; parts of blocks that it contains go.
fn put<'a>(
    nodes: &'a mut Vec<Node>,
    ids: &[u32],
    block: Rc<KvBlock>,
    clock: u64,
) -> Option<&'a mut Node> {
    if !nodes.iter().any(|node| node.ids == ids) {
        nodes.retain(|node| !ids.starts_with(&node.ids));
        nodes.push(Node {
            ids: ids.to_vec(),
            block,
            children: Vec::new(),
            used: clock,
        });
    }
    let node = nodes.iter_mut().find(|node| node.ids == ids)?;
    node.used = clock;
    Some(node)
}

/// Drops a leaf that was used at `used`.
fn drop_leaf(nodes: &mut Vec<Node>, used: u64) {
    let Some(place) = nodes.iter().position(|node| node.oldest() == used) else {
        return;
    };
    match nodes.get_mut(place) {
        Some(node) if !node.children.is_empty() => drop_leaf(&mut node.children, used),
        _ => drop(nodes.remove(place)),
    }
}

/// Drops the nodes with which `stands` is true of all tokens so far.
fn prune(nodes: &mut Vec<Node>, before: &mut Vec<u32>, stands: &dyn Fn(&[u32]) -> bool) {
    nodes.retain_mut(|node| {
        let start = before.len();
        before.extend(&node.ids);
        let stays = !stands(before);
        if stays {
            prune(&mut node.children, before, stands);
        }
        before.truncate(start);
        stays
    });
}

/// How many tokens two texts have in common at their beginning.
pub(crate) fn common(a: &[u32], b: &[u32]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use std::collections::HashMap;

    use addenda_model::{
        Activation, Architecture, ModelConfig, RopeScaling, SequenceKv, Transformer, Weights,
    };
    use tch::{Device, Kind, Tensor};

    use super::{Forget, Prefixes};
    use crate::digest::Digest;

    const BASE: Digest = Digest([1; 32]);
    /// Bytes of a token of [`model`].
    const TOKEN: usize = 2 * 4 * 4;
    const BLOCK: usize = SequenceKv::BLOCK;

    /// The smallest model: one layer of one head of 4, and weights of nothing.
    fn model() -> Transformer {
        let config = ModelConfig {
            architecture: Architecture::Llama,
            vocab_size: 4,
            hidden_size: 4,
            intermediate_size: 4,
            num_layers: 1,
            num_heads: 1,
            num_kv_heads: 1,
            head_dim: 4,
            norm_eps: 1e-6,
            context: 4096,
            tied_embeddings: true,
            rope_theta: 10_000.0,
            rope_scaling: RopeScaling::None,
            rope_local_theta: None,
            sliding_window: None,
            sliding_layers: vec![false],
            qkv_bias: false,
            qk_norm: false,
            post_norms: false,
            norm_plus_one: false,
            activation: Activation::Silu,
            attention_scale: 0.5,
            embedding_scale: 1.0,
            bos: None,
            eos: Vec::new(),
        };
        let zeros = |shape: &[i64]| Tensor::zeros(shape, (Kind::Float, Device::Cpu));
        let mut tensors = HashMap::new();
        for (name, shape) in [
            ("embed_tokens", &[4, 4][..]),
            ("norm", &[4]),
            ("layers.0.input_layernorm", &[4]),
            ("layers.0.post_attention_layernorm", &[4]),
            ("layers.0.self_attn.q_proj", &[4, 4]),
            ("layers.0.self_attn.k_proj", &[4, 4]),
            ("layers.0.self_attn.v_proj", &[4, 4]),
            ("layers.0.self_attn.o_proj", &[4, 4]),
            ("layers.0.mlp.gate_proj", &[4, 4]),
            ("layers.0.mlp.up_proj", &[4, 4]),
            ("layers.0.mlp.down_proj", &[4, 4]),
        ] {
            tensors.insert(format!("model.{name}.weight"), zeros(shape));
        }
        let weights = Weights::from_tensors(tensors);
        Transformer::load(config, weights, Device::Cpu, Kind::Float).unwrap()
    }

    /// A context of so many tokens; what they are does not matter here.
    fn context(tokens: usize) -> SequenceKv {
        let model = model();
        let mut kv = model.new_kv().unwrap();
        drop(model.prefill(&vec![0; tokens], &mut kv).unwrap());
        kv
    }

    fn ids(range: std::ops::Range<u32>) -> Vec<u32> {
        range.collect()
    }

    #[test]
    fn what_the_daemon_puts_before_documents_is_everybodys_however_short_it_is() {
        let mut prefixes = Prefixes::new(1 << 20);
        prefixes.share(BASE, &[7], &mut context(1)).unwrap();
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
        prefixes
            .keep("a", BASE, &ids(0..40), &mut context(40))
            .unwrap();
        let other = [ids(0..30), ids(90..120)].concat();
        prefixes.keep("a", BASE, &other, &mut context(60)).unwrap();
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
            let kept = prefixes.keep(namespace, BASE, &ids(0..40), &mut context(40));
            kept.unwrap();
        }
        let other = ids(50..90);
        prefixes.keep("a", BASE, &other, &mut context(40)).unwrap();
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
        prefixes
            .keep("a", BASE, &ids(0..20), &mut context(20))
            .unwrap();
        prefixes
            .keep("a", BASE, &ids(0..40), &mut context(40))
            .unwrap();
        prefixes
            .keep("a", BASE, &ids(0..30), &mut context(30))
            .unwrap();
        assert_eq!(prefixes.bytes(), 40 * TOKEN);
        let edited = Digest([2; 32]);
        prefixes
            .keep("a", edited, &ids(0..20), &mut context(20))
            .unwrap();
        assert_eq!(prefixes.bytes(), 20 * TOKEN);
        assert!(prefixes.find("a", BASE, (&ids(0..40), false)).is_none());
    }

    #[test]
    fn what_two_beginnings_have_in_common_is_kept_once_as_far_as_it_fills_blocks() {
        let mut prefixes = Prefixes::new(1 << 20);
        let one = ids(0..600);
        let other = [ids(0..550), ids(900..950)].concat();
        let mut kv = context(600);
        prefixes.keep("a", BASE, &one, &mut kv).unwrap();
        prefixes.keep("a", BASE, &other, &mut context(600)).unwrap();
        assert_eq!(prefixes.bytes(), (600 + 88) * TOKEN);
        // The blocks are the context's own, and nothing is copied for one that goes on.
        let (blocks, common) = prefixes.find("a", BASE, (&one, false)).unwrap();
        assert_eq!((blocks.len(), common), (3, 600));
        assert_eq!(kv.bytes() - kv.tail_bytes(), 2 * BLOCK * TOKEN);
        let model = model();
        let mut next = model.new_kv().unwrap();
        next.begin_with(&blocks, 520).unwrap();
        assert_eq!((next.len(), next.own_tokens()), (520, 520));
        assert_eq!(
            model.kv_bytes(),
            next.tail_bytes(),
            "the blocks are counted already"
        );
        let longer = [&other[..], &[7; 5]].concat();
        let found = prefixes.find("a", BASE, (&longer, false));
        assert_eq!(found.map(|(_, common)| common), Some(600));
        // The end of the last is let go of first, and what both have in common last.
        for left in [600, 2 * BLOCK, BLOCK, 0] {
            assert!(prefixes.let_go());
            assert_eq!(prefixes.bytes(), left * TOKEN);
        }
        assert!(!prefixes.let_go());
    }

    #[test]
    fn a_text_that_is_no_more_is_found_across_blocks_and_takes_what_follows_along() {
        let mut prefixes = Prefixes::new(1 << 20);
        prefixes
            .keep("a", BASE, &ids(0..600), &mut context(600))
            .unwrap();
        prefixes.forget(&Forget {
            namespace: "a".to_owned(),
            texts: vec![ids(250..260)],
            packets: Vec::new(),
            reply: tokio::sync::oneshot::channel().0,
        });
        let found = prefixes.find("a", BASE, (&ids(0..600), false));
        assert_eq!(found.map(|(_, common)| common), Some(BLOCK));
        assert_eq!(prefixes.bytes(), BLOCK * TOKEN);
    }

    #[test]
    fn the_budget_is_kept_and_what_was_used_last_stays() {
        let mut prefixes = Prefixes::new(100 * TOKEN);
        prefixes
            .keep("a", BASE, &ids(0..40), &mut context(40))
            .unwrap();
        prefixes
            .keep("b", BASE, &ids(0..40), &mut context(40))
            .unwrap();
        assert!(prefixes.find("a", BASE, (&ids(0..40), false)).is_some());
        prefixes
            .keep("c", BASE, &ids(0..40), &mut context(40))
            .unwrap();
        assert!(prefixes.find("a", BASE, (&ids(0..40), false)).is_some());
        assert!(prefixes.find("b", BASE, (&ids(0..40), false)).is_none());
        prefixes
            .keep("d", BASE, &ids(0..101), &mut context(101))
            .unwrap();
        assert!(
            prefixes.find("d", BASE, (&ids(0..101), false)).is_none(),
            "too large"
        );
        assert!(prefixes.find("c", BASE, (&ids(0..40), false)).is_some());
    }
}
