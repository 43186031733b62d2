//! The two ways to read a packet, side by side: the query turned back and the parts merged, with
//! packets shared; or the keys turned into a private copy.
//!
//! A model of SmolLM2-135M's shape with random weights in bf16, packets of random KV, each its own
//! memory. Measured are the time until 32 tokens of a question are computed behind the packets, what
//! the packets cost included, and one decode step of each sequence.

use std::collections::HashMap;
use std::hint::black_box;
use std::rc::Rc;
use std::time::Duration;

use addenda_model::tensor::to_bytes;
use addenda_model::{
    Activation, Architecture, Input, ModelConfig, PacketKv, PacketShape, Result, RopeScaling,
    SequenceKv, Transformer, Weights,
};
use criterion::{BenchmarkGroup, BenchmarkId, Criterion, measurement::WallTime};
use tch::{Device, Kind, Tensor};

/// Packets and the tokens of each.
const SIZES: [(usize, usize); 11] = [
    (1, 64),
    (1, 512),
    (1, 2048),
    (1, 8192),
    (8, 64),
    (8, 512),
    (8, 2048),
    (8, 8192),
    (64, 64),
    (64, 512),
    (64, 2048),
];
/// Sequences over the same packets.
const BATCHES: [usize; 2] = [1, 16];
/// Private copies of more tokens than this do not fit the machine, or the time.
const MOST_COPIED: usize = 1 << 16;
/// Tokens of all sequences' contexts together that are measured at most.
const MOST_READ: usize = 1 << 17;
const QUESTION: [u32; 32] = [7; 32];

#[derive(Clone, Copy)]
enum Way {
    Shared,
    Copied,
}

fn config() -> ModelConfig {
    ModelConfig {
        architecture: Architecture::Llama,
        vocab_size: 49_152,
        hidden_size: 576,
        intermediate_size: 1536,
        num_layers: 30,
        num_heads: 9,
        num_kv_heads: 3,
        head_dim: 64,
        norm_eps: 1e-5,
        context: 1 << 18,
        tied_embeddings: true,
        rope_theta: 100_000.0,
        rope_scaling: RopeScaling::None,
        rope_local_theta: None,
        sliding_window: None,
        sliding_layers: vec![false; 30],
        qkv_bias: false,
        qk_norm: false,
        post_norms: false,
        norm_plus_one: false,
        activation: Activation::Silu,
        attention_scale: 0.125,
        embedding_scale: 1.0,
        bos: None,
        eos: Vec::new(),
    }
}

fn model() -> Result<Transformer> {
    let random = |shape: &[i64]| -> Result<Tensor> {
        let tensor = Tensor::f_randn(shape, (Kind::BFloat16, Device::Cpu))?;
        Ok(tensor.f_mul_scalar(0.02)?)
    };
    let mut tensors = HashMap::from([
        (
            "model.embed_tokens.weight".to_owned(),
            random(&[49_152, 576])?,
        ),
        ("model.norm.weight".to_owned(), random(&[576])?),
    ]);
    for layer in 0..30 {
        for (name, shape) in [
            ("self_attn.q_proj", &[576, 576][..]),
            ("self_attn.k_proj", &[192, 576]),
            ("self_attn.v_proj", &[192, 576]),
            ("self_attn.o_proj", &[576, 576]),
            ("mlp.gate_proj", &[1536, 576]),
            ("mlp.up_proj", &[1536, 576]),
            ("mlp.down_proj", &[576, 1536]),
            ("input_layernorm", &[576]),
            ("post_attention_layernorm", &[576]),
        ] {
            let name = format!("model.layers.{layer}.{name}.weight");
            tensors.insert(name, random(shape)?);
        }
    }
    let weights = Weights::from_tensors(tensors);
    Transformer::load(config(), weights, Device::Cpu, Kind::BFloat16)
}

fn packets(count: usize, tokens: usize) -> Result<Vec<Rc<PacketKv>>> {
    let shape = PacketShape {
        layers: 30,
        kv_heads: 3,
        tokens,
        head_dim: 64,
        kind: Kind::BFloat16,
    };
    let elements = i64::try_from(shape.bytes()? / 2).unwrap_or(i64::MAX);
    let random = Tensor::f_randn([elements], (Kind::BFloat16, Device::Cpu))?;
    let bytes = to_bytes(&random)?;
    let packet = |_| {
        Ok(Rc::new(PacketKv::from_owner(
            Box::new(bytes.clone()),
            shape,
            Device::Cpu,
        )?))
    };
    (0..count).map(packet).collect()
}

/// A context with the packets and the question in it.
fn asked(model: &Transformer, packets: &[Rc<PacketKv>], way: Way) -> Result<SequenceKv> {
    let mut kv = model.new_kv()?;
    for packet in packets {
        match way {
            Way::Shared => kv.attach(Rc::clone(packet))?,
            Way::Copied => model.attach_copy(packet, packet.shape().tokens, &mut kv)?,
        }
    }
    let hidden = model.forward(Input::Ids(&QUESTION), &mut kv)?;
    drop(black_box(model.logits(&hidden.f_select(0, -1)?)?));
    Ok(kv)
}

/// One token of each sequence, taken back afterwards.
fn decode(model: &Transformer, running: &mut [SequenceKv]) -> Result<()> {
    for kv in running {
        let len = kv.len();
        let hidden = model.forward(Input::Ids(&[7]), kv)?;
        drop(black_box(model.logits(&hidden)?));
        kv.truncate(len)?;
    }
    Ok(())
}

fn measure(
    criterion: &mut Criterion,
    model: &Transformer,
    (count, tokens): (usize, usize),
    batch: usize,
) -> Result<()> {
    let packets = packets(count, tokens)?;
    let ways = [("turned query", Way::Shared), ("turned copy", Way::Copied)];
    let all = count * tokens * batch;
    let fits = |way: &Way| match way {
        Way::Shared => all <= MOST_READ,
        Way::Copied => all <= MOST_COPIED,
    };
    for (name, way) in ways.into_iter().filter(|(_, way)| fits(way)) {
        let id = || BenchmarkId::new(name, format!("{count}x{tokens}, {batch} sequences"));
        let mut group = group(criterion, "question");
        group.bench_function(id(), |bencher| {
            bencher.iter(|| {
                let running: Result<Vec<_>> =
                    (0..batch).map(|_| asked(model, &packets, way)).collect();
                black_box(running.map(|running| running.len()))
            });
        });
        group.finish();
        let running: Result<Vec<_>> = (0..batch).map(|_| asked(model, &packets, way)).collect();
        let mut running = running?;
        let own: usize = running.iter().map(SequenceKv::bytes).sum();
        let shared = match way {
            Way::Shared => count * model.new_kv()?.bytes_of(tokens)?,
            Way::Copied => 0,
        };
        println!("memory {name} {count}x{tokens} {batch} {}", own + shared);
        let mut group = self::group(criterion, "decode");
        group.bench_function(id(), |bencher| {
            bencher.iter(|| decode(model, &mut running).is_ok());
        });
        group.finish();
    }
    Ok(())
}

fn group<'a>(criterion: &'a mut Criterion, name: &str) -> BenchmarkGroup<'a, WallTime> {
    let mut group = criterion.benchmark_group(name);
    group
        .sample_size(10)
        .sampling_mode(criterion::SamplingMode::Flat)
        .warm_up_time(Duration::from_millis(1))
        .measurement_time(Duration::from_millis(300));
    group
}

fn all(criterion: &mut Criterion) -> Result<()> {
    let model = model()?;
    for size in SIZES {
        for batch in BATCHES {
            measure(criterion, &model, size, batch)?;
        }
    }
    Ok(())
}

fn main() -> Result<()> {
    addenda::process::start_over_prepared();
    let mut criterion = Criterion::default().configure_from_args().without_plots();
    all(&mut criterion)?;
    criterion.final_summary();
    Ok(())
}
