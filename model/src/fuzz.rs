//! Fuzz targets of all files and streams that tensors come from: adapters, packets, safetensors, GGUF.
//!
//! Owns what each decoder promises of any bytes at all: it never panics, holds no more than its input accounts for,
//! and gives tensors of the shape that was said or a named error. `make fuzz` runs these for long.
#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a panic fails the test, which is what tests are for"
)]

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use addenda_fuzz::{target, within};
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use tch::{Device, Kind, Tensor};

use crate::adapter::Adapter;
use crate::chat::ChatTemplate;
use crate::codec::Codec;
use crate::config::ModelConfig;
use crate::error::Error;
use crate::gguf::GgufFile;
use crate::packet::PacketShape;
use crate::tokenizer::Tokenizer;
use crate::weights::Weights;

/// What inputs of 16 KiB can account for, tables and all.
const SOME: usize = 16 << 20;

/// The length of safetensors' header stands before it; here two bytes say it, so that it is right as often as not.
fn safetensors(bytes: &[u8]) -> Option<Vec<u8>> {
    let (length, rest) = bytes.split_first_chunk::<2>()?;
    let length = usize::from(u16::from_le_bytes(*length)).min(rest.len()) as u64;
    Some([&length.to_le_bytes(), rest].concat())
}

#[test]
fn an_adapters_file_is_refused_or_has_the_same_digest_once_it_is_written_again() {
    target!("adapter", 10_000, |bytes: &[u8]| {
        let Some(bytes) = safetensors(bytes) else {
            return;
        };
        let Ok(adapter) = within(SOME, || Adapter::from_bytes(&bytes)) else {
            return;
        };
        let again = Adapter::from_bytes(&adapter.to_bytes().unwrap()).unwrap();
        assert_eq!(again.digest().unwrap(), adapter.digest().unwrap());
    });
}

/// Codec, tokens, heads, size of a head, whether the length is made right, and the packet's bytes.
#[test]
fn a_packet_of_any_bytes_has_the_shape_that_was_said_or_is_refused() {
    target!("packet", 2_000, |bytes: &[u8]| {
        let [codec, tokens, kv_heads, head_dim, right, body @ ..] = bytes else {
            return;
        };
        let codec = [Codec::None, Codec::Int8, Codec::Int4][usize::from(codec % 3)];
        let shape = PacketShape {
            layers: 2,
            kv_heads: usize::from(kv_heads % 4),
            tokens: usize::from(*tokens),
            head_dim: usize::from(head_dim % 33),
            kind: Kind::BFloat16,
        };
        let mut body = body.to_vec();
        if let Ok(length) = codec.bytes(shape)
            && right & 1 == 1
        {
            body.resize(length, 0x3f);
        }
        if let Ok(packet) = within(SOME, || codec.decode(&body, shape, Device::Cpu)) {
            assert_eq!(packet.shape(), shape);
            if codec == Codec::None {
                assert_eq!(packet.to_bytes().unwrap(), body);
            }
        }
    });
}

#[test]
fn a_safetensors_file_gives_tensors_of_the_shapes_it_says_or_is_refused() {
    let folder = folder();
    let path = folder.path().join("model.safetensors");
    target!("safetensors", 10_000, |bytes: &[u8]| {
        let Some(bytes) = safetensors(bytes) else {
            return;
        };
        std::fs::write(&path, bytes).unwrap();
        within(SOME, || {
            if let Ok(weights) = Weights::from_safetensors(folder.path()) {
                take_all(weights);
            }
        });
    });
}

#[test]
fn a_gguf_file_gives_a_model_and_its_tensors_or_is_refused() {
    let folder = folder();
    let path = folder.path().join("a.gguf");
    target!("gguf", 10_000, |bytes: &[u8]| {
        std::fs::write(&path, bytes).unwrap();
        within(SOME, || {
            let Ok(file) = GgufFile::open(&path) else {
                return;
            };
            let names: Vec<String> = file.tensor_names().map(str::to_owned).collect();
            for name in names {
                if let Ok(Some(tensor)) = file.read_tensor(&name) {
                    assert_eq!(Some(tensor.size()), file.tensor_shape(&name));
                }
            }
            let Ok(config) = ModelConfig::from_gguf(&file) else {
                return;
            };
            if let Ok(tokenizer) = Tokenizer::from_gguf(&file, &config.eos) {
                let _ = tokenizer
                    .encode("a b")
                    .map(|text| tokenizer.decode(&text.ids));
            }
            if let Ok(Some(template)) = file.text("tokenizer.chat_template") {
                let _ = ChatTemplate::new(template, BTreeMap::new());
            }
            take_all(Weights::from_gguf(file, &config));
        });
    });
}

/// Takes every tensor in the shape that it says it has.
fn take_all(mut weights: Weights) {
    let names: Vec<String> = weights.unused().into_iter().map(str::to_owned).collect();
    for name in names {
        let shape = match weights.take(&name, &[]) {
            Err(Error::Shape { found, .. }) => found,
            _ => continue,
        };
        if let Ok(tensor) = weights.take(&name, &shape) {
            assert_eq!(tensor.size(), shape);
        }
    }
}

/// In memory where the machine has such a place.
fn folder() -> tempfile::TempDir {
    let memory = Path::new("/dev/shm");
    if memory.is_dir() {
        return tempfile::tempdir_in(memory).unwrap();
    }
    tempfile::tempdir().unwrap()
}

fn corpus(target: &str) -> PathBuf {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/src/__fuzz__");
    let folder = Path::new(folder).join(target).join("corpus");
    std::fs::create_dir_all(&folder).unwrap();
    folder
}

#[test]
fn what_the_corpus_holds_is_taken() {
    let read = |target: &str, name: &str| std::fs::read(corpus(target).join(name)).unwrap();
    Adapter::from_bytes(&safetensors(&read("adapter", "small")).unwrap()).unwrap();
    let bytes = safetensors(&read("safetensors", "dtypes")).unwrap();
    assert_eq!(SafeTensors::deserialize(&bytes).unwrap().len(), 5);
    let folder = folder();
    let path = folder.path().join("a.gguf");
    for (name, tensors) in [("llama", 12), ("gemma3", 15), ("blocks", 9)] {
        std::fs::write(&path, read("gguf", name)).unwrap();
        let file = GgufFile::open(&path).unwrap();
        let names = file.tensor_names();
        let taken = names.filter(|name| file.read_tensor(name).unwrap().is_some());
        assert_eq!(taken.count(), tensors, "{name}");
        if name != "blocks" {
            let config = ModelConfig::from_gguf(&file).unwrap();
            Tokenizer::from_gguf(&file, &config.eos).unwrap();
        }
    }
}

#[test]
#[ignore = "writes the corpus, which lies in git; `gguf` was made once by a script"]
fn the_corpus_is_what_the_encoders_write() {
    let unsealed = |bytes: Vec<u8>| {
        let length = u64::from_le_bytes(*bytes.first_chunk().unwrap());
        let length = u16::try_from(length).unwrap();
        [&length.to_le_bytes(), &bytes[8..]].concat()
    };
    let soft =
        |tokens: i64| Tensor::arange(tokens * 8, (Kind::Float, Device::Cpu)).reshape([tokens, 8]);
    let adapter = Adapter::new(&soft(2), &soft(1), [3; 32], "a".to_owned(), "{}".to_owned());
    let bytes = adapter.unwrap().to_bytes().unwrap();
    std::fs::write(corpus("adapter").join("small"), unsealed(bytes)).unwrap();
    let sides = [2, 2, 1, 3, 4];
    let bridge = Tensor::arange(48, (Kind::Float, Device::Cpu)).reshape(sides);
    let adapter = Adapter::of_bridge(&bridge, [3; 32], "b".to_owned(), "{}".to_owned());
    let bytes = adapter.unwrap().to_bytes().unwrap();
    std::fs::write(corpus("adapter").join("bridge"), unsealed(bytes)).unwrap();
    let data = [0x3c_u8; 64];
    let dtypes = [
        ("lm_head.weight", Dtype::F32, vec![4, 2], 32),
        ("model.norm.weight", Dtype::BF16, vec![8], 16),
        (
            "model.language_model.embed_tokens.weight",
            Dtype::F16,
            vec![1, 4],
            8,
        ),
        ("vision_tower.a", Dtype::I64, vec![], 8),
        ("empty", Dtype::F64, vec![0, 3], 0),
    ];
    let views = dtypes.map(|(name, dtype, shape, length)| {
        (
            name,
            TensorView::new(dtype, shape, &data[..length]).unwrap(),
        )
    });
    let metadata = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    let bytes = safetensors::serialize(views, Some(metadata)).unwrap();
    std::fs::write(corpus("safetensors").join("dtypes"), unsealed(bytes)).unwrap();
    for (number, codec) in [Codec::None, Codec::Int8, Codec::Int4]
        .into_iter()
        .enumerate()
    {
        let shape = PacketShape {
            layers: 2,
            kv_heads: 1,
            tokens: 5,
            head_dim: 8,
            kind: Kind::BFloat16,
        };
        let plain = vec![0x3f; Codec::None.bytes(shape).unwrap()];
        let packet = Codec::None.decode(&plain, shape, Device::Cpu).unwrap();
        let body = codec.encode(&packet).unwrap();
        let number = u8::try_from(number).unwrap();
        let input = [&[number, 5, 1, 8, 0], &body[..]].concat();
        std::fs::write(corpus("packet").join(codec.to_string()), input).unwrap();
    }
}
