//! Every bound of the wire in one place. The .proto files state the same figures to callers.
//!
//! Owns numbers only. Whatever a client can make larger has its limit here.

use std::time::Duration;

/// Largest message in either direction: one document and its frame.
pub(crate) const MESSAGE_BYTES: usize = DOCUMENT_BYTES + (1 << 20);
/// Largest document, bytes of UTF-8.
pub(crate) const DOCUMENT_BYTES: usize = 8 << 20;
/// Largest prompt, continuation or single turn, bytes of UTF-8.
pub(crate) const TEXT_BYTES: usize = 1 << 20;
/// Longest document name.
pub(crate) const NAME_BYTES: usize = 256;
/// Longest namespace.
pub(crate) const NAMESPACE_BYTES: usize = 64;
/// Turns of one conversation.
pub(crate) const TURNS: usize = 256;
/// Longest role of a turn.
pub(crate) const ROLE_BYTES: usize = 64;
/// Documents that one request answers from.
pub(crate) const DOCUMENTS: usize = 256;
/// Stop strings of one request.
pub(crate) const STOPS: usize = 16;
/// Longest stop string.
pub(crate) const STOP_BYTES: usize = 256;
/// Beams of one answer.
pub(crate) const BEAMS: u32 = 16;
/// Highest length penalty of a beam search.
pub(crate) const LENGTH_PENALTY: f32 = 4.0;
/// Alternatives reported with each token.
pub(crate) const TOP_LOGPROBS: u32 = 20;
/// Continuations that one request scores.
pub(crate) const CONTINUATIONS: usize = 64;
/// Queries of one lookup.
pub(crate) const QUERIES: usize = 1024;
/// Entries of a page where the caller does not say.
pub(crate) const PAGE: u32 = 100;
/// Entries of the largest page.
pub(crate) const LARGEST_PAGE: u32 = 1000;
/// Sequences that run at once; others wait in the queue.
pub(crate) const RUNNING: usize = 16;
/// Sequences whose tokens are decoded in one step; each weight is read once for all of them.
pub(crate) const DECODED_TOGETHER: usize = 16;
/// Events of one answer that may wait for its client; then the sequence pauses.
pub(crate) const EVENTS: usize = 64;
/// Adapters of one data directory.
pub(crate) const ADAPTERS: usize = 256;
/// Suites that one training names; one may be named more than once.
pub(crate) const SUITES: usize = 32;
/// Packets between the engine and the disk: one is computed, one waits for it, two are written.
pub(crate) const BUILDS: usize = 4;
/// Documents of one warm-up that are in work at once, and their bytes; one at least.
pub(crate) const WARM_DOCUMENTS: usize = 8;
pub(crate) const WARM_BYTES: usize = 16 << 20;
/// Ended jobs that are remembered.
pub(crate) const ENDED_JOBS: usize = 1000;
/// Requests that one connection may have open.
pub(crate) const REQUESTS_PER_CONNECTION: usize = 256;
/// Times that a request whose packets became stale under it begins again.
pub(crate) const STALE_RETRIES: usize = 4;
/// How long running requests may go on once the daemon was told to stop.
pub(crate) const DRAIN: Duration = Duration::from_secs(20);
/// Tokens of each document that a linked context computes at most.
pub(crate) const LINK_TOKENS: u32 = 65_536;
/// The same where the caller does not say.
pub(crate) const DEFAULT_LINK_TOKENS: u32 = 32;
/// Share of the documents' tokens that a blended context computes where the caller does not say.
pub(crate) const DEFAULT_BLEND_SHARE: f32 = 0.15;
/// Facts of a stream that are worked out together.
pub(crate) const FACTS_TOGETHER: usize = 16;
/// Largest patch file that is taken in, and the parts in which one is given out.
pub(crate) const PATCH_BYTES: usize = 256 << 20;
pub(crate) const PATCH_CHUNK: usize = 1 << 20;
/// Facts that are traced at once, and draws of noise for each.
pub(crate) const TRACED_FACTS: usize = 256;
pub(crate) const TRACED_DRAWS: u32 = 32;
/// How long a batch of facts waits for the next one of its stream.
pub(crate) const GATHER: Duration = Duration::from_millis(20);
/// Ledger entries that a watcher reads at once.
pub(crate) const LEDGER_BATCH: usize = 256;
/// How long requests that were ended may take to tell their clients.
pub(crate) const LAST_WORDS: Duration = Duration::from_secs(5);
/// The least pause between two stretches of the scrub.
pub(crate) const WATCH: Duration = Duration::from_secs(1);
/// How long the scrub rests between two laps.
pub(crate) const SCRUB_EVERY: Duration = Duration::from_secs(24 * 3600);
/// How often it is asked whether a compaction is worth it.
pub(crate) const COMPACT_EVERY: Duration = Duration::from_secs(60);
/// How often a silent connection is asked whether its client is there, and how long it may think.
pub(crate) const KEEPALIVE: Duration = Duration::from_secs(20);
