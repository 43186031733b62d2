//! A model of a real one's shape with random weights, without a daemon: what a device makes of packets and decode
//! steps, beside what its memory allows. No files of a model are needed, so it runs on a machine without a network.

use std::collections::HashMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use addenda_cache::{PacketId, Store, StoreOptions};
use addenda_model::{
    Activation, Architecture, Input, ModelConfig, PacketKv, PacketShape, RopeScaling, SequenceKv,
    Transformer, Weights, tensor,
};
use rustix::fs::Advice;
use serde_json::json;
use tch::{Device, Kind, Tensor};

use crate::error::{Error, Result, io};
use crate::prefill::{greedy, median};
use crate::store::packet::Sample;

/// Tokens of a prompt that are computed in one pass.
const CHUNK: usize = 2048;
/// Tokens before those that are decoded.
const CONTEXT: usize = 512;
/// Standard deviation of the weights: what models begin their training with.
const DEVIATION: f64 = 0.02;

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Shape {
    /// Llama 3.1 8B: 16 GB in bf16.
    #[value(name = "llama-3.1-8b")]
    Llama318b,
    /// Small enough for any machine.
    Tiny,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// What the model looks like.
    #[arg(long, value_enum, default_value = "llama-3.1-8b")]
    shape: Shape,
    /// Where it computes: `cpu` or `cuda:N` [default: the first GPU, else the CPU].
    #[arg(long)]
    device: Option<String>,
    /// Number of packets.
    #[arg(long, default_value_t = 8)]
    packets: u32,
    /// Tokens of each.
    #[arg(long, default_value_t = 2048)]
    packet_tokens: usize,
    /// Tokens of the question.
    #[arg(long, default_value_t = 32)]
    question_tokens: usize,
    /// Tokens that each sequence decodes.
    #[arg(long, default_value_t = 64)]
    decode: usize,
    /// Sequences that decode together.
    #[arg(long, value_delimiter = ',', default_value = "1,32")]
    batches: Vec<usize>,
    /// Runs of each; medians are shown.
    #[arg(long, default_value_t = 5)]
    runs: usize,
    /// Folder on the disk that packets are loaded from [default: the system's temporary folder].
    #[arg(long)]
    folder: Option<PathBuf>,
    /// Writes the line to this file as well.
    #[arg(long)]
    out: Option<PathBuf>,
    /// One line of JSON (there is no other form yet).
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(arguments: &Arguments) -> Result<serde_json::Value> {
    let device = match &arguments.device {
        Some(name) => tensor::parse_device(name)?,
        None => Device::cuda_if_available(),
    };
    let folder = match &arguments.folder {
        Some(folder) => tempfile::tempdir_in(folder),
        None => tempfile::tempdir(),
    };
    let folder = folder.map_err(io("a temporary folder"))?;
    let bench = Bench::new(arguments.shape, device)?;
    let packets = bench.packets(arguments, folder.path())?;
    let line = json!({
        "date_s": SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs()),
        "processor": processor(), "device": format!("{device:?}"), "threads": tensor::threads(),
        "shape": format!("{:?}", arguments.shape).to_lowercase(), "dtype": "bf16",
        "weight_bytes": bench.weight_bytes(), "runs": arguments.runs,
        "packets": packets.measure(&bench, arguments)?,
        "decode": bench.decode(arguments)?,
        "copy_gb_per_s": bench.copy_rate()? / 1e9,
    });
    if let Some(out) = &arguments.out {
        if let Some(parent) = out.parent() {
            std::fs::create_dir_all(parent).map_err(io(&parent.display().to_string()))?;
        }
        std::fs::write(out, format!("{line}\n")).map_err(io(&out.display().to_string()))?;
    }
    Ok(line)
}

/// The model and where it is.
struct Bench {
    model: Transformer,
    device: Device,
}

impl Bench {
    fn new(shape: Shape, device: Device) -> Result<Self> {
        let config = config(shape);
        let weights = Weights::from_tensors(random(&config, device)?);
        let model = Transformer::load(config, weights, device, Kind::BFloat16)?;
        Ok(Self { model, device })
    }

    fn weight_bytes(&self) -> f64 {
        2.0 * self.model.parameters() as f64
    }

    /// Any tokens: what they are takes no time.
    fn ids(&self, count: usize, salt: u32) -> Vec<u32> {
        let vocabulary = u32::try_from(self.model.config().vocab_size).unwrap_or(1);
        let ids = (0..u32::try_from(count).unwrap_or(0)).map(|at| at.wrapping_mul(7919) + salt);
        ids.map(|id| id % vocabulary).collect()
    }

    /// Seconds until the device has done it.
    fn timed(&self, work: impl FnOnce() -> Result<()>) -> Result<f64> {
        self.wait();
        let started = Instant::now();
        work()?;
        self.wait();
        Ok(started.elapsed().as_secs_f64())
    }

    fn wait(&self) {
        if let Device::Cuda(index) = self.device {
            tch::Cuda::synchronize(i64::try_from(index).unwrap_or(0));
        }
    }

    /// The first token behind a context.
    fn ask(&self, ids: &[u32], kv: &mut SequenceKv) -> Result<Vec<u32>> {
        let mut last = None;
        for chunk in ids.chunks(CHUNK) {
            last = Some(self.model.forward(Input::Ids(chunk), kv)?);
        }
        let last = last.ok_or_else(|| Error::Config("a question needs tokens".to_owned()))?;
        greedy(&self.model.logits(&last.f_narrow(0, -1, 1)?)?)
    }

    /// Documents computed alone and put into a store.
    fn packets(&self, arguments: &Arguments, folder: &Path) -> Result<Packets> {
        let store = open(folder)?;
        let mut packets = Packets {
            folder: folder.to_owned(),
            ids: Vec::new(),
            shape: None,
        };
        for number in 0..arguments.packets {
            let mut kv = self.model.isolated_kv()?;
            let ids = self.ids(arguments.packet_tokens, number);
            for chunk in ids.chunks(CHUNK) {
                drop(self.model.forward(Input::Ids(chunk), &mut kv)?);
            }
            let packet = self.model.packet(kv)?;
            let sample = Sample::of(number, "", (packet.shape(), packet.to_bytes()?));
            packets.ids.push(sample.put(&store)?);
            packets.shape = Some(packet.shape());
        }
        Ok(packets)
    }

    /// Tokens a second of each number of sequences, and as many as memory allows: each weight read once a step.
    fn decode(&self, arguments: &Arguments) -> Result<Vec<serde_json::Value>> {
        let copied = self.copy_rate()?;
        let mut all = Vec::new();
        for &batch in &arguments.batches {
            let mut trunk = self.model.new_kv()?;
            let first = self.ask(&self.ids(CONTEXT, 1), &mut trunk)?;
            let rates = (0..arguments.runs).map(|_| -> Result<f64> {
                let mut kvs = (0..batch)
                    .map(|_| trunk.branch())
                    .collect::<std::result::Result<Vec<_>, _>>()?;
                let mut next = first.repeat(batch);
                let seconds = self.timed(|| {
                    for _ in 0..arguments.decode {
                        let mut borrowed: Vec<&mut SequenceKv> = kvs.iter_mut().collect();
                        let hidden = self.model.decode(&next, &mut borrowed)?;
                        next = greedy(&self.model.decode_logits(&hidden)?)?;
                    }
                    Ok(())
                })?;
                Ok((arguments.decode * batch) as f64 / seconds)
            });
            let rate = median(rates.collect::<Result<Vec<_>>>()?.into_iter());
            let limit = batch as f64 * copied / self.weight_bytes();
            all.push(json!({
                "batch": batch, "context": CONTEXT, "tokens_per_s": rate, "limit_tokens_per_s": limit,
                "of_limit": rate / limit,
            }));
        }
        Ok(all)
    }

    /// Bytes a second that the device's memory moves: read and written once each.
    fn copy_rate(&self) -> Result<f64> {
        let elements = match self.device {
            Device::Cpu => 64 << 20,
            _ => 1 << 30,
        };
        let from = Tensor::f_zeros([elements], (Kind::BFloat16, self.device))?;
        let mut to = from.f_zeros_like()?;
        let mut rates = Vec::new();
        for _ in 0..5 {
            let seconds = self.timed(|| {
                to.f_copy_(&from)?;
                Ok(())
            })?;
            rates.push(4.0 * elements as f64 / seconds);
        }
        Ok(median(rates.into_iter()))
    }
}

/// Packets in a store.
struct Packets {
    folder: PathBuf,
    ids: Vec<PacketId>,
    shape: Option<PacketShape>,
}

impl Packets {
    /// From the question to its first token behind all packets, against full prefill; and how fast packets come onto the
    /// device.
    fn measure(&self, bench: &Bench, arguments: &Arguments) -> Result<serde_json::Value> {
        let question = bench.ids(arguments.question_tokens, 99);
        let (mut full, mut disk, mut memory) = (Vec::new(), Vec::new(), Vec::new());
        let (mut disk_load, mut memory_load) = (Vec::new(), Vec::new());
        for _ in 0..arguments.runs {
            full.push(bench.timed(|| {
                let mut kv = bench.model.new_kv()?;
                for number in 0..arguments.packets {
                    let ids = bench.ids(arguments.packet_tokens, number);
                    for chunk in ids.chunks(CHUNK) {
                        drop(bench.model.forward(Input::Ids(chunk), &mut kv)?);
                    }
                }
                bench.ask(&question, &mut kv).map(drop)
            })?);
            for (from_disk, asked, loaded) in [
                (true, &mut disk, &mut disk_load),
                (false, &mut memory, &mut memory_load),
            ] {
                // Each time a store that has read nothing yet, so every body is verified.
                if from_disk {
                    forget(&self.folder)?;
                }
                let store = open(&self.folder)?;
                let mut packets = Vec::new();
                let load = bench.timed(|| {
                    packets = self.load(&store, bench.device)?;
                    Ok(())
                })?;
                let ask = bench.timed(|| {
                    let mut kv = bench.model.new_kv()?;
                    for packet in packets {
                        kv.attach(packet)?;
                    }
                    bench.ask(&question, &mut kv).map(drop)
                })?;
                loaded.push(load);
                asked.push(load + ask);
            }
        }
        let ms = |times: &[f64]| 1e3 * median(times.iter().copied());
        let bytes = self.shape.map_or(Ok(0), |shape| shape.bytes())? * self.ids.len();
        let rate = |times: &[f64]| bytes as f64 / 1e6 / ms(times);
        Ok(json!({
            "count": arguments.packets, "tokens": arguments.packet_tokens, "question_tokens": arguments.question_tokens,
            "bytes": bytes, "full_ms": ms(&full),
            "ttft_from_disk_ms": ms(&disk), "ttft_from_memory_ms": ms(&memory),
            "ratio_from_disk": ms(&full) / ms(&disk), "ratio_from_memory": ms(&full) / ms(&memory),
            "load_from_disk_gb_per_s": rate(&disk_load), "load_from_memory_gb_per_s": rate(&memory_load),
        }))
    }

    fn load(&self, store: &Store, device: Device) -> Result<Vec<Rc<PacketKv>>> {
        let Some(shape) = self.shape else {
            return Ok(Vec::new());
        };
        let packets = self.ids.iter().map(|id| {
            let body = Box::new(store.read(id)?);
            Ok(Rc::new(PacketKv::from_owner(body, shape, device)?))
        });
        packets.collect()
    }
}

fn open(folder: &Path) -> Result<Store> {
    let options = StoreOptions {
        free_floor: 0,
        ..StoreOptions::default()
    };
    Ok(Store::open(folder, options)?)
}

/// Has the system drop what it keeps in memory of the files below a folder.
fn forget(folder: &Path) -> Result<()> {
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).map_err(io("the store's folder"))? {
            let path = entry.map_err(io("the store's folder"))?.path();
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            let file = File::open(&path).map_err(io(&path.display().to_string()))?;
            let dropped = rustix::fs::fadvise(&file, 0, None, Advice::DontNeed);
            dropped.map_err(|errno| Error::Content(format!("{}: {errno}", path.display())))?;
        }
    }
    Ok(())
}

/// The processor's name, as the system has it.
fn processor() -> String {
    let text = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let name = text
        .lines()
        .find_map(|line| line.strip_prefix("model name"));
    let name = name.and_then(|rest| rest.split_once(':'));
    name.map_or_else(|| "unknown".to_owned(), |(_, name)| name.trim().to_owned())
}

fn config(shape: Shape) -> ModelConfig {
    let large = shape == Shape::Llama318b;
    let pick = |of_large: usize, of_tiny: usize| if large { of_large } else { of_tiny };
    let head_dim = pick(128, 16);
    ModelConfig {
        architecture: Architecture::Llama,
        vocab_size: pick(128_256, 512),
        hidden_size: pick(4096, 64),
        intermediate_size: pick(14_336, 96),
        num_layers: pick(32, 2),
        num_heads: pick(32, 4),
        num_kv_heads: pick(8, 2),
        head_dim,
        norm_eps: 1e-5,
        context: 131_072,
        tied_embeddings: false,
        rope_theta: 500_000.0,
        rope_scaling: RopeScaling::Llama3 {
            factor: 8.0,
            low_freq_factor: 1.0,
            high_freq_factor: 4.0,
            original_context: 8192,
        },
        rope_local_theta: None,
        sliding_window: None,
        sliding_layers: vec![false; pick(32, 2)],
        qkv_bias: false,
        qk_norm: false,
        post_norms: false,
        norm_plus_one: false,
        activation: Activation::Silu,
        attention_scale: 1.0 / (head_dim as f64).sqrt(),
        embedding_scale: 1.0,
        bos: None,
        eos: Vec::new(),
    }
}

/// Weights under their Hugging Face names, bf16 on the device.
fn random(config: &ModelConfig, device: Device) -> Result<HashMap<String, Tensor>> {
    let size = |value: usize| i64::try_from(value).unwrap_or(i64::MAX);
    let (d, inner, vocabulary) = (
        size(config.hidden_size),
        size(config.intermediate_size),
        size(config.vocab_size),
    );
    let queries = size(config.num_heads * config.head_dim);
    let keys = size(config.num_kv_heads * config.head_dim);
    let place = (Kind::BFloat16, device);
    let mut tensors = HashMap::new();
    let mut put = |name: String, shape: &[i64]| -> Result<()> {
        let weight = match shape {
            [_] => Tensor::f_ones(shape, place)?,
            _ => Tensor::f_randn(shape, place)?.f_mul_scalar(DEVIATION)?,
        };
        tensors.insert(format!("{name}.weight"), weight);
        Ok(())
    };
    put("model.embed_tokens".to_owned(), &[vocabulary, d])?;
    put("lm_head".to_owned(), &[vocabulary, d])?;
    put("model.norm".to_owned(), &[d])?;
    for layer in 0..config.num_layers {
        for (name, shape) in [
            ("self_attn.q_proj", &[queries, d][..]),
            ("self_attn.k_proj", &[keys, d]),
            ("self_attn.v_proj", &[keys, d]),
            ("self_attn.o_proj", &[d, queries]),
            ("mlp.gate_proj", &[inner, d]),
            ("mlp.up_proj", &[inner, d]),
            ("mlp.down_proj", &[d, inner]),
            ("input_layernorm", &[d]),
            ("post_attention_layernorm", &[d]),
        ] {
            put(format!("model.layers.{layer}.{name}"), shape)?;
        }
    }
    Ok(tensors)
}

#[cfg(test)]
#[expect(clippy::indexing_slicing, reason = "a test may panic")]
mod tests {
    use clap::Parser;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        arguments: super::Arguments,
    }

    #[test]
    fn a_tiny_shape_goes_all_the_way_on_the_cpu() -> crate::error::Result<()> {
        let words = "shape --shape tiny --device cpu --packets 3 --packet-tokens 70 --decode 3 --batches 1,4 --runs 2";
        let line = super::run(&Line::parse_from(words.split(' ')).arguments)?;
        for (field, at_least) in [
            ("full_ms", 0.0),
            ("ratio_from_disk", 0.0),
            ("load_from_memory_gb_per_s", 0.0),
        ] {
            let value = line["packets"][field].as_f64();
            assert!(
                value.is_some_and(|value| value > at_least && value.is_finite()),
                "{field}: {line}"
            );
        }
        // Keys and values of 70 tokens in 2 layers of 2 heads of 16, bf16.
        assert_eq!(line["packets"]["bytes"], 3 * 70 * 2 * 2 * 2 * 16 * 2);
        let batches = line["decode"].as_array().map(Vec::len);
        assert_eq!(batches, Some(2));
        Ok(())
    }
}
