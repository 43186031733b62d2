//! Generation over gRPC, and what a client learns about the daemon.

use addenda_proto::addenda::v1::{
    Completion, FinishReason, InfoRequest, Mode, Sampling, TokenizeRequest, tokenize_request,
};
use tokio_stream::StreamExt;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;
use tonic_reflection::pb::v1::ServerReflectionRequest;
use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
use tonic_reflection::pb::v1::server_reflection_response::MessageResponse;

use crate::daemon::{ask, chat, complete, score, shared};

#[tokio::test]
async fn a_client_learns_what_is_served() {
    let clients = shared().connect().await;
    let info = clients
        .admin()
        .info(InfoRequest {})
        .await
        .unwrap()
        .into_inner();
    assert_eq!(info.architecture, "llama");
    assert_eq!((info.layers, info.hidden_size), (30, 576));
    assert_eq!((info.dtype.as_str(), info.device.as_str()), ("f32", "cpu"));
    assert_eq!(
        (
            info.revision.len(),
            info.base_fingerprint.len(),
            info.tokenizer.len()
        ),
        (64, 64, 64)
    );
    assert_eq!(info.kv_bytes_per_token, 2 * 30 * 3 * 64 * 4);
    assert!(info.has_chat_template);
}

#[tokio::test]
async fn health_and_reflection_answer_like_any_grpc_server() {
    let clients = shared().connect().await;
    let mut health = HealthClient::new(clients.channel.clone());
    let request = HealthCheckRequest {
        service: String::new(),
    };
    let status = health.check(request).await.unwrap().into_inner().status;
    assert_eq!(status, tonic_health::ServingStatus::Serving as i32);

    let mut reflection = ServerReflectionClient::new(clients.channel.clone());
    let request = ServerReflectionRequest {
        host: String::new(),
        message_request: Some(MessageRequest::ListServices(String::new())),
    };
    let mut answers = reflection
        .server_reflection_info(tokio_stream::once(request))
        .await
        .unwrap()
        .into_inner();
    let answer = answers
        .next()
        .await
        .unwrap()
        .unwrap()
        .message_response
        .unwrap();
    let MessageResponse::ListServicesResponse(list) = answer else {
        panic!("{answer:?}");
    };
    let names: Vec<_> = list
        .service
        .iter()
        .map(|service| service.name.as_str())
        .collect();
    for service in ["Generation", "Knowledge", "Packets", "Jobs", "Admin"] {
        assert!(
            names.contains(&format!("addenda.v1.{service}").as_str()),
            "{names:?}"
        );
    }
}

#[tokio::test]
async fn tokens_of_a_text_and_of_a_chat() {
    let clients = shared().connect().await;
    let text = Completion {
        text: "Hello world".to_owned(),
    };
    let request = TokenizeRequest {
        prompt: Some(tokenize_request::Prompt::Completion(text)),
    };
    let plain = clients
        .generation()
        .tokenize(request)
        .await
        .unwrap()
        .into_inner();
    assert_eq!(plain.ids.len(), plain.pieces.len());
    assert!(plain.pieces.concat().ends_with("Hello world"));
    let request = TokenizeRequest {
        prompt: Some(tokenize_request::Prompt::Chat(chat("Hi"))),
    };
    let chat = clients
        .generation()
        .tokenize(request)
        .await
        .unwrap()
        .into_inner();
    assert!(
        chat.pieces.concat().ends_with("<|im_start|>assistant\n"),
        "{:?}",
        chat.pieces
    );
}

#[tokio::test]
async fn an_answer_is_a_stream_of_tokens_and_one_summary() {
    let clients = shared().connect().await;
    let mut request = ask("What is the capital of France?", 24);
    request.top_logprobs = 3;
    let answer = clients.answer(request).await.unwrap();
    assert!(answer.text.contains("Paris"), "{}", answer.text);
    let summary = &answer.summary;
    assert_eq!((summary.mode(), summary.exact), (Mode::Full, true));
    assert_eq!(
        summary.computed_tokens + summary.prefix_tokens,
        summary.prompt_tokens
    );
    assert_eq!((summary.packet_tokens, summary.active_facts), (0, 0));
    assert!(
        summary.generated_tokens > 0
            && summary.ttft_ms > 0.0
            && summary.total_ms >= summary.ttft_ms
    );
    for token in &answer.tokens {
        assert_eq!(token.top.len(), 3);
        assert_eq!(token.top[0].id, token.id, "greedy takes the likeliest");
        assert!((token.top[0].logprob - token.logprob.unwrap()).abs() < 1e-6);
    }
}

#[tokio::test]
async fn a_seed_repeats_an_answer_and_settings_are_obeyed() {
    let clients = shared().connect().await;
    let mut request = complete("Once upon a time", 12);
    request.sampling = Some(Sampling {
        temperature: 1.0,
        seed: Some(7),
        ..Sampling::default()
    });
    let first = clients.answer(request.clone()).await.unwrap();
    let second = clients.answer(request.clone()).await.unwrap();
    assert_eq!(first.text, second.text);
    assert_eq!(first.summary.seed, 7);
    assert_eq!(first.summary.generated_tokens, 12);
    assert_eq!(first.summary.finish_reason(), FinishReason::Length);
    request.sampling = Some(Sampling {
        temperature: 1.0,
        seed: Some(8),
        ..Sampling::default()
    });
    assert_ne!(clients.answer(request).await.unwrap().text, first.text);
}

#[tokio::test]
async fn an_answer_ends_before_a_stop_string() {
    let clients = shared().connect().await;
    let whole = clients
        .answer(complete("One, two, three, four,", 16))
        .await
        .unwrap();
    let mut request = complete("One, two, three, four,", 16);
    let stop: String = whole.text.chars().skip(6).take(4).collect();
    request.stop = vec![stop.clone()];
    let cut = clients.answer(request).await.unwrap();
    assert_eq!(cut.summary.finish_reason(), FinishReason::Stop);
    assert_eq!(cut.text, whole.text[..whole.text.find(&stop).unwrap()]);
}

#[tokio::test]
async fn scores_agree_with_what_is_generated() {
    let clients = shared().connect().await;
    let mut request = complete("The opposite of hot is", 6);
    request.top_logprobs = 1;
    let answer = clients.answer(request).await.unwrap();
    let mut request = score("The opposite of hot is", &answer.text);
    request.continuations.push(" blue sky".to_owned());
    let scored = clients
        .generation()
        .score(request)
        .await
        .unwrap()
        .into_inner();
    let (likely, unlikely) = (&scored.scores[0], &scored.scores[1]);
    assert!(likely.greedy && !unlikely.greedy);
    assert_eq!(
        likely.ids,
        answer
            .tokens
            .iter()
            .map(|token| token.id)
            .collect::<Vec<_>>()
    );
    for (scored, token) in likely.logprobs.iter().zip(&answer.tokens) {
        assert!((scored - token.logprob.unwrap()).abs() < 1e-3);
    }
    assert!(scored.exact);
}
