//! The second moment of the keys, `C = Σ k kᵀ / n` per layer, measured from text and kept on disk.
//!
//! Keys at position 0 are left out: they are massive and alike for every text, and would rule C. A stored moment is
//! addressed by what it was measured from (weights, dtype, layer, text, sample), so it is never used for anything
//! else and never measured twice; its numbers carry a digest that is checked on reading.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use addenda_model::tensor::NoGrad;
use addenda_model::tokenizer::Tokenizer;
use addenda_model::{Action, Overlay, Pass, Site, Tap, Transformer};
use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use serde::{Deserialize, Serialize};
use tch::{Device, Kind, Tensor};

use crate::corpus::Corpus;
use crate::digest::{Canonical, as_hex, hex};
use crate::error::{Error, Result};
use crate::kept::Kept;
use crate::pace::{Pace, Phase, Progress};
use crate::rows::{doubles, floats, index, padded};
use crate::settings::MomentSettings;

const TENSOR: &str = "second_moment";
const FORMAT: &str = "addenda second moment 1";

/// C of one layer.
#[derive(Debug)]
pub(crate) struct Moment {
    /// f32 `[f, f]` on the CPU.
    pub(crate) c: Tensor,
    /// Keys that it is the mean over.
    pub(crate) tokens: u64,
}

/// What a moment is measured on, whatever the model.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct MomentSpec {
    #[serde(with = "as_hex")]
    pub(crate) corpus: [u8; 32],
    pub(crate) tokens: usize,
    pub(crate) window: usize,
}

impl MomentSpec {
    pub(crate) fn new(corpus: &Corpus, settings: &MomentSettings) -> Self {
        Self {
            corpus: corpus.digest(),
            tokens: settings.tokens,
            window: settings.window,
        }
    }

    pub(crate) fn digest(&self) -> [u8; 32] {
        let mut canonical = Canonical::new("addenda 2026-01 moment sample");
        canonical
            .bytes(&self.corpus)
            .number(self.tokens as u64)
            .number(self.window as u64);
        canonical.finish()
    }
}

/// Moments on disk, one safetensors file each.
#[derive(Debug)]
pub(crate) struct MomentStore {
    dir: PathBuf,
    fingerprint: [u8; 32],
}

impl MomentStore {
    /// The folder is made when the first moment is kept.
    pub(crate) fn new(dir: &Path, fingerprint: [u8; 32]) -> Self {
        Self {
            dir: dir.to_path_buf(),
            fingerprint,
        }
    }

    /// What a layer's moment is measured from.
    fn address(&self, kind: Kind, layer: usize, spec: &MomentSpec) -> [u8; 32] {
        let mut canonical = Canonical::new("addenda 2026-01 moment address");
        canonical
            .bytes(&self.fingerprint)
            .text(&format!("{kind:?}"))
            .number(layer as u64)
            .bytes(&spec.digest());
        canonical.finish()
    }

    fn path(&self, kind: Kind, layer: usize, spec: &MomentSpec) -> PathBuf {
        let address = hex(&self.address(kind, layer, spec));
        self.dir.join(format!("{address}.safetensors"))
    }

    /// Where a measurement that was broken off is kept, until it is done.
    pub(crate) fn partial(
        &self,
        kind: Kind,
        layers: &[usize],
        (spec, batch): (&MomentSpec, usize),
    ) -> PathBuf {
        let mut canonical = Canonical::new("addenda 2026-01 partial moment address");
        canonical
            .bytes(&self.fingerprint)
            .text(&format!("{kind:?}"))
            .bytes(&spec.digest())
            .number(batch as u64);
        for layer in layers {
            canonical.number(*layer as u64);
        }
        let name = format!("{}.partial.safetensors", hex(&canonical.finish()));
        self.dir.join(name)
    }

    /// Where the null-space projection of a layer is kept; `share` in thousandths.
    pub(crate) fn projection(
        &self,
        kind: Kind,
        layer: usize,
        (spec, share): (&MomentSpec, u32),
    ) -> PathBuf {
        let mut canonical = Canonical::new("addenda 2026-01 projection address");
        canonical
            .bytes(&self.address(kind, layer, spec))
            .number(u64::from(share));
        let name = format!("{}.projection.safetensors", hex(&canonical.finish()));
        self.dir.join(name)
    }

    pub(crate) fn contains(&self, kind: Kind, layer: usize, spec: &MomentSpec) -> bool {
        self.path(kind, layer, spec).is_file()
    }

    /// The stored moment; none if it was never measured.
    pub(crate) fn load(
        &self,
        kind: Kind,
        layer: usize,
        spec: &MomentSpec,
        width: usize,
    ) -> Result<Option<Moment>> {
        let path = self.path(kind, layer, spec);
        let bytes = match std::fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(Error::io("read the second moment", &path)(error)),
        };
        parse(&bytes, width)
            .map(Some)
            .map_err(|problem| Error::DamagedMoment { path, problem })
    }

    /// Keeps it; durable when this returns, and never seen half written.
    pub(crate) fn save(
        &self,
        kind: Kind,
        layer: usize,
        spec: &MomentSpec,
        moment: &Moment,
    ) -> Result<()> {
        let path = self.path(kind, layer, spec);
        std::fs::create_dir_all(&self.dir).map_err(Error::io("make the folder", &self.dir))?;
        let numbers: Vec<u8> = floats(&moment.c)
            .map_err(Error::torch("reading the second moment"))?
            .iter()
            .flat_map(|number| number.to_le_bytes())
            .collect();
        let about = HashMap::from([
            ("format".to_owned(), FORMAT.to_owned()),
            ("weights".to_owned(), hex(&self.fingerprint)),
            ("layer".to_owned(), layer.to_string()),
            ("corpus".to_owned(), hex(&spec.corpus)),
            ("tokens".to_owned(), moment.tokens.to_string()),
            (
                "digest".to_owned(),
                hex(&numbers_digest(&numbers, moment.tokens)),
            ),
        ]);
        let shape = moment
            .c
            .size()
            .iter()
            .map(|size| usize::try_from(*size).unwrap_or(0))
            .collect();
        let bytes = TensorView::new(Dtype::F32, shape, &numbers)
            .and_then(|view| safetensors::serialize([(TENSOR, view)], Some(about)))
            .map_err(|error| Error::DamagedMoment {
                path: path.clone(),
                problem: error.to_string(),
            })?;
        write_durably(&self.dir, &path, &bytes).map_err(Error::io("write the second moment", &path))
    }
}

fn numbers_digest(numbers: &[u8], tokens: u64) -> [u8; 32] {
    let mut canonical = Canonical::new("addenda 2026-01 moment numbers");
    canonical.number(tokens).bytes(numbers);
    canonical.finish()
}

pub(crate) fn write_durably(dir: &Path, path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let partial = path.with_extension(format!("partial-{}", std::process::id()));
    let mut file = File::create(&partial)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    std::fs::rename(&partial, path)?;
    File::open(dir)?.sync_all()
}

fn parse(bytes: &[u8], width: usize) -> std::result::Result<Moment, String> {
    let (_, header) = SafeTensors::read_metadata(bytes).map_err(|error| error.to_string())?;
    let about = header.metadata().as_ref().ok_or("it has no metadata")?;
    let field = |name: &str| about.get(name).ok_or(format!("its metadata lack {name:?}"));
    if field("format")? != FORMAT {
        return Err(format!("its format is {:?}", field("format")?));
    }
    let tokens: u64 = field("tokens")?
        .parse()
        .map_err(|_| "its token count is no number".to_owned())?;
    let file = SafeTensors::deserialize(bytes).map_err(|error| error.to_string())?;
    let view = file.tensor(TENSOR).map_err(|error| error.to_string())?;
    if view.dtype() != Dtype::F32 || view.shape() != [width, width] {
        return Err(format!(
            "it is {:?} {:?} instead of F32 [{width}, {width}]",
            view.dtype(),
            view.shape()
        ));
    }
    if field("digest")? != &hex(&numbers_digest(view.data(), tokens)) {
        return Err("its digest does not match".to_owned());
    }
    // The view's length is checked against its shape by safetensors.
    let c = Tensor::f_from_data_size(view.data(), &[index(width), index(width)], Kind::Float)
        .map_err(|error| error.to_string())?;
    Ok(Moment { c, tokens })
}

/// How much work a crash may cost: sums are kept that often. Where the work is asked to stop they are kept at once.
const KEPT_EVERY: Duration = Duration::from_secs(60);

/// Measures C of the given layers on the base weights, going on where an earlier measurement was broken off.
///
/// Runs the layers up to the last one named, over windows of the text. Sums in f64; broken off or not, they are the same
/// to the bit, since a batch is summed whole.
pub(crate) fn measure(
    (model, tokenizer): (&Transformer, &Tokenizer),
    (corpus, settings): (&Corpus, &MomentSettings),
    layers: &[usize],
    partial: &Path,
    pace: &mut Pace<'_>,
) -> Result<BTreeMap<usize, Moment>> {
    let windows = windows(tokenizer, corpus, settings)?;
    let total = (windows.len() * settings.window) as u64;
    let top = layers.iter().copied().max().unwrap_or(0);
    let base = Overlay::base();
    let Sums {
        mut sums,
        mut keys,
        batches,
    } = Sums::load(partial, layers);
    let mut done = (batches * settings.batch * settings.window) as u64;
    let mut kept = Instant::now();
    for (number, batch) in windows.chunks(settings.batch).enumerate().skip(batches) {
        let paced = pace(Progress {
            phase: Phase::Moment,
            done,
            total,
        });
        if (paced.is_err() && number > batches) || kept.elapsed() >= KEPT_EVERY {
            Sums::save(partial, &sums, keys, number)?;
            kept = Instant::now();
        }
        paced?;
        let _no_grad = NoGrad::new();
        let at: Vec<(i64, i64)> = (0..index(batch.len()))
            .flat_map(|row| (1..index(settings.window)).map(move |token| (row, token)))
            .collect();
        let taps: Vec<Tap> = layers
            .iter()
            .map(|layer| Tap {
                layer: *layer,
                site: Site::MlpKey,
                at: at.clone(),
                action: Action::Read,
            })
            .collect();
        let mut pass = Pass::new().under(&base).with_taps(&taps);
        drop(model.forward_to(top, &padded(batch, model)?, &mut pass)?);
        for (layer, read) in layers.iter().zip(&pass.reads) {
            let read = read
                .as_ref()
                .ok_or_else(|| Error::Unsupported(format!("layer {layer} gave no keys")))?;
            add_outer(&mut sums, *layer, read)
                .map_err(Error::torch("summing the second moment"))?;
        }
        keys += at.len() as u64;
        done += (batch.len() * settings.window) as u64;
    }
    sums.into_iter()
        .map(|(layer, sum)| {
            let c = (sum / keys as f64)
                .f_to_kind(Kind::Float)
                .map_err(Error::torch("rounding the second moment"))?;
            Ok((layer, Moment { c, tokens: keys }))
        })
        .collect()
}

/// What was summed before the measurement was broken off.
#[derive(Default)]
struct Sums {
    /// Σ k kᵀ by layer, f64.
    sums: BTreeMap<usize, Tensor>,
    keys: u64,
    /// Batches that are in it.
    batches: usize,
}

impl Sums {
    fn save(path: &Path, sums: &BTreeMap<usize, Tensor>, keys: u64, batches: usize) -> Result<()> {
        let matrices = sums
            .iter()
            .map(|(layer, sum)| (layer.to_string(), sum.shallow_clone()));
        let kept = Kept {
            matrices: matrices.collect(),
            about: HashMap::from([
                ("keys".to_owned(), keys.to_string()),
                ("batches".to_owned(), batches.to_string()),
            ]),
        };
        kept.save(path)
    }

    /// Nothing where there is nothing that can be gone on from: then the measurement begins anew.
    fn load(path: &Path, layers: &[usize]) -> Self {
        let kept = Kept::load(path).unwrap_or_else(|error| {
            tracing::warn!(%error, "the second moment is measured from the beginning");
            None
        });
        let read = || {
            let kept = kept?;
            let matrices = kept
                .matrices
                .iter()
                .map(|(name, sum)| Some((name.parse::<usize>().ok()?, sum.shallow_clone())));
            let sums: BTreeMap<usize, Tensor> = matrices.collect::<Option<_>>()?;
            sums.keys().eq(layers).then_some(Self {
                keys: kept.number("keys")?,
                batches: kept.number("batches")?,
                sums,
            })
        };
        read().unwrap_or_default()
    }
}

/// Adds Σ k kᵀ of `keys` `[n, f]`: the products of a batch in f32, the sum of batches in f64.
fn add_outer(
    sums: &mut BTreeMap<usize, Tensor>,
    layer: usize,
    keys: &Tensor,
) -> std::result::Result<(), tch::TchError> {
    let keys = keys.f_to_kind(Kind::Float)?;
    let outer = doubles(&keys.f_tr()?.f_matmul(&keys)?)?;
    match sums.get_mut(&layer) {
        Some(sum) => {
            *sum = sum.f_add(&outer)?;
        }
        None => {
            sums.insert(layer, outer.f_to_device(Device::Cpu)?);
        }
    }
    Ok(())
}

/// Whole windows of the text, each begun by what starts a text.
fn windows(
    tokenizer: &Tokenizer,
    corpus: &Corpus,
    settings: &MomentSettings,
) -> Result<Vec<Vec<u32>>> {
    let mut tokens = Vec::new();
    for paragraph in corpus.paragraphs() {
        tokens.extend(tokenizer.encode(paragraph)?.ids);
        if tokens.len() >= settings.tokens {
            tokens.truncate(settings.tokens);
            break;
        }
    }
    let start = tokenizer.text_start();
    let body = settings.window - usize::from(start.is_some());
    let windows: Vec<Vec<u32>> = tokens
        .chunks_exact(body)
        .map(|chunk| start.iter().chain(chunk).copied().collect())
        .collect();
    if windows.is_empty() {
        let problem = format!(
            "is too short: {} tokens, and a window has {body}; give a longer text",
            tokens.len()
        );
        return Err(Error::BadSetting {
            setting: "moment text".to_owned(),
            problem,
        });
    }
    Ok(windows)
}

#[cfg(test)]
mod tests {
    #![expect(
        clippy::unwrap_used,
        clippy::indexing_slicing,
        reason = "a test may fail loudly"
    )]

    use tch::{Kind, Tensor};

    use std::collections::BTreeMap;

    use super::{Moment, MomentSpec, MomentStore, Sums};
    use crate::error::Error;

    fn spec(tokens: usize) -> MomentSpec {
        MomentSpec {
            corpus: [3; 32],
            tokens,
            window: 16,
        }
    }

    #[test]
    fn a_kept_moment_comes_back_for_what_it_was_measured_from_and_for_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let store = MomentStore::new(dir.path(), [1; 32]);
        let moment = Moment {
            c: Tensor::rand([4, 4], (Kind::Float, tch::Device::Cpu)),
            tokens: 90,
        };
        store.save(Kind::Float, 2, &spec(100), &moment).unwrap();
        let again = store.load(Kind::Float, 2, &spec(100), 4).unwrap().unwrap();
        assert_eq!((again.c, again.tokens), (moment.c, 90));
        assert!(store.load(Kind::Float, 3, &spec(100), 4).unwrap().is_none());
        assert!(
            store
                .load(Kind::BFloat16, 2, &spec(100), 4)
                .unwrap()
                .is_none()
        );
        assert!(store.load(Kind::Float, 2, &spec(101), 4).unwrap().is_none());
        assert!(
            MomentStore::new(dir.path(), [2; 32])
                .load(Kind::Float, 2, &spec(100), 4)
                .unwrap()
                .is_none()
        );
    }

    #[test]
    fn sums_of_a_broken_measurement_are_gone_on_with_for_the_same_layers_only() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("some.partial.safetensors");
        let sum = Tensor::rand([3, 3], (Kind::Double, tch::Device::Cpu));
        let sums = BTreeMap::from([(2, sum.shallow_clone()), (11, sum.shallow_clone() * 2.0)]);
        Sums::save(&path, &sums, 90, 7).unwrap();
        let again = Sums::load(&path, &[2, 11]);
        assert_eq!((again.keys, again.batches), (90, 7));
        assert_eq!(again.sums[&2], sum);
        assert_eq!(Sums::load(&path, &[2]).batches, 0);
        let mut bytes = std::fs::read(&path).unwrap();
        let last = bytes.len() - 1;
        bytes[last] ^= 1;
        std::fs::write(&path, &bytes).unwrap();
        assert_eq!(Sums::load(&path, &[2, 11]).batches, 0);
    }

    #[test]
    fn a_damaged_moment_is_refused_and_named() {
        let dir = tempfile::tempdir().unwrap();
        let store = MomentStore::new(dir.path(), [1; 32]);
        let moment = Moment {
            c: Tensor::rand([4, 4], (Kind::Float, tch::Device::Cpu)),
            tokens: 90,
        };
        store.save(Kind::Float, 2, &spec(100), &moment).unwrap();
        let path = std::fs::read_dir(dir.path())
            .unwrap()
            .next()
            .unwrap()
            .unwrap()
            .path();
        let mut bytes = std::fs::read(&path).unwrap();
        let last = bytes.len() - 1;
        bytes[last] ^= 1;
        std::fs::write(&path, &bytes).unwrap();
        let error = store.load(Kind::Float, 2, &spec(100), 4).unwrap_err();
        assert!(
            matches!(&error, Error::DamagedMoment { problem, .. } if problem.contains("digest")),
            "{error}"
        );
        std::fs::write(&path, &bytes[..40]).unwrap();
        assert!(matches!(
            store.load(Kind::Float, 2, &spec(100), 4),
            Err(Error::DamagedMoment { .. })
        ));
    }
}
