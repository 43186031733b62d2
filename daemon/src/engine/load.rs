//! What the engine's thread does first: device, threads, model, facts.
//!
//! Owns the choices that `auto` leaves open (device, dtype). Never serves.

use std::borrow::Cow;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use addenda_editor::{Corpus, Disk, Editor, EditorOptions, SNAPSHOT_EVERY, Settings};
use addenda_model::{ChatTemplate, ModelConfig, ModelFiles, Packing, Tokenizer, Transformer};
use tch::{Device, Kind};

use crate::adapters::library::Library;
use crate::config::{Config, DeviceChoice, DtypeChoice, FileChoice, WeightsChoice, format_bytes};
use crate::digest::Digest;
use crate::engine::edit::Bench;
use crate::engine::wear::Worn;
use crate::error::{Error, Result};
use crate::primer::Primer;
use crate::prompt;

/// Bytes of a file that a setting names at most.
const SETTING_FILE: u64 = 1 << 20;

/// What the engine is started with.
pub(crate) struct Setup {
    pub(crate) config: Config,
    /// Directory or file of the model.
    pub(crate) model_path: PathBuf,
}

/// What the rest of the daemon knows of the model: everything but its tensors.
pub(crate) struct Loaded {
    pub(crate) model_path: PathBuf,
    pub(crate) config: ModelConfig,
    pub(crate) tokenizer: Arc<Tokenizer>,
    pub(crate) chat_template: Option<Arc<ChatTemplate>>,
    /// What the daemon itself puts before documents, see [`prompt::beginnings`].
    pub(crate) beginnings: Vec<Vec<u32>>,
    /// What packets are computed behind.
    pub(crate) primer: Primer,
    pub(crate) fingerprint: Digest,
    pub(crate) parameters: u64,
    pub(crate) kind: Kind,
    /// What decode steps read, in words.
    pub(crate) weights: String,
    pub(crate) device: Device,
    pub(crate) adapters: Arc<Library>,
}

/// Loads all of it on the calling thread, which is the engine's.
pub(crate) fn load(setup: &Setup) -> Result<(Bench, Loaded)> {
    let config = &setup.config;
    let device = device(config.device)?;
    addenda_model::tensor::set_threads(config.thread_count());
    let kind = kind(config.dtype, device);
    let started = std::time::Instant::now();
    let files = ModelFiles::open(&setup.model_path)?;
    let tokenizer = Arc::new(files.tokenizer);
    let model_config = files.config.clone();
    let mut model = Transformer::load(files.config, files.weights, device, kind)?;
    let (packing, weights) = weights(config, &model)?;
    let packed = model.pack(packing)?;
    tracing::info!(
        path = %setup.model_path.display(),
        parameters = model.parameters(),
        dtype = addenda_model::tensor::kind_name(kind),
        %weights,
        packed_bytes = packed,
        threads = config.thread_count(),
        seconds = started.elapsed().as_secs_f32(),
        "the model is loaded"
    );
    let chat_template = files.chat_template.map(Arc::new);
    let mut editor = open_editor(config, &mut model, &tokenizer, files.fingerprint)?;
    if let Some(template) = &chat_template {
        editor.set_chat(Arc::clone(template));
    }
    let base = Digest(files.fingerprint);
    let adapters = Library::open(config.data_dir.join("adapters"), base)?;
    let worn = wear(config, &adapters, &model)?;
    let beginnings = prompt::beginnings(&tokenizer, chat_template.as_deref())?;
    let primer = primer(config, &beginnings, &tokenizer, model_config.context)?;
    let loaded = Loaded {
        model_path: setup.model_path.clone(),
        config: model_config,
        tokenizer: Arc::clone(&tokenizer),
        chat_template,
        beginnings,
        primer,
        fingerprint: base,
        parameters: model.parameters(),
        kind,
        weights,
        device,
        adapters: Arc::new(adapters),
    };
    let bench = Bench {
        model,
        editor,
        tokenizer,
        base: base.0,
        worn,
        working: None,
    };
    Ok((bench, loaded))
}

/// The adapter to begin with.
fn wear(config: &Config, adapters: &Library, model: &Transformer) -> Result<Option<Worn>> {
    let Some(entry) = adapters.first(&config.adapter)? else {
        return Ok(None);
    };
    let worn = Worn::new(&adapters.bytes(&entry)?, entry.base, model)?;
    tracing::info!(adapter = %entry.id, name = %entry.name, "an adapter is active");
    Ok(Some(worn))
}

fn device(choice: DeviceChoice) -> Result<Device> {
    match choice {
        DeviceChoice::Auto if tch::Cuda::device_count() > 0 => Ok(Device::Cuda(0)),
        DeviceChoice::Auto | DeviceChoice::Cpu => Ok(Device::Cpu),
        DeviceChoice::Cuda(index) => Ok(addenda_model::tensor::parse_device(&format!(
            "cuda:{index}"
        ))?),
    }
}

fn kind(choice: DtypeChoice, device: Device) -> Kind {
    match choice {
        DtypeChoice::F32 => Kind::Float,
        DtypeChoice::Bf16 => Kind::BFloat16,
        DtypeChoice::Auto if device.is_cuda() || addenda_model::tensor::cpu_has_bf16() => {
            Kind::BFloat16
        }
        DtypeChoice::Auto => Kind::Float,
    }
}

/// What decode steps read, and that in words.
fn weights(config: &Config, model: &Transformer) -> Result<(Option<Packing>, String)> {
    let own = addenda_model::tensor::kind_name(model.kind());
    let packed = model.parameters() * 17 / 16;
    let why = match config.weights {
        WeightsChoice::Int8 => return Ok((Some(Packing::Int8), "int8".to_owned())),
        WeightsChoice::Int4 => return Ok((Some(Packing::Int4), "int4".to_owned())),
        WeightsChoice::F32 | WeightsChoice::Bf16 => return Ok((None, own.to_owned())),
        WeightsChoice::Auto if model.device() != Device::Cpu => "on this device".to_owned(),
        WeightsChoice::Auto if config.dtype == DtypeChoice::F32 => {
            "since dtype f32 was asked for".to_owned()
        }
        WeightsChoice::Auto => match crate::memory::available() {
            Some(available) if available < 2 * packed => {
                let (packed, available) = (format_bytes(packed), format_bytes(available));
                format!("int8 would take {packed} more, of {available} that are left")
            }
            _ => {
                let packing = model.suitable_packing()?;
                let why = match packing {
                    Packing::Int4 => "int4 (auto: the model's own values are on 4 bits)".to_owned(),
                    Packing::Int8 => format!("int8 (auto: fewer bytes to read than {own})"),
                };
                return Ok((Some(packing), why));
            }
        },
    };
    Ok((None, format!("{own} (auto: as loaded, {why})")))
}

/// Hyper-parameters and bars of new edits. Facts that are active keep those that they were made by.
fn edit_settings(choice: &FileChoice, model: &Transformer) -> Result<Settings> {
    Ok(match choice {
        FileChoice::Shipped => Settings::for_model(model.config())?,
        FileChoice::File(path) => Settings::from_toml(&read(path)?, model.config())?,
    })
}

/// What packets are computed behind.
///
/// # Errors
/// A file that can't be read, or without a document that fits.
fn primer(
    config: &Config,
    beginnings: &[Vec<u32>],
    tokenizer: &Tokenizer,
    context: usize,
) -> Result<Primer> {
    let documents = match &config.primer {
        FileChoice::Shipped => Cow::Borrowed(prompt::PRIMER_DOCUMENTS),
        // Some editors end lines so.
        FileChoice::File(path) => Cow::Owned(read(path)?.replace("\r\n", "\n")),
    };
    let primer = prompt::primer(beginnings, &documents, tokenizer, context)?;
    if let (FileChoice::File(path), 0) = (&config.primer, primer.documents()) {
        let reason = format!(
            "= {}: has no document that fits; write short ones like your own, an empty line between them",
            path.display()
        );
        return Err(Error::invalid("primer", reason));
    }
    tracing::info!(
        documents = primer.documents(),
        of = prompt::paragraphs(&documents).count(),
        tokens = primer.ids().len(),
        from = %config.primer,
        "packets are computed behind a primer"
    );
    Ok(primer)
}

/// The text of a file that a setting names.
fn read(path: &Path) -> Result<String> {
    let read = || {
        let mut text = String::new();
        let file = std::fs::File::open(path)?;
        let bytes = file.take(SETTING_FILE + 1).read_to_string(&mut text)?;
        match bytes as u64 > SETTING_FILE {
            true => Err(std::io::Error::other("is larger than a MiB")),
            false => Ok(text),
        }
    };
    read().map_err(|source| Error::Io {
        path: path.to_owned(),
        source,
    })
}

/// Replays the ledger: all facts that were active are active again.
fn open_editor(
    config: &Config,
    model: &mut Transformer,
    tokenizer: &Tokenizer,
    fingerprint: [u8; 32],
) -> Result<Editor> {
    let options = EditorOptions {
        ledger_dir: config.data_dir.join("ledger"),
        moment_dir: config.cache_dir.join("moments"),
        fingerprint,
        settings: edit_settings(&config.edit_settings, model)?,
        corpus: Corpus::shipped(),
        snapshot_every: SNAPSHOT_EVERY,
        disk: Disk::default(),
    };
    let mut editor = Editor::open(options, model, tokenizer, &mut |progress| {
        tracing::debug!(phase = %progress.phase, progress.done, progress.total, "replaying the ledger");
        Ok(())
    })?;
    let opening = editor.opening();
    tracing::info!(
        frames = opening.frames,
        active = opening.active,
        "the ledger is replayed"
    );
    // What came or went while the daemon did not run does so before the first answer.
    let turned = editor.turn(model, tokenizer, &mut |_| Ok(()))?;
    if turned > 0 {
        tracing::info!(facts = turned, "facts came or went by their dates");
    }
    Ok(editor)
}
