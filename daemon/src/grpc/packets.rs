//! Packets: documents put, looked up, listed, pinned, deleted.

use std::sync::Arc;

use addenda_cache::{Manifest, PacketId, Removed, Store};
use addenda_proto::addenda::v1::packets_server::Packets;
use addenda_proto::addenda::v1::{
    DeleteRequest, DeleteResponse, GetPacketRequest, ListPacketsRequest, ListPacketsResponse,
    LookupRequest, LookupResponse, PacketRecord, PinRequest, PutDocumentRequest,
    PutDocumentResponse, StatsRequest, StatsResponse, WarmProgress, delete_request,
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use crate::digest::Digest;
use crate::documents::gone::Gone;
use crate::documents::{Stored, blocking};
use crate::engine::command::{Form, NO_ADAPTER};
use crate::error::{Error, Result};
use crate::grpc::status::status;
use crate::grpc::{Daemon, check, jobs, lookup, warm};
use crate::limits;

/// The service over the store and, for what must be computed, the engine.
pub(crate) struct PacketsService(pub(crate) Arc<Daemon>);

type Answer<T> = std::result::Result<Response<T>, Status>;

#[tonic::async_trait]
impl Packets for PacketsService {
    type WarmStream = ReceiverStream<std::result::Result<WarmProgress, Status>>;

    async fn put_document(
        &self,
        request: Request<PutDocumentRequest>,
    ) -> Answer<PutDocumentResponse> {
        let (serving, ticket, _leave) = self.0.admit("PutDocument", &request)?;
        let put = async {
            let request = request.into_inner();
            let namespace = check_document(&request)?;
            let documents = &serving.documents;
            let named = documents
                .named(&namespace, &request.name, request.text)
                .await;
            documents.put(&ticket, named).await
        };
        let stored = put.await.map_err(|error| status(&error))?;
        let packets = records(&stored);
        Ok(Response::new(PutDocumentResponse {
            packet: packets.first().cloned(),
            packets,
            created: stored.created(),
            seconds: ticket.received.elapsed().as_secs_f64(),
        }))
    }

    async fn warm(
        &self,
        request: Request<Streaming<PutDocumentRequest>>,
    ) -> Answer<Self::WarmStream> {
        let (serving, mut ticket, leave) = self.0.admit("Warm", &request)?;
        ticket.patient = true;
        let job = self
            .0
            .jobs
            .begin("warm", "documents", ticket.cancel.clone());
        let stream = warm::start(
            (serving, self.0.stop.clone()),
            ticket,
            leave,
            job,
            request.into_inner(),
        );
        Ok(Response::new(stream))
    }

    async fn lookup(&self, request: Request<LookupRequest>) -> Answer<LookupResponse> {
        let (serving, _, _leave) = self.0.admit("Lookup", &request)?;
        let origin = self.0.engine.state().under.origin(Form::Wrapped);
        let request = request.into_inner();
        let look = blocking(move || {
            check::count("queries", request.queries.len(), 1, limits::QUERIES)?;
            let namespace = check::namespace(&request.namespace)?;
            let queries = request.queries.into_iter();
            queries
                .map(|query| lookup::look_up(&serving, &namespace, query, origin))
                .collect()
        });
        let hits = look.await.map_err(|error| status(&error))?;
        Ok(Response::new(LookupResponse { hits }))
    }

    async fn get(&self, request: Request<GetPacketRequest>) -> Answer<PacketRecord> {
        let id = request.into_inner().id;
        self.on_packet(id, Store::get).await
    }

    async fn list(&self, request: Request<ListPacketsRequest>) -> Answer<ListPacketsResponse> {
        let request = request.into_inner();
        let store = Arc::clone(&self.0.store);
        let list = blocking(move || {
            let namespace = check::namespace(&request.namespace)?;
            let size = check::page(request.page_size)?;
            if !request.document.is_empty() {
                check::at_most_bytes("document", &request.document, limits::NAME_BYTES)?;
                return Ok(ListPacketsResponse {
                    packets: of_document(&store, &namespace, &request.document)?,
                    next_page_token: String::new(),
                });
            }
            let after: Option<PacketId> = match request.page_token.as_str() {
                "" => None,
                token => Some(check::digest("page_token", token)?),
            };
            let mut manifests = store.list(&namespace, after.as_ref(), size + 1)?;
            let more = manifests.len() > size;
            manifests.truncate(size);
            let last = manifests.last().filter(|_| more);
            let next_page_token = last
                .map(|manifest| manifest.id.to_string())
                .unwrap_or_default();
            let packets = manifests.iter().map(|manifest| record(&store, manifest));
            let packets = packets.collect::<Result<_>>()?;
            Ok(ListPacketsResponse {
                packets,
                next_page_token,
            })
        });
        list.await
            .map(Response::new)
            .map_err(|error| status(&error))
    }

    async fn pin(&self, request: Request<PinRequest>) -> Answer<PacketRecord> {
        let id = request.into_inner().id;
        self.on_packet(id, |store, id| store.pin(id).map(Some))
            .await
    }

    async fn unpin(&self, request: Request<PinRequest>) -> Answer<PacketRecord> {
        let id = request.into_inner().id;
        self.on_packet(id, |store, id| store.unpin(id).map(Some))
            .await
    }

    async fn delete(&self, request: Request<DeleteRequest>) -> Answer<DeleteResponse> {
        let request = request.into_inner();
        let namespace = check::namespace(&request.namespace).map_err(|error| status(&error))?;
        let what = request.what.ok_or_else(|| {
            let error = Error::invalid("what", "is missing; give `id` or `document`");
            status(&error)
        })?;
        // A document that is being put is erased when all of it is there, not half of it.
        let _turn = match (&what, self.0.serving.get()) {
            (delete_request::What::Document(name), Some(serving)) => {
                Some(serving.documents.turn(&namespace, name).await)
            }
            _ => None,
        };
        let store = Arc::clone(&self.0.store);
        let space = namespace.clone();
        let delete = blocking(move || delete(&store, &space, what)).await;
        let (mut removed, gone) = delete.map_err(|error| status(&error))?;
        if let Some(serving) = self.0.serving.get() {
            let forgotten = serving.documents.forget(&namespace, gone).await;
            let joint = forgotten.map_err(|error| status(&error))?;
            removed.packets += joint.packets;
            removed.bytes += joint.bytes;
        }
        Ok(Response::new(DeleteResponse {
            packets: u32::try_from(removed.packets).unwrap_or(u32::MAX),
            bytes: removed.bytes,
        }))
    }

    async fn stats(&self, _: Request<StatsRequest>) -> Answer<StatsResponse> {
        let store = Arc::clone(&self.0.store);
        let revision = self.0.engine.state().under.revision;
        let stats = blocking(move || {
            let stats = store.stats()?;
            let fresh = store.packets_of_revision(&revision.0);
            Ok((stats, fresh))
        });
        let (stats, fresh) = stats.await.map_err(|error| status(&error))?;
        Ok(Response::new(StatsResponse {
            packets: stats.packets,
            live_bytes: stats.live_bytes,
            disk_bytes: stats.disk_bytes,
            hits: stats.hits,
            misses: stats.misses,
            stale_packets: stats.packets.saturating_sub(fresh),
            mapped_bytes: stats.mapped_bytes,
            running_jobs: self.0.jobs.list(false).iter().map(jobs::record).collect(),
        }))
    }
}

/// Deletes a packet or a document; gives what else is to be forgotten with it.
fn delete(store: &Store, namespace: &str, what: delete_request::What) -> Result<(Removed, Gone)> {
    let (removed, gone, kind, name) = match what {
        delete_request::What::Id(text) => {
            let id: PacketId = check::digest("id", &text)?;
            let mine = store
                .get(&id)?
                .filter(|packet| packet.header.namespace == namespace);
            let id = mine.ok_or(addenda_cache::Error::NotFound { id })?.id;
            let gone = Gone::packets(store, &[id])?;
            (store.delete(&id)?, gone, "packet", text)
        }
        delete_request::What::Document(name) => {
            check::text("document", &name, limits::NAME_BYTES)?;
            let gone = Gone::document(store, namespace, &name)?;
            (
                store.delete_document(namespace, &name)?,
                gone,
                "document",
                name,
            )
        }
    };
    if removed.packets == 0 {
        let hint = "`addenda packet list` shows those there are";
        return Err(Error::NotFound {
            what: kind,
            id: name,
            hint,
        });
    }
    Ok((removed, gone))
}

impl PacketsService {
    /// Does something with the packet of an id and shows it.
    async fn on_packet(
        &self,
        id: String,
        work: impl FnOnce(&Store, &PacketId) -> addenda_cache::Result<Option<Manifest>> + Send + 'static,
    ) -> Answer<PacketRecord> {
        let store = Arc::clone(&self.0.store);
        let found = blocking(move || {
            let id: PacketId = check::digest("id", &id)?;
            let manifest = work(&store, &id)?;
            record(
                &store,
                &manifest.ok_or(addenda_cache::Error::NotFound { id })?,
            )
        });
        found
            .await
            .map(Response::new)
            .map_err(|error| status(&error))
    }
}

/// Checks a document to be put; gives its namespace.
///
/// # Errors
/// A field out of its bounds.
pub(crate) fn check_document(request: &PutDocumentRequest) -> Result<String> {
    check::text("text", &request.text, limits::DOCUMENT_BYTES)?;
    check::at_most_bytes("name", &request.name, limits::NAME_BYTES)?;
    check::namespace(&request.namespace)
}

/// The packets of a document that was put, as the wire shows them.
pub(crate) fn records(stored: &Stored) -> Vec<PacketRecord> {
    let count = |number: usize| u32::try_from(number).unwrap_or(u32::MAX);
    let parts = stored.parts.iter().enumerate();
    parts
        .map(|(part, (manifest, _))| record_at(manifest, (count(part), count(stored.parts.len()))))
        .collect()
}

/// A packet as the wire shows it.
///
/// # Errors
/// The store's.
pub(crate) fn record(store: &Store, manifest: &Manifest) -> Result<PacketRecord> {
    Ok(record_at(manifest, store.place(&manifest.id)?))
}

fn record_at(manifest: &Manifest, (part, parts): (u32, u32)) -> PacketRecord {
    let header = &manifest.header;
    PacketRecord {
        id: manifest.id.to_string(),
        key: header.key.to_string(),
        document: header.document.clone(),
        namespace: header.namespace.clone(),
        tokens: header.tokens,
        bytes: manifest.bytes(),
        dtype: header.dtype.clone(),
        pinned: manifest.pinned,
        created_at_ms: header.created_at_ms,
        last_used_at_ms: manifest.last_used_at_ms,
        revision: Digest(header.revision).to_string(),
        source: Digest(header.source).to_string(),
        adapter: shown(Digest(header.adapter)),
        part,
        parts,
        primer: shown(Digest(header.primer)),
    }
}

/// A digest as the wire shows it: empty for none of what it is of, which is all zeros.
pub(crate) fn shown(digest: Digest) -> String {
    if digest == NO_ADAPTER {
        String::new()
    } else {
        digest.to_string()
    }
}

/// The packets of a document, edition by edition, the newest first.
fn of_document(store: &Store, namespace: &str, name: &str) -> Result<Vec<PacketRecord>> {
    let count = |number: usize| u32::try_from(number).unwrap_or(u32::MAX);
    let mut packets = Vec::new();
    let document = store.document(namespace, name)?;
    for edition in document.iter().flat_map(|one| one.editions.iter().rev()) {
        for (part, id) in edition.parts.iter().enumerate() {
            let manifest = id.map(|id| store.get(&id)).transpose()?.flatten();
            let place = (count(part), count(edition.parts.len()));
            packets.extend(manifest.map(|manifest| PacketRecord {
                document: name.to_owned(),
                ..record_at(&manifest, place)
            }));
        }
    }
    Ok(packets)
}
