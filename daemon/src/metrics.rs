//! What the daemon counts of itself, for Prometheus.
//!
//! Owns every name and every bucket; nothing is global, so that two daemons in one process count
//! apart. Times are in seconds, sizes in bytes. No label carries a text that a client chose.

use std::sync::atomic::AtomicU64;
use std::time::Duration;

use addenda_cache::Stats;
use addenda_editor::Phase;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};

use crate::engine::command::Under;

/// From a request's arrival to its first token, and how long it waits.
const WAITS: [f64; 14] = [
    0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0,
];
/// Between two tokens.
const GAPS: [f64; 12] = [
    0.0025, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.2, 0.5, 1.0, 2.5,
];
/// Sequences in a decode step.
const BATCHES: [f64; 6] = [1.0, 2.0, 4.0, 8.0, 12.0, 16.0];
/// An edit, from its first step to its commit.
const EDITS: [f64; 9] = [0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 1800.0];

/// Where a context's token came from.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct Source {
    source: &'static str,
}

/// What an edit's time went into.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct Work {
    phase: String,
}

/// How something ended.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct Outcome {
    outcome: &'static str,
}

/// The counters; one set a daemon.
#[derive(Debug)]
pub(crate) struct Metrics {
    registry: Registry,
    /// From arrival to first token.
    pub(crate) ttft: Histogram,
    /// From one token of an answer to its next.
    pub(crate) itl: Histogram,
    /// From arrival until the engine took a request in.
    pub(crate) queue_wait: Histogram,
    /// Sequences that one decode step computed a token for.
    pub(crate) batch: Histogram,
    /// Edits and retirings, from their first step to their last.
    pub(crate) edit: Histogram,
    /// Bytes of packets that the scrub verified.
    pub(crate) scrubbed: Counter,
    /// Packets, and ledgers, that the scrub found damaged.
    pub(crate) damaged: Counter,
    /// Contexts that were given up because memory was short.
    pub(crate) parked: Counter,
    tokens: Family<Source, Counter>,
    ended: Family<Outcome, Counter>,
    documents: Family<Outcome, Counter>,
    phases: Family<Work, Counter<f64, AtomicU64>>,
    evicted: Gauge,
    quarantined: Gauge,
    mapped_bytes: Gauge,
    running: Gauge,
    waiting: Gauge,
    kv_bytes: Gauge,
    prefix_bytes: Gauge,
    facts: Gauge,
    store_bytes: Gauge,
    packets: Gauge,
    revision: Gauge<u64, AtomicU64>,
}

/// What is known only when somebody asks.
pub(crate) struct Now {
    /// Requests that wait for the engine.
    pub(crate) waiting: usize,
    pub(crate) under: Under,
    /// The store's figures, where it could say.
    pub(crate) store: Option<Stats>,
}

impl Metrics {
    pub(crate) fn new() -> Self {
        let mut registry = Registry::with_prefix("addenda");
        let mut seconds = |name: &str, help: &str, buckets: &[f64]| {
            let histogram = Histogram::new(buckets.iter().copied());
            registry.register_with_unit(name, help, Unit::Seconds, histogram.clone());
            histogram
        };
        let ttft = seconds(
            "ttft",
            "From a request's arrival to its first token",
            &WAITS,
        );
        let itl = seconds("itl", "Between two tokens of an answer", &GAPS);
        let queue_wait = seconds("queue_wait", "Until the engine took a request in", &WAITS);
        let edit = seconds("edit", "Edits and retirings, start to end", &EDITS);
        let batch = Histogram::new(BATCHES);
        registry.register("decode_batch", "Sequences of a decode step", batch.clone());
        let tokens = Family::<Source, Counter>::default();
        let help = "Tokens of contexts and answers by where they came from";
        registry.register("tokens", help, tokens.clone());
        let ended = Family::<Outcome, Counter>::default();
        registry.register("answers", "Answers by how they ended", ended.clone());
        let mut counter = |name: &str, help: &str| {
            let counter = Counter::default();
            registry.register(name, help, counter.clone());
            counter
        };
        let scrubbed = counter("scrubbed_bytes", "Bytes of packets that the scrub verified");
        let damaged = counter(
            "damaged",
            "Packets and ledgers that the scrub found damaged",
        );
        let parked = counter(
            "parked_sequences",
            "Contexts of sequences that were given up because memory was short, to be computed anew",
        );
        let documents = Family::<Outcome, Counter>::default();
        let help =
            "Documents of contexts that packets serve, by whether they were there or what differed";
        registry.register("documents", help, documents.clone());
        let phases = Family::<Work, Counter<f64, AtomicU64>>::default();
        let help = "Time that edits took, by what it went into; other requests between their steps not counted";
        registry.register_with_unit("edit_phase", help, Unit::Seconds, phases.clone());
        let mut gauge = |name: &str, help: &str| {
            let gauge = Gauge::default();
            registry.register(name, help, gauge.clone());
            gauge
        };
        let running = gauge("running_sequences", "Sequences that the engine computes");
        let waiting = gauge("waiting_requests", "Requests that wait for the engine");
        let kv_bytes = gauge(
            "kv_bytes",
            "KV memory of running sequences and kept beginnings, packets not counted",
        );
        let help = "KV memory of kept beginnings, which running sequences may share";
        let prefix_bytes = gauge("prefix_bytes", help);
        let facts = gauge("active_facts", "Facts in the served weights");
        let store_bytes = gauge("store_bytes", "Bytes of packets on disk");
        let packets = gauge("packets", "Packets that can be read");
        let evicted = gauge("evicted_packets", "Packets evicted since the start");
        let quarantined = gauge("quarantined_packets", "Damaged packets not yet put again");
        let mapped_bytes = gauge("mapped_bytes", "Bytes of packets held in memory maps");
        let revision = Gauge::<u64, AtomicU64>::default();
        let help = "First 48 bits of the weights revision: it changes with every edit";
        registry.register("weights_revision", help, revision.clone());
        Self {
            registry,
            ttft,
            itl,
            queue_wait,
            batch,
            edit,
            scrubbed,
            damaged,
            parked,
            tokens,
            ended,
            documents,
            phases,
            evicted,
            quarantined,
            mapped_bytes,
            running,
            waiting,
            kv_bytes,
            prefix_bytes,
            facts,
            store_bytes,
            packets,
            revision,
        }
    }

    /// Tokens that came from somewhere: "computed", "packet", "prefix" or "generated".
    pub(crate) fn tokens(&self, source: &'static str, count: usize) {
        let counter = self.tokens.get_or_create(&Source { source });
        counter.inc_by(count as u64);
    }

    /// One more answer that ended "well", "failed" or "cancelled".
    pub(crate) fn ended(&self, outcome: &'static str) {
        self.ended.get_or_create(&Outcome { outcome }).inc();
    }

    /// One more document that a context was to read from packets: a "hit", or what differed.
    pub(crate) fn document(&self, outcome: &'static str) {
        self.documents.get_or_create(&Outcome { outcome }).inc();
    }

    /// A step of an edit.
    pub(crate) fn phase(&self, phase: Phase, took: Duration) {
        let work = Work {
            phase: phase.to_string(),
        };
        let counter = self.phases.get_or_create(&work);
        counter.inc_by(took.as_secs_f64());
    }

    /// What the engine holds between two rounds: KV memory in all, and of kept beginnings.
    pub(crate) fn holds(&self, sequences: usize, (kv_bytes, prefix_bytes): (usize, usize)) {
        let count = |value: usize| i64::try_from(value).unwrap_or(i64::MAX);
        self.running.set(count(sequences));
        self.kv_bytes.set(count(kv_bytes));
        self.prefix_bytes.set(count(prefix_bytes));
    }

    /// All of it, in Prometheus' text form.
    pub(crate) fn text(&self, now: &Now) -> String {
        let count = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
        self.waiting.set(count(now.waiting as u64));
        self.facts.set(count(now.under.active_facts as u64));
        let mut first = 0_u64;
        for byte in now.under.revision.0.iter().take(6) {
            first = first << 8 | u64::from(*byte);
        }
        self.revision.set(first);
        if let Some(store) = &now.store {
            self.packets.set(count(store.packets));
            self.store_bytes.set(count(store.disk_bytes));
            self.evicted.set(count(store.evicted));
            self.quarantined.set(count(store.quarantined));
            self.mapped_bytes.set(count(store.mapped_bytes));
        }
        let mut text = String::new();
        match prometheus_client::encoding::text::encode(&mut text, &self.registry) {
            Ok(()) => text,
            // Writing to a String does not fail; what there is would be incomplete.
            Err(error) => format!("# {error}\n"),
        }
    }
}

#[cfg(test)]
#[expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test may panic"
)]
mod tests {
    use addenda_cache::Stats;

    use std::time::Duration;

    use addenda_editor::Phase;

    use super::{Metrics, Now};
    use crate::digest::Digest;
    use crate::engine::command::{NO_ADAPTER, Under};

    /// What the dashboard that ships asks for.
    const DASHBOARD: &str = include_str!("../dashboards/grafana.json");

    #[test]
    fn each_metric_of_the_dashboard_is_one_that_is_counted() {
        let metrics = Metrics::new();
        // A family shows itself once it has a member.
        metrics.tokens("packet", 1);
        metrics.ended("well");
        metrics.document("hit");
        metrics.phase(Phase::Value, Duration::from_secs(1));
        let text = metrics.text(&Now {
            waiting: 0,
            under: under(),
            store: None,
        });
        let dashboard: serde_json::Value = serde_json::from_str(DASHBOARD).unwrap();
        let mut asked = 0;
        for panel in dashboard["panels"].as_array().unwrap() {
            for target in panel["targets"].as_array().unwrap() {
                let expression = target["expr"].as_str().unwrap();
                let words = expression.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
                for name in words.filter(|word| word.starts_with("addenda_")) {
                    let found = text.lines().any(|line| {
                        line.strip_prefix(name)
                            .is_some_and(|rest| rest.starts_with(['{', ' ']))
                    });
                    assert!(found, "{name} is not among\n{text}");
                    asked += 1;
                }
            }
        }
        assert!(asked > 15, "{asked}");
    }

    fn under() -> Under {
        Under {
            revision: Digest([1; 32]),
            adapter: NO_ADAPTER,
            wrapping: NO_ADAPTER,
            active_facts: 7,
            changed: false,
        }
    }

    #[test]
    fn what_was_counted_stands_in_the_text() {
        let metrics = Metrics::new();
        metrics.ttft.observe(0.3);
        metrics.tokens("packet", 512);
        metrics.ended("well");
        metrics.document("revision");
        metrics.phase(Phase::Solve, Duration::from_millis(1500));
        metrics.phase(Phase::Solve, Duration::from_millis(500));
        metrics.holds(3, (4096, 1024));
        let mut store = Stats::default();
        store.disk_bytes = 1_000;
        let now = Now {
            waiting: 2,
            under: under(),
            store: Some(store),
        };
        let text = metrics.text(&now);
        for line in [
            "addenda_ttft_seconds_bucket{le=\"0.5\"} 1",
            "addenda_ttft_seconds_bucket{le=\"0.25\"} 0",
            "addenda_tokens_total{source=\"packet\"} 512",
            "addenda_answers_total{outcome=\"well\"} 1",
            "addenda_documents_total{outcome=\"revision\"} 1",
            "addenda_edit_phase_seconds_total{phase=\"solving for the weights\"} 2.0",
            "addenda_running_sequences 3",
            "addenda_kv_bytes 4096",
            "addenda_prefix_bytes 1024",
            "addenda_waiting_requests 2",
            "addenda_active_facts 7",
            "addenda_store_bytes 1000",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} in\n{text}");
        }
    }
}
