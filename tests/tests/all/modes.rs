//! The ways to put documents into a context, on tiny models of every architecture: each gives what
//! it says, whatever else reads the same packets.

use crate::tiny;
use crate::transformer::{furthest, ids, serve, study, variants};
use addenda_model::{
    Action, Architecture, Blending, Mask, PacketKv, Pass, SequenceKv, Site, Tap, Transformer,
};
use std::rc::Rc;
use tch::{Kind, Tensor};

const TOLERANCE: f64 = 1e-3;
const LENGTHS: [usize; 3] = [9, 23, 14];

/// Preamble, three documents, question.
struct Request {
    preamble: Vec<u32>,
    documents: Vec<Vec<u32>>,
    question: Vec<u32>,
}

fn request() -> Request {
    Request {
        preamble: ids(5, 5),
        documents: (2..)
            .zip(LENGTHS)
            .map(|(salt, len)| ids(len, salt))
            .collect(),
        question: ids(12, 6),
    }
}

impl Request {
    fn ids(&self) -> Vec<u32> {
        let mut ids = self.preamble.clone();
        ids.extend(self.documents.concat());
        ids.extend(&self.question);
        ids
    }

    /// Logits of the question where everything is computed.
    fn full(&self, model: &Transformer) -> Tensor {
        self.answered(&study(model, &self.ids(), Mask::Causal))
    }

    /// The question's rows of those of all tokens.
    fn answered(&self, logits: &Tensor) -> Tensor {
        let count = self.question.len() as i64;
        logits.narrow(0, logits.size()[0] - count, count)
    }

    /// Logits of the question behind what is in the context, in chunks of 5.
    fn ask(&self, model: &Transformer, kv: &mut SequenceKv) -> Tensor {
        let parts = self.question.chunks(5);
        let parts: Vec<Tensor> = parts.map(|part| serve(model, part, kv)).collect();
        Tensor::cat(&parts, 0)
    }

    /// Positions of the documents' tokens but for the first `k` of each.
    fn behind(&self, k: usize) -> Vec<i64> {
        let mut at = self.preamble.len();
        let mut places = Vec::new();
        for document in &self.documents {
            places.extend((at + k.min(document.len())..at + document.len()).map(|at| at as i64));
            at += document.len();
        }
        places
    }
}

fn packet(model: &Transformer, ids: &[u32]) -> Rc<PacketKv> {
    let mut alone = model.new_kv().unwrap();
    let _ = serve(model, ids, &mut alone);
    Rc::new(model.packet(alone).unwrap())
}

/// Documents linked by `k` computed tokens each.
fn link(model: &Transformer, request: &Request, k: usize) -> SequenceKv {
    let mut kv = model.new_kv().unwrap();
    let _ = serve(model, &request.preamble, &mut kv);
    for document in &request.documents {
        let head = k.min(document.len());
        if head > 0 {
            let _ = serve(model, &document[..head], &mut kv);
        }
        let packet = packet(model, document);
        kv.attach_part(packet, head..document.len()).unwrap();
    }
    kv
}

/// Documents blended, in steps of `chunk` tokens; and the positions that were computed.
fn blend(
    model: &Transformer,
    request: &Request,
    share: f64,
    chunk: usize,
) -> (SequenceKv, Vec<i64>) {
    let mut kv = model.new_kv().unwrap();
    let _ = serve(model, &request.preamble, &mut kv);
    let documents = request.documents.iter();
    let documents = documents.map(|ids| (ids.clone(), packet(model, ids)));
    let mut blending = Blending::new(documents.collect(), share).unwrap();
    while !blending.step(model, &mut kv, chunk).unwrap() {}
    (kv, blending.chosen().to_vec())
}

/// Logits of the question from one causal pass in which the tokens at `places` leave each layer
/// from `layer` on as they do where their document stands alone: so their keys and values in the
/// layers after it are those of the document's packet.
fn as_if_alone(model: &Transformer, request: &Request, places: &[i64], layer: usize) -> Tensor {
    let layers = layer..model.config().num_layers;
    let mut streams: Vec<Vec<Tensor>> = layers.clone().map(|_| Vec::new()).collect();
    for document in &request.documents {
        let taps = layers.clone().map(|layer| Tap {
            layer,
            site: Site::Residual,
            at: (0..document.len() as i64).map(|token| (0, token)).collect(),
            action: Action::Read,
        });
        let taps: Vec<Tap> = taps.collect();
        let mut pass = Pass::new().with_taps(&taps);
        let row: Vec<i64> = document.iter().map(|&id| i64::from(id)).collect();
        let row = Tensor::from_slice(&row).unsqueeze(0);
        drop(model.forward_batch(&row, &mut pass).unwrap());
        for (index, stream) in streams.iter_mut().enumerate() {
            stream.push(pass.read(index).unwrap().shallow_clone());
        }
    }
    let start = request.preamble.len() as i64;
    let chosen = Tensor::from_slice(places) - start;
    let taps = layers.zip(streams).map(|(layer, stream)| Tap {
        layer,
        site: Site::Residual,
        at: places.iter().map(|&place| (0, place)).collect(),
        action: Action::Replace(Tensor::cat(&stream, 0).index_select(0, &chosen)),
    });
    let taps: Vec<Tap> = taps.collect();
    let row: Vec<i64> = request.ids().iter().map(|&id| i64::from(id)).collect();
    let row = Tensor::from_slice(&row).unsqueeze(0);
    let mut pass = Pass::new().with_taps(&taps);
    let hidden = model.forward_batch(&row, &mut pass).unwrap();
    request.answered(&model.logits(&hidden).unwrap().squeeze_dim(0))
}

#[test]
fn documents_linked_by_all_of_their_tokens_equal_full_prefill() {
    for (name, model) in variants() {
        let request = request();
        let mut kv = link(&model, &request, 23);
        assert_eq!(kv.own_tokens(), kv.len(), "{name}: everything was computed");
        let apart = furthest(&request.ask(&model, &mut kv), &request.full(&model));
        assert!(apart < TOLERANCE, "{name}: {apart:e}");
    }
}

#[test]
fn linked_documents_see_all_before_them_with_their_first_tokens_alone() {
    for (name, model) in variants() {
        let request = request();
        for k in [0, 1, 4, 10] {
            let mut kv = link(&model, &request, k);
            let expected = as_if_alone(&model, &request, &request.behind(k), 0);
            let apart = furthest(&request.ask(&model, &mut kv), &expected);
            assert!(apart < TOLERANCE, "{name}, {k} tokens: {apart:e}");
        }
    }
}

#[test]
fn documents_blended_with_all_of_their_tokens_equal_full_prefill() {
    for (name, model) in variants() {
        let request = request();
        for chunk in [512, 7] {
            let (mut kv, chosen) = blend(&model, &request, 1.0, chunk);
            assert_eq!(chosen, Vec::from_iter(5..51), "{name}");
            let apart = furthest(&request.ask(&model, &mut kv), &request.full(&model));
            assert!(apart < TOLERANCE, "{name} in chunks of {chunk}: {apart:e}");
        }
    }
}

#[test]
fn blended_documents_are_computed_where_they_were_chosen_and_read_elsewhere() {
    for (name, model) in variants() {
        let request = request();
        for (share, count) in [(0.0, 0), (0.15, 7), (0.5, 23)] {
            let (mut kv, chosen) = blend(&model, &request, share, 6);
            assert_eq!(chosen.len(), count, "{name}");
            let mut read = request.behind(0);
            read.retain(|place| !chosen.contains(place));
            let expected = as_if_alone(&model, &request, &read, 1);
            let apart = furthest(&request.ask(&model, &mut kv), &expected);
            assert!(apart < TOLERANCE, "{name}, a share of {share}: {apart:e}");
        }
    }
}

#[test]
fn blending_computes_nothing_of_a_document_that_stands_where_its_packet_was_made() {
    let model = tiny::model(tiny::config(Architecture::Qwen3), 9, Kind::Float);
    let mut request = request();
    request.preamble.clear();
    let mut kv = model.new_kv().unwrap();
    let documents = request.documents.iter();
    let documents = documents.map(|ids| (ids.clone(), packet(&model, ids)));
    let mut blending = Blending::new(documents.collect(), 0.5).unwrap();
    while !blending.step(&model, &mut kv, 16).unwrap() {}
    let first = LENGTHS[0] as i64;
    let chosen = blending.chosen();
    assert!(chosen.iter().all(|&place| place >= first), "{chosen:?}");
}

#[test]
fn a_share_that_is_none_and_packets_with_soft_tokens_are_not_blended() {
    let model = tiny::model(tiny::config(Architecture::Llama), 9, Kind::Float);
    let document = || (ids(9, 2), packet(&model, &ids(9, 2)));
    for share in [-0.1, 1.5, f64::NAN] {
        assert!(Blending::new(vec![document()], share).is_err());
    }
    let soft = (ids(8, 2), document().1);
    let refused = Blending::new(vec![soft], 0.5).err().unwrap().to_string();
    assert!(refused.contains("soft tokens"), "{refused}");
}

#[test]
fn a_blending_leaves_the_context_as_it_was_until_it_is_done() {
    let model = tiny::model(tiny::config(Architecture::Gemma3), 9, Kind::Float);
    let request = request();
    let mut kv = model.new_kv().unwrap();
    let _ = serve(&model, &request.preamble, &mut kv);
    let documents = request.documents.iter();
    let documents = documents.map(|ids| (ids.clone(), packet(&model, ids)));
    let mut blending = Blending::new(documents.collect(), 0.3).unwrap();
    for _ in 0..9 {
        assert!(!blending.step(&model, &mut kv, 2).unwrap());
        assert_eq!(kv.len(), request.preamble.len());
    }
    drop(blending);
    let mut other = model.new_kv().unwrap();
    let _ = serve(&model, &request.preamble, &mut other);
    let expected = request.ask(&model, &mut other);
    assert!(furthest(&request.ask(&model, &mut kv), &expected) < 1e-5);
}

#[test]
fn documents_prefilled_together_equal_full_prefill_wherever_the_cut_is() {
    for (name, model) in variants() {
        let request = request();
        let joint = [request.preamble.clone(), request.documents.concat()].concat();
        let joint = packet(&model, &joint);
        let full = request.full(&model);
        let mut kv = model.new_kv().unwrap();
        kv.attach(Rc::clone(&joint)).unwrap();
        let apart = furthest(&request.ask(&model, &mut kv), &full);
        assert!(apart < TOLERANCE, "{name}: {apart:e}");
        // Only a beginning of it: what follows is computed.
        let mut kv = model.new_kv().unwrap();
        kv.attach_part(Rc::clone(&joint), 0..17).unwrap();
        let _ = serve(&model, &request.ids()[17..51], &mut kv);
        assert_eq!((kv.len(), kv.own_tokens()), (51, 34));
        let apart = furthest(&request.ask(&model, &mut kv), &full);
        assert!(apart < TOLERANCE, "{name}, the first tokens: {apart:e}");
    }
}

#[test]
fn a_beginning_with_a_moved_packet_in_it_is_not_kept() {
    let model = tiny::model(tiny::config(Architecture::Llama), 9, Kind::Float);
    let request = request();
    let mut kv = link(&model, &request, 3);
    let len = kv.len();
    assert_eq!(kv.leading(8).unwrap()[0].tokens(), 8, "computed in place");
    assert!(kv.leading(9).is_err());
    assert!(kv.leading(len + 1).is_err());
    let packet = packet(&model, &request.documents[0]);
    let outside = model.new_kv().unwrap().attach_part(packet, 3..10);
    assert!(outside.is_err());
}

#[test]
fn a_packet_read_from_a_copy_with_turned_keys_gives_the_same() {
    for (name, model) in variants() {
        let request = request();
        let mut shared = model.new_kv().unwrap();
        let mut copied = model.new_kv().unwrap();
        for kv in [&mut shared, &mut copied] {
            let _ = serve(&model, &request.preamble, kv);
        }
        for document in &request.documents {
            let packet = packet(&model, document);
            model
                .attach_copy(&packet, document.len(), &mut copied)
                .unwrap();
            shared.attach(packet).unwrap();
        }
        assert_eq!((copied.own_tokens(), shared.own_tokens()), (51, 5));
        let copied = request.ask(&model, &mut copied);
        let apart = furthest(&request.ask(&model, &mut shared), &copied);
        assert!(apart < TOLERANCE, "{name}: {apart:e}");
    }
}

#[test]
fn many_sequences_read_the_same_packets_at_once_each_in_its_own_order_and_mode() {
    for architecture in [Architecture::Llama, Architecture::Gemma3] {
        let model = tiny::model(tiny::config(architecture), 13, Kind::Float);
        let documents: Vec<Vec<u32>> = (2..)
            .zip(LENGTHS)
            .map(|(salt, len)| ids(len, salt))
            .collect();
        let packets: Vec<_> = documents.iter().map(|ids| packet(&model, ids)).collect();
        let orders = [[0, 1, 2], [2, 0, 1], [1, 2, 0], [2, 1, 0]];
        let requests: Vec<(Request, usize)> = (0..8)
            .map(|number| {
                let order = orders[number % 4];
                let request = Request {
                    preamble: ids(3 + number, 20 + number),
                    documents: order.map(|index| documents[index].clone()).to_vec(),
                    question: ids(12, 40 + number),
                };
                (request, [0, 4][number / 4])
            })
            .collect();
        let mut running: Vec<SequenceKv> = Vec::new();
        for (number, (request, k)) in requests.iter().enumerate() {
            let mut kv = model.new_kv().unwrap();
            let _ = serve(&model, &request.preamble, &mut kv);
            for index in orders[number % 4] {
                if *k > 0 {
                    let _ = serve(&model, &documents[index][..*k], &mut kv);
                }
                let packet = Rc::clone(&packets[index]);
                kv.attach_part(packet, *k..documents[index].len()).unwrap();
            }
            running.push(kv);
        }
        let mut logits: Vec<Vec<Tensor>> = running.iter().map(|_| Vec::new()).collect();
        for token in 0..12 {
            for (place, kv) in running.iter_mut().enumerate() {
                let id = requests[place].0.question[token];
                logits[place].push(serve(&model, &[id], kv));
            }
        }
        for (place, (request, k)) in requests.iter().enumerate() {
            let expected = as_if_alone(&model, request, &request.behind(*k), 0);
            let apart = furthest(&Tensor::cat(&logits[place], 0), &expected);
            assert!(
                apart < TOLERANCE,
                "{architecture}, sequence {place}: {apart:e}"
            );
        }
        for (packet, ids) in packets.iter().zip(&documents) {
            let anew = self::packet(&model, ids);
            assert_eq!(packet.to_bytes().unwrap(), anew.to_bytes().unwrap());
        }
    }
}

#[test]
fn sixteen_sequences_over_the_same_packets_take_little_more_memory_than_one() {
    let mut config = tiny::config(Architecture::Llama);
    config.context = 8192;
    let model = tiny::model(config, 14, Kind::BFloat16);
    let packets: Vec<_> = (0..8).map(|salt| packet(&model, &ids(512, salt))).collect();
    let shared: usize = packets
        .iter()
        .map(|packet| packet.shape().bytes().unwrap())
        .sum();
    let own: Vec<usize> = (0..16)
        .map(|number| {
            let mut kv = model.new_kv().unwrap();
            let _ = serve(&model, &ids(30, number), &mut kv);
            for packet in &packets {
                kv.attach(Rc::clone(packet)).unwrap();
            }
            let _ = serve(&model, &ids(32, number + 20), &mut kv);
            kv.bytes()
        })
        .collect();
    let all = shared + own.iter().sum::<usize>();
    let ratio = all as f64 / (shared + own[0]) as f64;
    assert!(ratio < 1.3, "{ratio}");
    println!("16 sequences over 4,096 packet tokens take {ratio:.3} times the KV of one");
}
