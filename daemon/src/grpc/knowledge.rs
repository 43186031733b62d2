//! Knowledge: facts added, retired, listed, checked, and the ledger as a stream.

use std::sync::Arc;

use addenda_editor::{Added, Fact, FactId, FactRecord, FactState, Figures, LedgerEvent};
use addenda_proto::addenda::v1 as wire;
use addenda_proto::addenda::v1::add_facts_response::Result as Outcome;
use addenda_proto::addenda::v1::knowledge_server::Knowledge;
use tokio::sync::mpsc;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use crate::digest::Digest;
use crate::engine::command::{Command, Edit, Ticket};
use crate::error::{Error, Result};
use crate::grpc::status::status;
use crate::grpc::{Daemon, check, locating, patches, preparing};
use crate::limits;

/// The service over the engine's editor.
pub(crate) struct KnowledgeService(pub(crate) Arc<Daemon>);

type Answer<T> = std::result::Result<Response<T>, Status>;
type Reports<T> = ReceiverStream<std::result::Result<T, Status>>;

/// Answers that may wait for a client before its stream pauses.
const REPORTS: usize = 16;

#[tonic::async_trait]
impl Knowledge for KnowledgeService {
    type AddFactsStream = Reports<wire::AddFactsResponse>;
    type ExportPatchStream = Reports<wire::PatchChunk>;
    type WatchLedgerStream = Reports<wire::LedgerEntry>;

    async fn add_fact(
        &self,
        request: Request<wire::AddFactRequest>,
    ) -> Answer<wire::AddFactResponse> {
        let (_, ticket, _leave) = self.0.admit("AddFact", &request)?;
        let mut results = add_all(&self.0, &ticket, vec![request.into_inner()]).await;
        let nothing = || Err(status(&Error::Cancelled));
        results.pop().unwrap_or_else(nothing).map(Response::new)
    }

    async fn add_facts(
        &self,
        request: Request<Streaming<wire::AddFactRequest>>,
    ) -> Answer<Self::AddFactsStream> {
        let (_, ticket, leave) = self.0.admit("AddFacts", &request)?;
        let (daemon, mut facts) = (Arc::clone(&self.0), request.into_inner());
        let (answers, stream) = mpsc::channel(REPORTS);
        tokio::spawn(async move {
            let _leave = leave;
            let mut index = 0;
            loop {
                let batch = tokio::select! {
                    batch = gather(&mut facts) => batch,
                    () = answers.closed() => return,
                    () = daemon.stop.cancelled() => {
                        drop(answers.send(Err(status(&Error::Stopping))).await);
                        return;
                    }
                };
                // The end, or a client's broken stream: there is nobody to tell.
                if batch.is_empty() {
                    return;
                }
                let results = tokio::select! {
                    results = add_all(&daemon, &ticket, batch) => results,
                    () = answers.closed() => return,
                };
                for result in results {
                    let result = Some(outcome(result));
                    let answer = wire::AddFactsResponse { index, result };
                    if answers.send(Ok(answer)).await.is_err() {
                        return;
                    }
                    index += 1;
                }
            }
        });
        Ok(Response::new(ReceiverStream::new(stream)))
    }

    async fn retire_fact(
        &self,
        request: Request<wire::RetireFactRequest>,
    ) -> Answer<wire::RetireFactResponse> {
        let (_, ticket, _leave) = self.0.admit("RetireFact", &request)?;
        let retire = async {
            let id: FactId = check::digest("id", &request.get_ref().id)?;
            let edit = |reply| Command::Edit(Box::new(Edit::Retire { id, reply }));
            self.0.engine.ask(&ticket, edit).await
        };
        let (fact, revision) = retire.await.map_err(|error| status(&error))?;
        Ok(Response::new(wire::RetireFactResponse {
            record: Some(record(&fact)),
            revision: revision.to_string(),
        }))
    }

    async fn get_fact(&self, request: Request<wire::GetFactRequest>) -> Answer<wire::FactRecord> {
        let (_, ticket, _leave) = self.0.admit("GetFact", &request)?;
        let get = async {
            let id: FactId = check::digest("id", &request.get_ref().id)?;
            let look =
                move |view: crate::engine::command::View<'_>| Ok(record(view.editor.get(id)?));
            self.0.engine.consult(&ticket, look).await
        };
        get.await.map(Response::new).map_err(|error| status(&error))
    }

    async fn list_facts(
        &self,
        request: Request<wire::ListFactsRequest>,
    ) -> Answer<wire::ListFactsResponse> {
        let (_, ticket, _leave) = self.0.admit("ListFacts", &request)?;
        let list = list(&self.0, &ticket, request.get_ref());
        list.await
            .map(Response::new)
            .map_err(|error| status(&error))
    }

    async fn check_fact(
        &self,
        request: Request<wire::CheckFactRequest>,
    ) -> Answer<wire::CheckFactResponse> {
        let (_, ticket, _leave) = self.0.admit("CheckFact", &request)?;
        let check = async {
            let id: FactId = check::digest("id", &request.get_ref().id)?;
            let edit = |reply| Command::Edit(Box::new(Edit::Check { id, reply }));
            self.0.engine.ask(&ticket, edit).await
        };
        let (fact, now) = check.await.map_err(|error| status(&error))?;
        Ok(Response::new(wire::CheckFactResponse {
            record: Some(record(&fact)),
            now: Some(figures(&now)),
        }))
    }

    async fn prepare(&self, request: Request<wire::PrepareRequest>) -> Answer<wire::JobRecord> {
        let (_, ticket, _leave) = self.0.admit("Prepare", &request)?;
        let methods = preparing::methods(&request.get_ref().method);
        let methods = methods.map_err(|error| status(&error))?;
        let job = preparing::begin(&self.0, ticket, methods);
        Ok(Response::new(job))
    }

    async fn locate(&self, request: Request<wire::LocateRequest>) -> Answer<wire::JobRecord> {
        let (_, ticket, _leave) = self.0.admit("Locate", &request)?;
        let job = locating::begin(&self.0, ticket, request.into_inner());
        job.map(Response::new).map_err(|error| status(&error))
    }

    async fn get_location(
        &self,
        request: Request<wire::GetLocationRequest>,
    ) -> Answer<wire::Location> {
        let (_, ticket, _leave) = self.0.admit("GetLocation", &request)?;
        let location = locating::kept(&self.0, &ticket).await;
        location.map(Response::new).map_err(|error| status(&error))
    }

    async fn list_patches(
        &self,
        request: Request<wire::ListPatchesRequest>,
    ) -> Answer<wire::ListPatchesResponse> {
        let (_, ticket, _leave) = self.0.admit("ListPatches", &request)?;
        let list = patches::list(&self.0, &ticket);
        list.await
            .map(Response::new)
            .map_err(|error| status(&error))
    }

    async fn export_patch(
        &self,
        request: Request<wire::ExportPatchRequest>,
    ) -> Answer<Self::ExportPatchStream> {
        let (_, ticket, leave) = self.0.admit("ExportPatch", &request)?;
        let matrices = !request.get_ref().facts_only;
        let file = patches::export(&self.0, &ticket, matrices).await;
        let file = file.map_err(|error| status(&error))?;
        let (chunks, stream) = mpsc::channel(REPORTS);
        tokio::spawn(async move {
            let _leave = leave;
            for chunk in file.chunks(limits::PATCH_CHUNK) {
                let data = chunk.to_vec();
                if chunks.send(Ok(wire::PatchChunk { data })).await.is_err() {
                    return;
                }
            }
        });
        Ok(Response::new(ReceiverStream::new(stream)))
    }

    async fn import_patch(
        &self,
        request: Request<Streaming<wire::PatchChunk>>,
    ) -> Answer<wire::ImportPatchResponse> {
        let (_, ticket, _leave) = self.0.admit("ImportPatch", &request)?;
        let file = patches::gather(request.into_inner()).await?;
        let answers = patches::import(&self.0, &ticket, file).await;
        let answers = answers.map_err(|error| status(&error))?.into_iter();
        let facts = answers.zip(0..).map(|(answer, index)| {
            let answer = answer.map(|added| response(&added));
            let result = Some(outcome(answer.map_err(|error| status(&error))));
            wire::AddFactsResponse { index, result }
        });
        Ok(Response::new(wire::ImportPatchResponse {
            facts: facts.collect(),
        }))
    }

    async fn watch_ledger(
        &self,
        request: Request<wire::WatchLedgerRequest>,
    ) -> Answer<Self::WatchLedgerStream> {
        let (_, ticket, leave) = self.0.admit("WatchLedger", &request)?;
        let request = request.into_inner();
        let daemon = Arc::clone(&self.0);
        let (entries, stream) = mpsc::channel(REPORTS);
        tokio::spawn(async move {
            let _leave = leave;
            if let Err(error) = follow(&daemon, &ticket, request, &entries).await {
                drop(entries.send(Err(status(&error))).await);
            }
        });
        Ok(Response::new(ReceiverStream::new(stream)))
    }
}

/// The next facts of a stream: one, and those that follow at once. None at its end.
async fn gather(facts: &mut Streaming<wire::AddFactRequest>) -> Vec<wire::AddFactRequest> {
    let mut batch = Vec::new();
    if let Some(Ok(first)) = facts.next().await {
        batch.push(first);
    }
    while !batch.is_empty() && batch.len() < limits::FACTS_TOGETHER {
        match tokio::time::timeout(limits::GATHER, facts.next()).await {
            Ok(Some(Ok(next))) => batch.push(next),
            _ => break,
        }
    }
    batch
}

fn outcome(result: std::result::Result<wire::AddFactResponse, Status>) -> Outcome {
    match result {
        Ok(added) => Outcome::Added(added),
        Err(status) => Outcome::Refused(wire::Refusal {
            code: status.code().into(),
            message: status.message().to_owned(),
        }),
    }
}

/// Adds facts together, as one job that others can watch and cancel; the answers are in the requests' order.
async fn add_all(
    daemon: &Daemon,
    ticket: &Ticket,
    requests: Vec<wire::AddFactRequest>,
) -> Vec<std::result::Result<wire::AddFactResponse, Status>> {
    let mut sound = Vec::new();
    let mut answers: Vec<Option<Error>> = Vec::new();
    for request in requests {
        answers.push(match checked(request) {
            Ok(request) => {
                sound.push(request);
                None
            }
            Err(error) => Some(error),
        });
    }
    let count = sound.len();
    let mut results = match sound.is_empty() {
        true => Vec::new(),
        false => edit(daemon, ticket, sound).await,
    };
    results.truncate(count);
    let mut results = results.into_iter();
    answers
        .into_iter()
        .map(|refused| match refused {
            Some(error) => Err(status(&error)),
            None => (results.next()).unwrap_or_else(|| Err(status(&Error::Cancelled))),
        })
        .collect()
}

/// A request in the editor's terms.
fn checked(request: wire::AddFactRequest) -> Result<addenda_editor::Request> {
    let fact = request
        .fact
        .ok_or_else(|| Error::invalid("fact", "is missing"))?;
    check::at_most_bytes(
        "request_id",
        &request.request_id,
        addenda_editor::MAX_REQUEST_ID,
    )?;
    let method = preparing::method(&request.method)?;
    Ok(addenda_editor::Request {
        fact: stated(fact),
        request_id: request.request_id,
        method,
    })
}

/// A fact in the editor's terms.
pub(crate) fn stated(fact: wire::Fact) -> Fact {
    Fact {
        subject: fact.subject,
        prompt: fact.prompt,
        target: fact.target,
        paraphrases: fact.paraphrases,
        neighbours: fact.neighbours,
        valid_from_ms: (fact.valid_from_ms > 0).then_some(fact.valid_from_ms),
        valid_until_ms: (fact.valid_until_ms > 0).then_some(fact.valid_until_ms),
    }
}

/// One answer for each; what fails the batch as a whole is every one's answer.
async fn edit(
    daemon: &Daemon,
    ticket: &Ticket,
    requests: Vec<addenda_editor::Request>,
) -> Vec<std::result::Result<wire::AddFactResponse, Status>> {
    // Its own token: cancelling the job of one batch leaves the rest of a stream alone.
    let ticket = Ticket {
        cancel: ticket.cancel.child_token(),
        ..ticket.clone()
    };
    let count = requests.len();
    let job = daemon.jobs.begin("edit", "steps", ticket.cancel.clone());
    let edit = |reply| {
        Command::Edit(Box::new(Edit::Add {
            requests,
            job,
            reply,
        }))
    };
    match daemon.engine.ask(&ticket, edit).await {
        Ok(answers) => answers
            .into_iter()
            .map(|answer| match answer {
                Ok(added) => Ok(response(&added)),
                Err(error) => Err(status(&error)),
            })
            .collect(),
        Err(error) => vec![Err(status(&error)); count],
    }
}

fn response(added: &Added) -> wire::AddFactResponse {
    wire::AddFactResponse {
        record: Some(record(&added.record)),
        revision: Digest(added.revision).to_string(),
        superseded: added
            .superseded
            .map(|id| id.to_string())
            .unwrap_or_default(),
        seconds: added.seconds,
    }
}

async fn list(
    daemon: &Daemon,
    ticket: &Ticket,
    request: &wire::ListFactsRequest,
) -> Result<wire::ListFactsResponse> {
    let size = check::page(request.page_size)?;
    let all = request.include_ended;
    let after: u64 = match request.page_token.as_str() {
        "" => 0,
        token => token.parse().map_err(|_| {
            Error::invalid(
                "page_token",
                "is not one that this daemon gave; begin again without it",
            )
        })?,
    };
    daemon
        .engine
        .consult(ticket, move |view| {
            let mut facts = view.editor.list(all, after);
            let page: Vec<_> = facts.by_ref().take(size).collect();
            let last = page.last().filter(|_| facts.next().is_some());
            Ok(wire::ListFactsResponse {
                next_page_token: last
                    .map(|fact| fact.sequence.to_string())
                    .unwrap_or_default(),
                facts: page.into_iter().map(record).collect(),
            })
        })
        .await
}

/// Sends the ledger's entries, then new ones as they come.
async fn follow(
    daemon: &Daemon,
    ticket: &Ticket,
    request: wire::WatchLedgerRequest,
    entries: &mpsc::Sender<std::result::Result<wire::LedgerEntry, Status>>,
) -> Result<()> {
    let mut state = daemon.engine.watch();
    let mut after = request.after;
    loop {
        state.borrow_and_update();
        loop {
            let page = daemon
                .engine
                .consult(ticket, move |view| Ok(page(view.editor.events(after))));
            let page = page.await?;
            let Some(last) = page.last() else { break };
            after = last.sequence;
            for event in page {
                if entries.send(Ok(entry(&event))).await.is_err() {
                    return Ok(());
                }
            }
        }
        if request.no_follow {
            return Ok(());
        }
        let until = ticket.deadline.map(tokio::time::Instant::from_std);
        tokio::select! {
            changed = state.changed() => if changed.is_err() { return Ok(()) },
            () = entries.closed() => return Ok(()),
            () = daemon.stop.cancelled() => return Err(Error::Stopping),
            () = async { match until {
                Some(until) => tokio::time::sleep_until(until).await,
                None => std::future::pending().await,
            } } => return Err(Error::Deadline),
        }
    }
}

/// The next events; those of one frame are never parted.
fn page(events: &[LedgerEvent]) -> Vec<LedgerEvent> {
    let last = events.get(limits::LEDGER_BATCH).map(|event| event.sequence);
    let page = events.iter().enumerate().take_while(|(place, event)| {
        *place <= limits::LEDGER_BATCH || Some(event.sequence) == last
    });
    page.map(|(_, event)| event.clone()).collect()
}

fn entry(event: &LedgerEvent) -> wire::LedgerEntry {
    wire::LedgerEntry {
        sequence: event.sequence,
        action: event.action.to_string(),
        fact_id: event.fact_id.to_string(),
        at_ms: event.at_ms,
        revision: Digest(event.revision).to_string(),
        digest: Digest(event.digest).to_string(),
    }
}

/// A fact as the wire shows it.
fn record(fact: &FactRecord) -> wire::FactRecord {
    let state = match fact.state {
        FactState::Active => wire::FactState::Active,
        FactState::Superseded => wire::FactState::Superseded,
        FactState::Retired => wire::FactState::Retired,
        FactState::Waiting => wire::FactState::Waiting,
        FactState::Expired => wire::FactState::Expired,
    };
    wire::FactRecord {
        id: fact.id.to_string(),
        fact: Some(wire::Fact {
            subject: fact.fact.subject.clone(),
            prompt: fact.fact.prompt.clone(),
            target: fact.fact.target.clone(),
            paraphrases: fact.fact.paraphrases.clone(),
            neighbours: fact.fact.neighbours.clone(),
            valid_from_ms: fact.fact.valid_from_ms.unwrap_or(0),
            valid_until_ms: fact.fact.valid_until_ms.unwrap_or(0),
        }),
        state: state.into(),
        figures: Some(figures(&fact.figures)),
        method: fact.method.to_string(),
        layers: fact
            .layers
            .iter()
            .filter_map(|&layer| u32::try_from(layer).ok())
            .collect(),
        added_at_ms: fact.added_at_ms,
        ended_at_ms: fact.ended_at_ms.unwrap_or(0),
        superseded_by: fact
            .superseded_by
            .map(|id| id.to_string())
            .unwrap_or_default(),
    }
}

#[expect(
    clippy::cast_possible_truncation,
    reason = "shares and perplexities are shown, not computed with"
)]
fn figures(figures: &Figures) -> wire::FactFigures {
    wire::FactFigures {
        target_probability: figures.target_probability as f32,
        target_probability_before: figures.target_probability_before as f32,
        target_is_top1: figures.target_is_top1,
        paraphrase: figures.paraphrase.map(|share| share as f32),
        locality: figures.locality.map(|share| share as f32),
        perplexity_before: figures.perplexity_before as f32,
        perplexity_after: figures.perplexity_after as f32,
        made_paraphrases: figures.made_paraphrases,
        made_neighbours: figures.made_neighbours,
        chat_probability: figures.chat_probability.map(|share| share as f32),
        chat_is_top1: figures.chat_is_top1,
    }
}
