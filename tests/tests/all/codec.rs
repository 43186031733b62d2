//! Packets kept in 8 and 4 bits: how far they are from what was computed, how large they are, and
//! what is refused.

use crate::tiny;
use std::rc::Rc;
use std::time::Instant;

use addenda_model::{
    Codec, Input, ModelFiles, PacketKv, PacketShape, Tokenizer, Transformer, tensor,
};
use tch::{Device, Kind, Tensor};

use crate::daemon::{self, Daemon, document};
use crate::models::{self, SMOLLM2};

/// Prose of about 600 tokens.
const PROSE: &str = include_str!("../../../editor/data/perplexity.txt");

/// A packet of these tensors, each layer's keys and then its values.
fn packet(planes: &[Tensor], kind: Kind) -> PacketKv {
    let size = planes[0].size();
    let dimension = |at: usize| usize::try_from(size[at]).unwrap();
    let shape = PacketShape {
        layers: planes.len() / 2,
        kv_heads: dimension(0),
        tokens: dimension(1),
        head_dim: dimension(2),
        kind,
    };
    let bytes = planes
        .iter()
        .flat_map(|plane| tensor::to_bytes(&plane.to_kind(kind)).unwrap());
    PacketKv::from_owner(Box::new(bytes.collect::<Vec<u8>>()), shape, Device::Cpu).unwrap()
}

/// The tensors of a packet, each layer's keys and then its values, in f32.
fn planes(packet: &PacketKv) -> Vec<Tensor> {
    let shape = packet.shape();
    let dims =
        [shape.kv_heads, shape.tokens, shape.head_dim].map(|size| i64::try_from(size).unwrap());
    let bytes = packet.to_bytes().unwrap();
    let plane = bytes.len() / shape.layers / 2;
    bytes
        .chunks(plane)
        .map(|bytes| {
            tensor::from_bytes(bytes, &dims, shape.kind)
                .unwrap()
                .to_kind(Kind::Float)
        })
        .collect()
}

fn again(codec: Codec, packet: &PacketKv) -> PacketKv {
    let bytes = codec.encode(packet).unwrap();
    assert_eq!(bytes.len(), codec.bytes(packet.shape()).unwrap());
    codec.decode(&bytes, packet.shape(), Device::Cpu).unwrap()
}

/// ‖a − b‖ / ‖a‖ over all layers: of the keys, and of the values.
fn apart(a: &PacketKv, b: &PacketKv) -> [f64; 2] {
    let (a, b) = (planes(a), planes(b));
    [0, 1].map(|first| {
        let pairs = || a.iter().zip(&b).skip(first).step_by(2);
        let square = |t: Tensor| t.square().sum(Kind::Double).double_value(&[]);
        let error: f64 = pairs().map(|(a, b)| square(a - b)).sum();
        let whole: f64 = pairs().map(|(a, _)| square(a.shallow_clone())).sum();
        (error / whole).sqrt()
    })
}

fn random(heads: i64, tokens: i64, head_dim: i64, seed: i64) -> Vec<Tensor> {
    let _seeded = tiny::seeded(seed);
    (0..4)
        .map(|_| Tensor::randn([heads, tokens, head_dim], (Kind::Float, Device::Cpu)))
        .collect()
}

#[test]
fn coded_packets_come_back_close_whatever_their_length_and_heads() {
    for (heads, tokens, head_dim) in [
        (3, 1, 64),
        (1, 2, 2),
        (2, 31, 16),
        (2, 33, 80),
        (3, 64, 64),
        (3, 65, 64),
        (1, 127, 256),
        (2, 200, 96),
    ] {
        for kind in [Kind::Float, Kind::BFloat16] {
            let packet = packet(&random(heads, tokens, head_dim, 7), kind);
            for (codec, bar) in [(Codec::Int8, 0.012), (Codec::Int4, 0.15)] {
                let found = again(codec, &packet);
                assert_eq!(found.shape(), packet.shape());
                assert!(!found.is_borrowed());
                let apart = apart(&packet, &found);
                let what = format!("{codec} of {tokens} tokens of {heads} heads of {head_dim}");
                assert!(apart.iter().all(|apart| *apart < bar), "{what}: {apart:?}");
            }
            let plain = again(Codec::None, &packet);
            assert_eq!(apart(&packet, &plain), [0.0, 0.0]);
        }
    }
}

#[test]
fn no_number_is_further_off_than_half_a_step_of_its_group() {
    // One channel of the keys is far out, as real keys have them; it must not blur the others.
    let tensors = random(2, 100, 32, 8);
    let _ = tensors[0]
        .narrow(2, 5, 1)
        .g_mul_scalar_(300.0)
        .g_add_scalar_(1000.0);
    let whole = packet(&tensors, Kind::Float);
    for (codec, levels) in [(Codec::Int8, 255.0), (Codec::Int4, 15.0)] {
        let found = planes(&again(codec, &whole));
        let error = (&tensors[0] - &found[0]).abs();
        let outlier = error.narrow(2, 5, 1).max().double_value(&[]);
        // A group reaches over 300 times what a normal number reaches over, which is below 10, and
        // its bf16 centre is off by no more than 4.
        assert!(
            outlier <= 0.505 * (3000.0 + 8.0) / levels,
            "{codec}: {outlier}"
        );
        let _ = error.narrow(2, 5, 1).zero_();
        let others = error.max().double_value(&[]);
        assert!(others <= 0.52 * 10.0 / levels, "{codec}: {others}");
        let values = (&tensors[1] - &found[1]).abs().max().double_value(&[]);
        assert!(values <= 0.52 * 10.0 / levels, "{codec}: {values}");
    }
}

#[test]
fn constant_and_empty_channels_come_back_as_they_were() {
    let mut tensors = random(1, 70, 32, 9);
    tensors[0] = Tensor::full([1, 70, 32], -3.25, (Kind::Float, Device::Cpu));
    tensors[1] = Tensor::zeros([1, 70, 32], (Kind::Float, Device::Cpu));
    let whole = packet(&tensors, Kind::Float);
    for codec in [Codec::Int8, Codec::Int4] {
        let found = planes(&again(codec, &whole));
        assert_eq!(found[0], tensors[0]);
        assert_eq!(found[1], tensors[1]);
    }
}

#[test]
fn coded_bytes_are_half_and_less_than_a_third_of_bf16() {
    for (tokens, head_dim) in [(512, 64), (500, 128), (256, 256), (1000, 64)] {
        let shape = PacketShape {
            layers: 30,
            kv_heads: 3,
            tokens,
            head_dim,
            kind: Kind::BFloat16,
        };
        let whole = shape.bytes().unwrap() as f64;
        let share = |codec: Codec| codec.bytes(shape).unwrap() as f64 / whole;
        let (int8, int4) = (share(Codec::Int8), share(Codec::Int4));
        assert!(
            int8 <= 0.54 && int4 <= 0.32,
            "{tokens}, {head_dim}: {int8}, {int4}"
        );
        assert!((share(Codec::None) - 1.0).abs() < 1e-9);
    }
}

#[test]
fn bytes_of_another_length_or_layout_are_refused() {
    let whole = packet(&random(2, 40, 32, 10), Kind::Float);
    let shape = whole.shape();
    let other = PacketShape {
        tokens: 41,
        ..shape
    };
    for codec in [Codec::Int8, Codec::Int4] {
        let bytes = codec.encode(&whole).unwrap();
        let refused = |bytes: &[u8], shape| {
            let error = codec.decode(bytes, shape, Device::Cpu).err();
            error.expect("it is refused").to_string()
        };
        for length in [0, 15, 16, bytes.len() - 1] {
            assert!(refused(&bytes[..length], shape).contains("bytes, not"));
        }
        assert!(refused(&[&bytes[..], &[0]].concat(), shape).contains("bytes, not"));
        assert!(refused(&bytes, other).contains("bytes, not"));
        for at in [0, 4, 6, 8, 12] {
            let mut bytes = bytes.clone();
            bytes[at] ^= 1;
            assert!(
                refused(&bytes, shape).contains("another layout"),
                "byte {at}"
            );
        }
    }
    for odd in [
        PacketShape { tokens: 0, ..shape },
        PacketShape {
            head_dim: 5,
            ..shape
        },
    ] {
        assert!(Codec::Int4.bytes(odd).is_err());
    }
    let broken = random(2, 40, 32, 10);
    let _ = broken[3].narrow(1, 39, 1).fill_(f64::NAN);
    let refused = Codec::Int8
        .encode(&packet(&broken, Kind::Float))
        .unwrap_err();
    assert!(refused.to_string().contains("not finite"), "{refused}");
}

fn smollm2() -> (Transformer, Tokenizer) {
    let ModelFiles {
        config,
        weights,
        tokenizer,
        ..
    } = models::open(SMOLLM2);
    let model = Transformer::load(config, weights, Device::Cpu, Kind::Float).unwrap();
    (model, tokenizer)
}

/// Log-probabilities `[tokens, vocab]` of a text behind a packet.
fn read(model: &Transformer, packet: PacketKv, text: &[u32]) -> Tensor {
    let mut kv = model.new_kv().unwrap();
    kv.attach(Rc::new(packet)).unwrap();
    let hidden = model.forward(Input::Ids(text), &mut kv).unwrap();
    model.logits(&hidden).unwrap().log_softmax(-1, Kind::Float)
}

#[test]
fn a_real_packet_in_few_bits_reads_like_the_one_that_was_computed() {
    let _guard = tensor::NoGrad::new();
    let (model, tokenizer) = smollm2();
    let ids = tokenizer.encode(PROSE).unwrap().ids;
    let (document, question) = ids.split_at(ids.len().min(520) - 40);
    let question = &question[..40];
    let mut kv = model.new_kv().unwrap();
    let _ = model.forward(Input::Ids(document), &mut kv).unwrap();
    let whole = model.packet(kv).unwrap();
    let expected = {
        let copy = again(Codec::None, &whole);
        read(&model, copy, question)
    };
    let best = |t: &Tensor| t.argmax(-1, false);
    for (codec, kl_bar, agreement_bar) in [(Codec::Int8, 1e-3, 0.97), (Codec::Int4, 0.05, 0.85)] {
        let start = Instant::now();
        let bytes = codec.encode(&whole).unwrap();
        let encoded = start.elapsed();
        let start = Instant::now();
        let coded = codec.decode(&bytes, whole.shape(), Device::Cpu).unwrap();
        let decoded = start.elapsed();
        let errors = apart(&whole, &coded);
        let found = read(&model, coded, question);
        let kl = (expected.exp() * (&expected - &found))
            .sum_dim_intlist(-1, false, Kind::Float)
            .mean(Kind::Float)
            .double_value(&[]);
        let same = best(&found)
            .eq_tensor(&best(&expected))
            .to_kind(Kind::Float);
        let agreement = same.mean(Kind::Float).double_value(&[]);
        println!(
            "{codec}, {} tokens: keys and values {errors:.4?} apart, KL {kl:.1e}, agreement {agreement:.3}, \
             {} bytes in {encoded:.1?}, out in {decoded:.1?}",
            document.len(),
            bytes.len()
        );
        assert!(
            kl < kl_bar && agreement >= agreement_bar,
            "{codec}: {kl}, {agreement}"
        );
    }
}

#[tokio::test]
async fn a_daemon_keeps_packets_in_the_codec_that_it_is_told_and_answers_from_them() {
    let data = tempfile::tempdir().unwrap();
    let text = "Visiting hours in the Lindenhof clinic are from 14:10 to 19:40. ".repeat(4);
    let mut bytes = Vec::new();
    let mut answers = Vec::new();
    for codec in ["none", "int8", "int4"] {
        let daemon = Daemon::start(data.path(), &[("packet_codec", codec)]);
        let clients = daemon.connect().await;
        let put = clients
            .packets()
            .put_document(document("", "visiting", &text))
            .await
            .unwrap()
            .into_inner();
        assert!(
            put.created,
            "a packet of another codec does not serve as {codec}"
        );
        let record = put.packet.unwrap();
        assert_eq!(record.dtype, if codec == "none" { "f32" } else { codec });
        bytes.push(record.bytes as f64);
        let mut request = daemon::ask("When are the visiting hours?", 12);
        request.documents = vec!["visiting".to_owned()];
        request.mode = addenda_proto::addenda::v1::Mode::Packet.into();
        let answer = clients.answer(request).await.unwrap();
        assert_eq!(answer.summary.packets, [record.id]);
        answers.push(answer.text);
        daemon.stopped().await;
    }
    // f32, of which int8 is a quarter and int4 an eighth, and their scales.
    assert!(
        bytes[1] < 0.30 * bytes[0] && bytes[2] < 0.19 * bytes[0],
        "{bytes:?}"
    );
    assert_eq!(answers[0], answers[1], "int8 answers as f32 does");
}
