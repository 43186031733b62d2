//! Numbers that look drawn and follow from a seed: `SplitMix64` (Steele et al. 2014), enough for choices, and
//! the same everywhere.

pub(crate) struct Random {
    state: u64,
}

impl Random {
    pub(crate) fn new(state: u64) -> Self {
        Self { state }
    }

    /// A number below `bound`; 0 where that is 0.
    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % bound.max(1)
    }

    /// One of `all`; `None` where there is none.
    pub(crate) fn pick<'a, T>(&mut self, all: &'a [T]) -> Option<&'a T> {
        let index = self.below(all.len() as u64);
        usize::try_from(index).ok().and_then(|index| all.get(index))
    }
}
