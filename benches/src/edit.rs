//! Facts of a CounterFact file through the editor, without a daemon: quality, cost, and what retiring brings back.
//!
//! Bars are off, so that what fails is counted and not refused. With `--sequential` batches are added to what is
//! there and all facts are measured on the final weights; without, each batch stands alone on the base weights.
//! Nothing is kept but second moments, which go to the cache directory.

mod meter;
mod records;
mod summary;

use std::path::PathBuf;
use std::time::Instant;

use addenda_editor::{
    Corpus, Disk, Editor, EditorOptions, FactId, Method, Progress, SNAPSHOT_EVERY, Settings,
};
use addenda_model::{Tokenizer, Transformer};
use serde_json::{Map, Value, json};

use crate::Opened;
use crate::error::{Error, Result};
use meter::{Marks, Meter};
use records::Record;
use summary::{Summary, share};

#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// A model's path or its name in the catalogue.
    #[arg(long, default_value = "smollm2-135m")]
    model: String,
    /// "memit", "rome", "alphaedit", or "auto": the settings' choice for the model.
    #[arg(long, default_value = "auto")]
    method: String,
    /// The file of records.
    #[arg(long, value_name = "FILE")]
    counterfact: PathBuf,
    /// How many of its records.
    #[arg(long, default_value_t = 100)]
    facts: usize,
    /// Facts of one batch; all by default, and one by ROME.
    #[arg(long)]
    batch: Option<usize>,
    /// Add each batch to those before it, and measure all facts on the final weights.
    #[arg(long)]
    sequential: bool,
    /// Text that second moments are measured on; the one that ships by default.
    #[arg(long, value_name = "FILE")]
    corpus: Option<PathBuf>,
    /// Tokens of it at most; the settings' by default.
    #[arg(long)]
    corpus_tokens: Option<usize>,
    /// Tokens of each of its windows; the settings' by default.
    #[arg(long)]
    corpus_window: Option<usize>,
    /// Text for perplexity; `wikitext2-test.txt` beside the records by default, where there is one.
    #[arg(long, value_name = "FILE")]
    text: Option<PathBuf>,
    /// Tokens of it.
    #[arg(long, default_value_t = 20_000)]
    text_tokens: usize,
    /// Where batches stand alone: for how many of them perplexity is measured.
    #[arg(long, default_value_t = 3)]
    text_batches: usize,
    /// Records whose prompts are written on to judge fluency.
    #[arg(long, default_value_t = 10)]
    fluency: usize,
    /// Facts to retire again, of those that hold at the end; half of them by default.
    #[arg(long)]
    retire: Option<usize>,
    /// Edited layers; the settings' by default.
    #[arg(long, value_delimiter = ',')]
    layers: Vec<usize>,
    /// Weight of the second moment, or AlphaEdit's ridge; the settings' by default.
    #[arg(long)]
    lambda: Option<f64>,
    /// By which power of their number λ grows beyond 100 facts, in thousandths; the settings' by default.
    #[arg(long)]
    lambda_growth: Option<u32>,
    /// AlphaEdit: thousandths of the second moment's trace that may be changed freely.
    #[arg(long)]
    free_energy: Option<u32>,
    /// Sampled contexts that each target is sought in, besides the bare prompt.
    #[arg(long)]
    contexts: Option<usize>,
    /// How many of them are asked in one step; 0 is all.
    #[arg(long)]
    contexts_a_step: Option<usize>,
    /// Of how many of them the mean key is half of a fact's key; 0 takes the bare prompt's alone.
    #[arg(long)]
    key_contexts: Option<usize>,
    /// Write what became of each record into this file, one line of JSON each.
    #[arg(long, value_name = "FILE")]
    details: Option<PathBuf>,
    /// Step size in units of rms(h).
    #[arg(long)]
    learning_rate: Option<f64>,
    /// Nats by which a target must win before the search for it ends.
    #[arg(long)]
    margin: Option<f64>,
    /// Steps of the search at most.
    #[arg(long)]
    steps: Option<usize>,
    /// How many times ‖h‖ a change may be long.
    #[arg(long)]
    clamp: Option<f64>,
    /// Weight of a change's length in the loss.
    #[arg(long)]
    decay: Option<f64>,
    /// Weight of the divergence at "{subject} is a".
    #[arg(long)]
    kl: Option<f64>,
    /// Tokens of a sampled context.
    #[arg(long)]
    context_tokens: Option<usize>,
    /// "bf16" or "f32".
    #[arg(long, default_value = "f32")]
    dtype: String,
    /// Computing threads; 0 takes one a core.
    #[arg(long, default_value_t = 0)]
    threads: usize,
    /// One line of JSON (there is no other form yet).
    #[arg(long)]
    json: bool,
}

impl Arguments {
    fn method(&self) -> Result<Option<Method>> {
        Ok(match self.method.as_str() {
            "auto" => None,
            name => Some(name.parse()?),
        })
    }

    /// Facts of one batch.
    fn batch(&self) -> usize {
        let default = if self.method == "rome" { 1 } else { self.facts };
        self.batch.unwrap_or(default).max(1)
    }
}

/// Everything that a trial needs.
struct Bench {
    model: Transformer,
    tokenizer: Tokenizer,
    editor: Editor,
    records: Vec<Record>,
    method: Option<Method>,
    text: Option<String>,
    text_tokens: usize,
    /// What was spent on adding: by the clock, and by the processors.
    seconds: f64,
    cpu_seconds: f64,
    clock: Clock,
    /// Of the optimiser, over all facts.
    steps: usize,
    refused: usize,
    /// Ledger and such; removed at the end.
    _dir: tempfile::TempDir,
}

/// What a trial ended with.
struct Trial {
    after: Vec<Marks>,
    /// Perplexities, one for each batch that it was measured for.
    perplexities: Vec<f64>,
    fluency: Option<f64>,
    retired: Map<String, Value>,
}

pub(crate) fn run(arguments: &Arguments) -> Result<Value> {
    let mut bench = Bench::open(arguments)?;
    let records = bench.records.clone();
    let before = bench.meter().marks(&records)?;
    let written = records.get(..arguments.fluency.min(records.len()));
    let fluency_before = bench.meter().fluency(written.unwrap_or_default())?;
    let ppl_before = bench.perplexity()?;
    let base = bench.meter().logits(&records)?;
    let trial = if arguments.sequential || arguments.batch() >= records.len() {
        bench.accumulate(arguments, &before)?
    } else {
        bench.stand_alone(arguments)?
    };
    if let Some(path) = &arguments.details {
        let lines = summary::details(&records, &before, &trial.after);
        std::fs::write(path, lines).map_err(|source| Error::Io {
            what: path.display().to_string(),
            source,
        })?;
    }
    let all: Vec<FactId> = bench.editor.list(false, 0).map(|fact| fact.id).collect();
    bench.retire(&all)?;
    let apart = (bench.meter().logits(&records)? - base).f_abs()?.f_max()?;
    let n = records.len() as f64;
    let rises = trial.perplexities.iter().zip(ppl_before.iter().cycle());
    let rise = rises
        .map(|(after, before)| after / before - 1.0)
        .reduce(f64::max);
    let solve = bench.editor.settings().solve_by(bench.method);
    let about = json!({
        "model": arguments.model, "method": solve.method.to_string(),
        "layers": solve.layers, "lambda": solve.lambda, "dtype": arguments.dtype,
        "n": records.len(), "batch": arguments.batch(),
        "sequential": arguments.sequential, "refused": bench.refused,
        "fluency": trial.fluency, "fluency_before": fluency_before,
        "ppl_before": ppl_before, "ppl_after": mean(&trial.perplexities), "ppl_rise_max": rise,
        "seconds_per_fact": bench.seconds / n, "cpu_seconds_per_fact": bench.cpu_seconds / n,
        "steps_per_fact": bench.steps as f64 / n, "cpu_seconds": bench.clock.spent,
        "retire_max_diff": f64::try_from(apart)?,
    });
    let mut line = Summary {
        before: &before,
        after: &trial.after,
    }
    .into_map();
    if let Value::Object(about) = about {
        line.extend(about);
    }
    line.extend(trial.retired);
    Ok(Value::Object(line))
}

impl Bench {
    fn open(arguments: &Arguments) -> Result<Self> {
        let records = records::read(&arguments.counterfact, arguments.facts)?;
        let Opened {
            mut model,
            tokenizer,
            fingerprint,
            ..
        } = crate::open(&arguments.model, &arguments.dtype, arguments.threads)?;
        let dir = crate::temporary_folder()?;
        let corpus = match &arguments.corpus {
            Some(path) => Corpus::new(crate::read_text(path)?),
            None => Corpus::shipped(),
        };
        let options = EditorOptions {
            ledger_dir: dir.path().join("ledger"),
            moment_dir: crate::cache_dir()?.join("moments"),
            fingerprint,
            settings: settings(arguments, &model)?,
            corpus,
            snapshot_every: SNAPSHOT_EVERY,
            disk: Disk::default(),
        };
        let editor = Editor::open(options, &mut model, &tokenizer, &mut go_on)?;
        let method = arguments.method()?;
        editor.prepare(&model, &tokenizer, method, &mut go_on)?;
        let beside = arguments.counterfact.with_file_name("wikitext2-test.txt");
        let text = match &arguments.text {
            Some(path) => Some(crate::read_text(path)?),
            None if beside.is_file() => Some(crate::read_text(&beside)?),
            None => None,
        };
        Ok(Self {
            model,
            tokenizer,
            editor,
            records,
            method,
            text,
            text_tokens: arguments.text_tokens,
            seconds: 0.0,
            cpu_seconds: 0.0,
            clock: Clock::default(),
            steps: 0,
            refused: 0,
            _dir: dir,
        })
    }

    fn meter(&self) -> Meter<'_> {
        Meter {
            model: &self.model,
            tokenizer: &self.tokenizer,
        }
    }

    fn perplexity(&self) -> Result<Option<f64>> {
        let text = self.text.as_ref();
        text.map(|text| self.meter().perplexity(text, self.text_tokens))
            .transpose()
    }

    /// Adds the records; gives the ids of those that were taken, in order.
    fn add(&mut self, records: &[Record]) -> Result<Vec<FactId>> {
        let method = self.method;
        let requests = records.iter().map(|record| record.request(method));
        let requests = requests.collect();
        let (begun, cpu) = (Instant::now(), cpu_seconds());
        let clock = &mut self.clock;
        let mut pace = |progress: Progress| {
            clock.begin(&progress.phase.to_string());
            Ok(())
        };
        let answers = self
            .editor
            .add_all(&mut self.model, &self.tokenizer, requests, &mut pace)?;
        self.clock.begin("");
        self.seconds += begun.elapsed().as_secs_f64();
        self.cpu_seconds += cpu_seconds() - cpu;
        let mut ids = Vec::new();
        for (answer, record) in answers.into_iter().zip(records) {
            match answer {
                Ok(added) => {
                    self.steps += added.record.steps;
                    ids.push(added.record.id);
                }
                Err(error) => {
                    self.refused += 1;
                    eprintln!("refused: {}: {error}", record.prompt);
                }
            }
        }
        Ok(ids)
    }

    fn retire(&mut self, ids: &[FactId]) -> Result<()> {
        let planned = self
            .editor
            .plan_retire(&self.model, &self.tokenizer, ids, &mut go_on)?;
        self.editor.commit_retire(&mut self.model, planned)?;
        Ok(())
    }

    /// All batches in the same weights.
    fn accumulate(&mut self, arguments: &Arguments, before: &[Marks]) -> Result<Trial> {
        let records = self.records.clone();
        let mut ids = Vec::new();
        for batch in records.chunks(arguments.batch()) {
            ids.extend(self.add(batch)?);
            eprintln!("{} facts, {:.1} s in all", ids.len(), self.seconds);
        }
        let after = self.meter().marks(&records)?;
        let written = records.get(..arguments.fluency.min(records.len()));
        let fluency = self.meter().fluency(written.unwrap_or_default())?;
        let perplexities = self.perplexity()?.into_iter().collect();
        let count = arguments.retire.unwrap_or(ids.len() / 2).min(ids.len());
        let retired = match ids.len() == records.len() {
            true => self.take_back(&ids, count, (before, &after))?,
            false => Map::new(),
        };
        Ok(Trial {
            after,
            perplexities,
            fluency,
            retired,
        })
    }

    /// Retires every second fact, until there are `count`, and looks what became of them and of the others: whether
    /// the first token is again that of the base, and how far the true answer's NLL is from the base's. Both feel what
    /// the remaining facts do to prompts like theirs: the weights are those of a model that never had the retired ones.
    fn take_back(
        &mut self,
        ids: &[FactId],
        count: usize,
        (before, after): (&[Marks], &[Marks]),
    ) -> Result<Map<String, Value>> {
        let order = (0..ids.len()).step_by(2).chain((1..ids.len()).step_by(2));
        let gone: std::collections::BTreeSet<usize> = order.take(count).collect();
        let leaving: Vec<FactId> = gone.iter().filter_map(|at| ids.get(*at).copied()).collect();
        self.retire(&leaving)?;
        let now = self.meter().marks(&self.records)?;
        let all = || before.iter().zip(after).zip(&now).enumerate();
        let left = all().filter(|(at, _)| gone.contains(at));
        let stayed = all().filter(|(at, _)| !gone.contains(at));
        let back: Vec<bool> = left
            .clone()
            .map(|(_, ((then, _), now))| then.prompt[0].first == now.prompt[0].first)
            .collect();
        let gaps: Vec<f64> = left
            .map(|(_, ((then, _), now))| (then.prompt[1].nll - now.prompt[1].nll).abs())
            .collect();
        let held: Vec<bool> = stayed
            .map(|(_, ((_, with), now))| with.prompt[0].top1 == now.prompt[0].top1)
            .collect();
        let figures = json!({
            "retired": count,
            "retired_argmax_back": share(back.into_iter()),
            "retired_nll_mean_diff": mean(&gaps),
            "retired_nll_max_diff": gaps.iter().copied().reduce(f64::max),
            "retired_nll_within_0.3": share(gaps.iter().map(|gap| *gap <= 0.3)),
            "retired_others_unchanged": share(held.into_iter()),
        });
        Ok(match figures {
            Value::Object(map) => map,
            _ => Map::new(),
        })
    }

    /// Each batch on the base weights.
    fn stand_alone(&mut self, arguments: &Arguments) -> Result<Trial> {
        let records = self.records.clone();
        let (mut after, mut perplexities) = (Vec::new(), Vec::new());
        let (mut fluency, mut written) = (0.0, 0.0);
        for batch in records.chunks(arguments.batch()) {
            let ids = self.add(batch)?;
            after.extend(self.meter().marks(batch)?);
            if perplexities.len() < arguments.text_batches {
                perplexities.extend(self.perplexity()?);
            }
            if written < arguments.fluency as f64 {
                fluency += self.meter().fluency(batch)?.unwrap_or(0.0) * batch.len() as f64;
                written += batch.len() as f64;
            }
            self.retire(&ids)?;
            eprintln!("{} facts, {:.1} s in all", after.len(), self.seconds);
        }
        Ok(Trial {
            after,
            perplexities,
            fluency: (written > 0.0).then(|| fluency / written),
            retired: Map::new(),
        })
    }
}

fn mean(values: &[f64]) -> Option<f64> {
    (!values.is_empty()).then(|| values.iter().sum::<f64>() / values.len() as f64)
}

fn settings(arguments: &Arguments, model: &Transformer) -> Result<Settings> {
    let mut settings = Settings::for_model(model.config())?;
    if let Some(method) = arguments.method()? {
        settings.solve = settings.solve_by(Some(method));
    }
    if !arguments.layers.is_empty() {
        settings.solve.layers.clone_from(&arguments.layers);
    }
    settings.solve.lambda = arguments.lambda.unwrap_or(settings.solve.lambda);
    settings.solve.lambda_growth = arguments
        .lambda_growth
        .unwrap_or(settings.solve.lambda_growth);
    if settings.solve.free_energy.is_some() {
        settings.solve.free_energy = arguments.free_energy.or(settings.solve.free_energy);
    }
    settings.moment.tokens = arguments.corpus_tokens.unwrap_or(settings.moment.tokens);
    settings.moment.window = arguments.corpus_window.unwrap_or(settings.moment.window);
    let value = &mut settings.value;
    value.contexts = arguments.contexts.unwrap_or(value.contexts);
    value.contexts_a_step = arguments.contexts_a_step.unwrap_or(value.contexts_a_step);
    settings.solve.key_contexts = arguments
        .key_contexts
        .unwrap_or(settings.solve.key_contexts);
    value.learning_rate = arguments.learning_rate.unwrap_or(value.learning_rate);
    value.margin = arguments.margin.unwrap_or(value.margin);
    value.steps = arguments.steps.unwrap_or(value.steps);
    value.clamp = arguments.clamp.unwrap_or(value.clamp);
    value.decay = arguments.decay.unwrap_or(value.decay);
    value.kl = arguments.kl.unwrap_or(value.kl);
    value.context_tokens = arguments.context_tokens.unwrap_or(value.context_tokens);
    settings.bars.target_probability = 0.0;
    settings.bars.target_top1 = false;
    settings.bars.make_probes = false;
    settings.bars.perplexity = f64::INFINITY;
    settings.bars.perplexity_total = f64::INFINITY;
    Ok(settings)
}

/// CPU seconds by what they were spent on.
#[derive(Default)]
struct Clock {
    spent: std::collections::BTreeMap<String, f64>,
    running: Option<(String, f64)>,
}

impl Clock {
    /// What was running ends, and this begins; nothing where it is empty.
    fn begin(&mut self, what: &str) {
        let now = cpu_seconds();
        if let Some((what, since)) = self.running.take() {
            *self.spent.entry(what).or_default() += now - since;
        }
        self.running = (!what.is_empty()).then(|| (what.to_owned(), now));
    }
}

fn go_on(_: Progress) -> addenda_editor::Result<()> {
    Ok(())
}

/// Seconds that the processors have spent on this process, as Linux counts them; 0 elsewhere.
fn cpu_seconds() -> f64 {
    /// Linux's clock ticks a second, as `/proc` shows them on every architecture.
    const TICKS: f64 = 100.0;
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    // Behind the name's bracket: state, then 10 fields, then user and system time.
    let fields = stat.rsplit(')').next().unwrap_or_default();
    let times = fields.split_whitespace().skip(11).take(2);
    times
        .filter_map(|ticks| ticks.parse::<f64>().ok())
        .sum::<f64>()
        / TICKS
}
