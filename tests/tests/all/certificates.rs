//! Certificates over gRPC: measured by the daemon, obeyed by `auto`, void when the adapter changes.

use addenda_model::Adapter;
use addenda_proto::addenda::v1::{
    ActivateAdapterRequest, CertificateRecord, CertifyRequest, GetJobRequest, ImportAdapterRequest,
    InfoRequest, JobRecord, JobState, LabelledSample, ListCertificatesRequest, Mode, StatsRequest,
};
use tch::{Device, Kind, Tensor};
use tokio_stream::StreamExt;
use tonic::Code;

use crate::daemon::{Clients, Daemon, ask, document};

fn sample(name: &str, place: &str) -> LabelledSample {
    LabelledSample {
        documents: vec![
            format!("{name} keeps the lighthouse keys in {place}."),
            "The ferry leaves at noon on weekdays.".to_owned(),
        ],
        question: format!(
            "Where does {name} keep the lighthouse keys? Answer with the place only."
        ),
        answer: Some(place.to_owned()),
    }
}

async fn certify(clients: &Clients, request: CertifyRequest) -> JobRecord {
    let job = clients
        .adapters()
        .certify(request)
        .await
        .unwrap()
        .into_inner();
    let watch = GetJobRequest { id: job.id };
    let mut states = clients.jobs().watch(watch).await.unwrap().into_inner();
    let mut last = None;
    while let Some(state) = states.next().await {
        last = Some(state.unwrap());
    }
    last.unwrap()
}

async fn list(clients: &Clients, include_void: bool) -> Vec<CertificateRecord> {
    let request = ListCertificatesRequest { include_void };
    let list = clients.adapters().list_certificates(request).await;
    list.unwrap().into_inner().certificates
}

#[tokio::test]
async fn modes_are_certified_and_auto_obeys_until_the_adapter_changes() {
    let data = tempfile::tempdir().unwrap();
    let server = Daemon::start(data.path(), &[("adapter", "none")]);
    let clients = server.connect().await;
    let ended = certify(
        &clients,
        CertifyRequest {
            modes: vec![Mode::Packet.into(), Mode::Link.into(), Mode::Preload.into()],
            given: vec![
                sample("Orla", "a blue box"),
                sample("Tam", "the third drawer"),
            ],
            link_tokens: Some(4096),
            ..CertifyRequest::default()
        },
    )
    .await;
    assert_eq!((ended.state(), ended.error.as_str()), (JobState::Done, ""));

    let certificates = list(&clients, false).await;
    let of = |mode| {
        certificates
            .iter()
            .find(|found| found.mode() == mode)
            .unwrap()
    };
    // What computes everything agrees with full prefill on every token.
    for mode in [Mode::Link, Mode::Preload] {
        let found = of(mode);
        assert_eq!(found.agreement.unwrap().value, 1.0, "{mode:?}");
        assert_eq!(found.same_answer.unwrap().value, 1.0, "{mode:?}");
        assert!(found.mean_kl < 1e-4, "{mode:?}: {}", found.mean_kl);
        assert_eq!(found.f1, found.f1_full);
        // Two samples prove little, even where they all agree.
        assert!(found.agreement.unwrap().low < 0.5);
    }
    let packet = of(Mode::Packet);
    assert!(packet.mean_kl > 1e-4, "{}", packet.mean_kl);
    assert_eq!(packet.samples, 2);
    assert!(packet.tokens >= 2 && packet.ttft_full_ms > 0.0);
    // Nothing of the samples stays behind.
    let stats = clients.packets().stats(StatsRequest {}).await.unwrap();
    assert_eq!(stats.into_inner().packets, 0);

    clients
        .packets()
        .put_document(document(
            "",
            "keys",
            "Orla keeps the lighthouse keys in a blue box.",
        ))
        .await
        .unwrap();
    let mut request = ask("Where are the keys?", 2);
    request.documents = vec!["keys".to_owned()];
    let unsure = clients.answer(request.clone()).await.unwrap().summary;
    assert_eq!(unsure.mode(), Mode::Full);
    assert!(
        unsure.mode_reason.contains("0.95"),
        "{}",
        unsure.mode_reason
    );
    let low = packet.agreement.unwrap().low;
    request.min_agreement = (low * 0.99) as f32;
    if low > 0.01 {
        let sure = clients.answer(request.clone()).await.unwrap().summary;
        assert_eq!((sure.mode(), sure.exact), (Mode::Packet, false));
        assert_eq!(sure.certificate, packet.id);
    }

    let info = clients
        .admin()
        .info(InfoRequest {})
        .await
        .unwrap()
        .into_inner();
    let base = *blake3::Hash::from_hex(info.base_fingerprint)
        .unwrap()
        .as_bytes();
    let soft = Tensor::ones([2, 576], (Kind::Float, Device::Cpu)) * 0.01;
    let adapter = Adapter::new(&soft, &soft, base, "other".to_owned(), "{}".to_owned()).unwrap();
    let import = ImportAdapterRequest {
        file: adapter.to_bytes().unwrap(),
        activate: true,
    };
    clients.adapters().import(import).await.unwrap();
    let valid = list(&clients, false).await;
    assert!(valid.iter().all(|found| found.mode() != Mode::Packet));
    let all = list(&clients, true).await;
    let void = all
        .iter()
        .find(|found| found.mode() == Mode::Packet)
        .unwrap();
    assert!(void.void_reason.contains("adapter"), "{}", void.void_reason);
    let summary = clients.answer(request.clone()).await.unwrap().summary;
    assert_ne!(summary.mode(), Mode::Packet);

    // Back again, it is the same packets that it was measured with, also after a restart.
    let none = ActivateAdapterRequest {
        id: "none".to_owned(),
    };
    clients.adapters().activate(none).await.unwrap();
    drop(clients);
    server.stopped().await;
    let server = Daemon::start(data.path(), &[("adapter", "none")]);
    let clients = server.connect().await;
    let valid = list(&clients, false).await;
    assert!(valid.iter().any(|found| found.mode() == Mode::Packet));
    drop(clients);
    server.stopped().await;
}

#[tokio::test]
async fn what_cannot_be_measured_is_refused_by_name() {
    let clients = crate::daemon::shared().connect().await;
    let refused = async |request: CertifyRequest| {
        let status = clients.adapters().certify(request).await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument);
        status.message().to_owned()
    };
    let modes = vec![Mode::Full.into()];
    let full = refused(CertifyRequest {
        modes,
        ..CertifyRequest::default()
    });
    assert!(full.await.contains("modes"));
    let many = refused(CertifyRequest {
        samples: 100_000,
        ..CertifyRequest::default()
    });
    assert!(many.await.contains("samples"));
    let unknown = refused(CertifyRequest {
        suites: vec!["trivia".to_owned()],
        ..CertifyRequest::default()
    });
    assert!(unknown.await.contains("biography"));
    let empty = LabelledSample {
        question: "Why?".to_owned(),
        ..LabelledSample::default()
    };
    let empty = refused(CertifyRequest {
        given: vec![empty],
        ..CertifyRequest::default()
    });
    assert!(empty.await.contains("documents"));
}
