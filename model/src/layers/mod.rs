//! The transformer's building blocks, one a file. They know tensors and nothing of tokens,
//! packets' origin or edits' meaning.

pub(crate) mod attention;
pub(crate) mod block;
pub(crate) mod linear;
pub(crate) mod mlp;
pub(crate) mod norm;
pub(crate) mod part;
pub(crate) mod rope;
pub(crate) mod stretches;
