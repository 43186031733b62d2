//! `addenda packet`: documents as packets.

mod primer;
mod put;
mod show;
mod source;
mod warm;

pub(crate) use warm::send as send_documents;

use std::process::ExitCode;

use addenda_proto::addenda::v1::{
    DeleteRequest, GetPacketRequest, ListPacketsRequest, PacketRecord, PinRequest, StatsRequest,
    delete_request,
};
use clap::{Args, Subcommand};

use super::client::Client;
use super::console::Console;
use super::error::{Error, Result};
use super::ids::{ID_DIGITS, resolve};
use super::text::{count, short};
use crate::config::format_bytes;

#[derive(Debug, Subcommand)]
pub(crate) enum PacketCommand {
    #[command(flatten)]
    Asked(Asked),
    /// Write the beginnings of documents, as a file for the setting `primer`: alike documents are told apart better
    Primer(primer::PrimerArgs),
}

/// What the daemon is asked.
#[derive(Debug, Subcommand)]
pub(crate) enum Asked {
    /// Turn one document into a packet; the same text again is free
    Put(put::PutArgs),
    /// Turn many documents into packets; run it again and only what is missing is computed
    Warm(warm::WarmArgs),
    /// List packets
    List(NamespaceArgs),
    /// Show a packet, or those of a document
    Show(PacketArgs),
    /// Keep a packet, or those of a document, from ever being evicted
    Pin(PacketArgs),
    /// Let them be evicted again
    Unpin(PacketArgs),
    /// Erase every packet of a document, or one packet by its id
    Rm {
        /// Documents' names, or packets' ids
        #[arg(required = true, value_name = "NAME|ID")]
        names: Vec<String>,
        #[command(flatten)]
        of: NamespaceArgs,
    },
    /// Count packets, bytes, hits and misses
    Stats,
}

#[derive(Debug, Args)]
pub(crate) struct NamespaceArgs {
    /// Whose documents
    #[arg(long, value_name = "NAME", default_value = "default")]
    namespace: String,
}

#[derive(Debug, Args)]
pub(crate) struct PacketArgs {
    /// The packet's id or the beginning of it, or its document's name
    #[arg(value_name = "ID|NAME")]
    packet: String,
    #[command(flatten)]
    of: NamespaceArgs,
}

impl PacketCommand {
    pub(crate) async fn run(self, connect: &str, console: &mut Console) -> Result<ExitCode> {
        match self {
            Self::Asked(asked) => asked.run(connect, console).await,
            Self::Primer(args) => {
                args.run(console).await?;
                Ok(ExitCode::SUCCESS)
            }
        }
    }
}

impl Asked {
    async fn run(self, connect: &str, console: &mut Console) -> Result<ExitCode> {
        let client = Client::ready(connect, console).await?;
        match self {
            Self::Put(args) => args.run(&client, console).await?,
            Self::Warm(args) => return args.run(&client, console).await,
            Self::List(of) => {
                let packets = all_packets(&client, &of.namespace).await?;
                show::list(&packets, console)?;
            }
            Self::Show(args) => {
                for id in args.ids(&client).await? {
                    let packet = client.packets().get(GetPacketRequest { id }).await?;
                    show::one(packet.get_ref(), console)?;
                }
            }
            Self::Pin(args) => {
                for id in args.ids(&client).await? {
                    let packet = client.packets().pin(PinRequest { id }).await?;
                    show::one(packet.get_ref(), console)?;
                }
            }
            Self::Unpin(args) => {
                for id in args.ids(&client).await? {
                    let packet = client.packets().unpin(PinRequest { id }).await?;
                    show::one(packet.get_ref(), console)?;
                }
            }
            Self::Rm { names, of } => {
                for name in names {
                    remove(&client, name, &of.namespace, console).await?;
                }
            }
            Self::Stats => {
                let stats = client.packets().stats(StatsRequest {}).await?.into_inner();
                show::stats(&stats, console)?;
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}

impl PacketArgs {
    /// The packet that is meant, or the newest packets of the document that is, in order.
    async fn ids(self, client: &Client) -> Result<Vec<String>> {
        if is_id(&self.packet) {
            return Ok(vec![self.packet]);
        }
        let request = ListPacketsRequest {
            namespace: self.of.namespace.clone(),
            document: self.packet.clone(),
            ..ListPacketsRequest::default()
        };
        let own = client.packets().list(request).await?.into_inner().packets;
        if let Some(newest) = own.first() {
            // The first edition ends where the parts begin again.
            let mut parts = vec![newest.id.clone()];
            let pairs = own.iter().zip(own.iter().skip(1));
            let rest = pairs.take_while(|(one, next)| one.part < next.part);
            parts.extend(rest.map(|(_, next)| next.id.clone()));
            return Ok(parts);
        }
        let packets = all_packets(client, &self.of.namespace).await?;
        let ids = packets.iter().map(|one| one.id.as_str());
        let found = resolve("packet", &self.packet, ids).map_err(|error| match error {
            Error::Refused { .. } => Error::refused(
                format!("there is no packet or document `{}`", self.packet),
                "`addenda packet list` shows what there is; --namespace says whose",
            ),
            other => other,
        });
        Ok(vec![found?])
    }
}

fn is_id(text: &str) -> bool {
    text.len() == ID_DIGITS && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

async fn remove(
    client: &Client,
    name: String,
    namespace: &str,
    console: &mut Console,
) -> Result<()> {
    let what = if is_id(&name) {
        delete_request::What::Id(name.clone())
    } else {
        delete_request::What::Document(name.clone())
    };
    let request = DeleteRequest {
        what: Some(what),
        namespace: namespace.to_owned(),
    };
    let answer = client.packets().delete(request).await?.into_inner();
    if console.json() {
        return console.message("DeleteResponse", &answer);
    }
    let name = if is_id(&name) { short(&name) } else { &name };
    let packets = count(answer.packets.into(), "packet");
    console.line(&format!(
        "erased {name}: {packets}, {}",
        format_bytes(answer.bytes)
    ))
}

/// Every page of a namespace's packets.
pub(crate) async fn all_packets(client: &Client, namespace: &str) -> Result<Vec<PacketRecord>> {
    let mut packets = Vec::new();
    let mut page_token = String::new();
    loop {
        let request = ListPacketsRequest {
            namespace: namespace.to_owned(),
            page_size: 1000,
            page_token,
            document: String::new(),
        };
        let page = client.packets().list(request).await?.into_inner();
        packets.extend(page.packets);
        if page.next_page_token.is_empty() {
            return Ok(packets);
        }
        page_token = page.next_page_token;
    }
}
