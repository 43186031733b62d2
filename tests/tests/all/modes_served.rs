//! Every mode over gRPC, on SmolLM2: each answers, says what it did, and is exact where it says so.

use addenda_proto::addenda::v1::{
    Chat, ChatMessage, DeleteRequest, GenerateRequest, InfoRequest, ListPacketsRequest, Mode,
    ScoreRequest, Summary, delete_request, generate_request, score_request,
};

use tokio_stream::StreamExt as _;

use crate::daemon::{Clients, ask, chat, collect, complete, document, shared};

const VISITING: &str = "Visiting hours in the Lindenhof clinic are from 14:10 to 19:40. \
    Children under six may visit only with the ward's consent.";
const PARKING: &str =
    "Staff of the Lindenhof clinic park on level B2. A pass costs 17 francs a month.";
const QUESTION: &str = "How much does a parking pass cost a month?";

async fn put(clients: &Clients, space: &str) {
    for (name, text) in [("visiting", VISITING), ("parking", PARKING)] {
        let document = document(space, name, text);
        clients.packets().put_document(document).await.unwrap();
    }
}

fn request(space: &str, mode: Mode) -> GenerateRequest {
    GenerateRequest {
        documents: vec!["visiting".to_owned(), "parking".to_owned()],
        namespace: space.to_owned(),
        mode: mode.into(),
        ..ask(QUESTION, 8)
    }
}

/// The log-probabilities of a right answer, and whether they are said to be exact.
async fn scored(
    clients: &Clients,
    space: &str,
    mode: Mode,
    change: fn(&mut ScoreRequest),
) -> (Vec<f32>, bool) {
    let mut request = ScoreRequest {
        prompt: Some(score_request::Prompt::Chat(chat(QUESTION))),
        continuations: vec!["A parking pass costs 17 francs a month.".to_owned()],
        documents: vec!["visiting".to_owned(), "parking".to_owned()],
        namespace: space.to_owned(),
        mode: mode.into(),
        ..ScoreRequest::default()
    };
    change(&mut request);
    let scored = clients.generation().score(request).await.unwrap();
    let scored = scored.into_inner();
    assert_eq!(scored.mode(), mode);
    (scored.scores[0].logprobs.clone(), scored.exact)
}

fn furthest(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    let apart = a.iter().zip(b).map(|(a, b)| (a - b).abs());
    apart.fold(0.0, f32::max)
}

fn all_counted(summary: &Summary) -> bool {
    summary.computed_tokens + summary.packet_tokens + summary.prefix_tokens == summary.prompt_tokens
}

#[tokio::test]
async fn every_mode_answers_and_says_what_it_read_and_computed() {
    let clients = shared().connect().await;
    let space = "every-mode";
    put(&clients, space).await;
    let info = clients.admin().info(InfoRequest {}).await.unwrap();
    let modes = ["auto", "full", "packet", "link", "blend", "preload"];
    assert_eq!(info.into_inner().modes, modes);
    let documents = clients
        .answer(request(space, Mode::Packet))
        .await
        .unwrap()
        .summary
        .packet_tokens;
    assert!(documents > 40);

    let mut link = request(space, Mode::Link);
    link.link_tokens = Some(5);
    let blend = GenerateRequest {
        blend_share: Some(0.25),
        ..request(space, Mode::Blend)
    };
    let read = [
        (link, documents - 10),
        (blend, documents - (documents + 2) / 4),
    ];
    for (request, read) in read {
        // The first answer computes the packets without soft tokens, where there are none yet.
        let first = clients.answer(request.clone()).await.unwrap();
        let second = clients.answer(request.clone()).await.unwrap();
        let summary = &second.summary;
        assert_eq!(first.text, second.text);
        assert_eq!(i32::from(summary.mode()), request.mode);
        assert!(!summary.exact && summary.mode_reason.is_empty());
        assert_eq!(summary.packet_tokens, read, "{:?}", summary.mode());
        assert!(all_counted(summary) && all_counted(&first.summary));
        assert_eq!(summary.packets.len(), 2);
    }

    let first = clients.answer(request(space, Mode::Preload)).await.unwrap();
    let second = clients.answer(request(space, Mode::Preload)).await.unwrap();
    assert_eq!(first.summary.packet_tokens, 0, "it had to be computed");
    assert!(
        second.summary.packet_tokens > documents,
        "what stands before them included"
    );
    assert_eq!(
        (second.summary.mode(), second.summary.exact),
        (Mode::Preload, true)
    );
    assert!(all_counted(&first.summary) && all_counted(&second.summary));
    let full = clients.answer(request(space, Mode::Full)).await.unwrap();
    assert_eq!([&first.text, &second.text], [&full.text; 2]);

    let mut without = request(space, Mode::Blend);
    without.documents.clear();
    let summary = clients.answer(without).await.unwrap().summary;
    assert_eq!((summary.mode(), summary.exact), (Mode::Full, true));
    assert!(summary.mode_reason.contains("no documents"));
}

#[tokio::test]
async fn modes_that_compute_everything_equal_full_prefill_and_say_so() {
    let clients = shared().connect().await;
    let space = "all-computed";
    put(&clients, space).await;
    let (full, exact) = scored(&clients, space, Mode::Full, |_| {}).await;
    assert!(exact);
    let whole = |request: &mut ScoreRequest| {
        request.link_tokens = Some(60_000);
        request.blend_share = Some(1.0);
    };
    for mode in [Mode::Link, Mode::Blend, Mode::Preload] {
        let (logprobs, exact) = scored(&clients, space, mode, whole).await;
        let apart = furthest(&logprobs, &full);
        assert!(exact && apart <= 1e-3, "{mode:?}: {apart}");
    }
    let none = |request: &mut ScoreRequest| {
        request.link_tokens = Some(0);
        request.blend_share = Some(0.0);
    };
    for mode in [Mode::Link, Mode::Blend] {
        let (logprobs, exact) = scored(&clients, space, mode, none).await;
        assert!(!exact && furthest(&logprobs, &full) > 1e-2, "{mode:?}");
    }
}

#[tokio::test]
async fn the_next_turn_of_a_conversation_computes_neither_the_first_question_nor_its_answer() {
    let clients = shared().connect().await;
    let question =
        "Name three kinds of bread that are baked in France, and say what each is made of.";
    let first = clients.answer(ask(question, 24)).await.unwrap();
    let turn = |role: &str, content: &str| ChatMessage {
        role: role.to_owned(),
        content: content.to_owned(),
    };
    let messages = vec![
        turn("user", question),
        turn("assistant", &first.text),
        turn("user", "Which of them is the oldest?"),
    ];
    let next = GenerateRequest {
        prompt: Some(generate_request::Prompt::Chat(Chat { messages })),
        ..ask("", 4)
    };
    let next = clients.answer(next).await.unwrap().summary;
    assert!(
        next.prefix_tokens > first.summary.prompt_tokens + 12,
        "{next:?}"
    );
}

#[tokio::test]
async fn answers_that_are_asked_for_at_once_share_their_prompt() {
    let clients = shared().connect().await;
    let question =
        "Describe in a few words what a lighthouse is for, and who looks after it today.";
    let (a, b) = tokio::join!(
        clients.answer(ask(question, 6)),
        clients.answer(ask(question, 6))
    );
    let (a, b) = (a.unwrap(), b.unwrap());
    assert_eq!(a.text, b.text);
    let reused = a.summary.prefix_tokens.max(b.summary.prefix_tokens);
    assert_eq!(reused, a.summary.prompt_tokens - 1);
}

#[tokio::test]
async fn prompts_that_begin_alike_are_computed_once_while_somebody_else_is_answered() {
    let clients = shared().connect().await;
    // Beside an answer that is being written, a prompt is computed in small pieces, and prompts take turns.
    let counting = complete("Count upwards from one: 1, 2, 3,", 120);
    let writing = clients.generation().generate(counting).await.unwrap();
    let mut writing = writing.into_inner();
    writing.next().await.unwrap().unwrap();
    let log = "The lamp of the eastern lighthouse was cleaned, and its lens was turned by hand. ";
    let asks = |question: &str| ask(&format!("{}{question}", log.repeat(12)), 1);
    let (written, answers) = tokio::join!(collect(writing), async {
        tokio::join!(
            clients.answer(asks("What was cleaned?")),
            clients.answer(asks("Who turned it?")),
            clients.answer(asks("And how?")),
        )
    });
    written.unwrap();
    let summaries = [answers.0, answers.1, answers.2].map(|answer| answer.unwrap().summary);
    let computed = summaries.each_ref().map(|summary| summary.computed_tokens);
    let first = *computed.iter().max().unwrap();
    assert!(first > 150, "{computed:?}");
    assert!(computed.iter().sum::<u32>() < first + 40, "{computed:?}");
}

#[tokio::test]
async fn a_request_that_begins_like_an_earlier_one_computes_only_what_is_new() {
    let clients = shared().connect().await;
    let space = "begins-alike";
    put(&clients, space).await;
    let mut first = request(space, Mode::Full);
    first.top_logprobs = 1;
    let before = clients.answer(first.clone()).await.unwrap();
    let again = clients.answer(first.clone()).await.unwrap();
    let summary = &again.summary;
    assert_eq!(
        summary.computed_tokens, 1,
        "the last token is computed anew"
    );
    assert_eq!(summary.prefix_tokens, summary.prompt_tokens - 1);
    assert!(summary.exact && summary.packet_tokens == 0);
    for (a, b) in before.tokens.iter().zip(&again.tokens) {
        assert_eq!(a.id, b.id);
        assert!((a.logprob.unwrap() - b.logprob.unwrap()).abs() < 1e-3);
    }
    let other = GenerateRequest {
        prompt: ask("When may one visit?", 1).prompt,
        ..first.clone()
    };
    let other = clients.answer(other).await.unwrap().summary;
    assert!(
        other.computed_tokens > 3 && other.prefix_tokens > 40,
        "{other:?}"
    );
    let mut packets = request(space, Mode::Packet);
    packets.max_tokens = 1;
    let packets = clients.answer(packets).await.unwrap().summary;
    assert!(
        packets.prefix_tokens >= 16 && all_counted(&packets),
        "{packets:?}"
    );
    // Of what another tenant has said nothing is kept: only what stands before the documents.
    put(&clients, "begins-alike-elsewhere").await;
    first.namespace = "begins-alike-elsewhere".to_owned();
    let elsewhere = clients.answer(first).await.unwrap().summary;
    assert!(
        elsewhere.prefix_tokens <= packets.prefix_tokens,
        "{elsewhere:?}"
    );
}

#[tokio::test]
async fn erasing_a_document_erases_what_was_prefilled_together_with_others() {
    let clients = shared().connect().await;
    let space = "joint-erased";
    put(&clients, space).await;
    clients.answer(request(space, Mode::Preload)).await.unwrap();
    let packets = async || {
        let request = ListPacketsRequest {
            namespace: space.to_owned(),
            ..ListPacketsRequest::default()
        };
        let list = clients.packets().list(request).await.unwrap();
        list.into_inner().packets
    };
    assert_eq!(packets().await.len(), 3);
    let delete = DeleteRequest {
        what: Some(delete_request::What::Document("parking".to_owned())),
        namespace: space.to_owned(),
    };
    let deleted = clients.packets().delete(delete).await.unwrap();
    assert_eq!(deleted.into_inner().packets, 2);
    let left = packets().await;
    assert_eq!(left.len(), 1);
    assert_eq!(left[0].document, "visiting");
}
