//! The student: the same model over packets, and how far it is from its teacher.
//!
//! Owns one forward over [preamble | wrapped documents | prompt + answer] at positions 0 … S−1:
//! each wrapped document stands behind the primer of its packet and sees that and itself; prompt and answer see
//! everything but the primer. Logits are made for the answer's tokens alone. The numbers are those of the serving path
//! over packets (the tests hold the two to each other). With a bridge nothing before the prompt learns, so that is a
//! forward over [prompt + answer] behind packets that are computed once (`adapter::behind`).

use std::rc::Rc;

use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};

use super::{Adapter, Desk, Parts, Taught};
use crate::error::Result;
use crate::packet::PacketKv;
use crate::taps::{Documents, Isolated, Mask, Pass};
use crate::tensor::{NoGrad, ids as id_tensor, int};
use crate::transformer::Transformer;

/// The model that studies, and what its packets are computed behind.
#[derive(Clone, Copy)]
pub struct Student<'a> {
    /// Studies under the weights that it has now.
    pub model: &'a Transformer,
    /// None where packets are computed alone.
    pub primer: Option<Primer<'a>>,
    /// Where what is computed of documents lies for the next lesson.
    pub desk: &'a Desk,
}

/// What packets are computed behind.
#[derive(Clone, Copy)]
pub struct Primer<'a> {
    /// Computed by the student's model.
    pub kv: &'a Rc<PacketKv>,
    /// Behind how many of its first tokens a document of these token ids stands.
    pub before: &'a dyn Fn(&[u32]) -> usize,
}

/// How far students are from their teachers, over the tokens of all answers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Measured {
    /// Σ KL(teacher ‖ student), nats.
    pub kl: f64,
    /// Tokens whose likeliest is the teacher's.
    pub agreeing: u64,
    /// Tokens in all.
    pub tokens: u64,
}

impl Measured {
    /// Mean KL over tokens, nats; 0 where nothing was measured.
    #[must_use]
    pub fn mean_kl(&self) -> f64 {
        self.kl / self.tokens.max(1) as f64
    }

    /// Share of tokens whose likeliest is the teacher's.
    #[must_use]
    pub fn agreement(&self) -> f64 {
        self.agreeing as f64 / self.tokens.max(1) as f64
    }

    /// Both together.
    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        Self {
            kl: self.kl + other.kl,
            agreeing: self.agreeing + other.agreeing,
            tokens: self.tokens + other.tokens,
        }
    }
}

impl Taught {
    /// The student's logits at the answer's tokens, f32 `[answer, V]`, with the documents in
    /// `adapter`, or as they stand. No gradients.
    ///
    /// # Errors
    /// An adapter of another width, a context that is too long, or libtorch's.
    pub fn student_logits(
        &self,
        student: Student<'_>,
        adapter: Option<&Adapter>,
    ) -> Result<Tensor> {
        let _guard = NoGrad::new();
        let Some(adapter) = adapter else {
            return self.row(student, None);
        };
        adapter.check_fits(student.model)?;
        let device = student.model.device();
        let parts = adapter.parts().map(|_, part| part.f_to_device(device))?;
        self.logits(student, &parts)
    }

    /// How far the student is from its teacher. No gradients.
    ///
    /// # Errors
    /// As [`Self::student_logits`].
    pub fn measure(&self, student: Student<'_>, adapter: Option<&Adapter>) -> Result<Measured> {
        let _guard = NoGrad::new();
        let logits = self.student_logits(student, adapter)?;
        let teacher = student.model.logits(&self.hidden)?;
        let kl = divergence(&teacher, &logits)?;
        let own = logits.f_argmax(-1, false)?;
        let agreeing = teacher.f_argmax(-1, false)?.f_eq_tensor(&own)?;
        let agreeing = agreeing.f_sum(Kind::Int64)?.f_int64_value(&[])?;
        Ok(Measured {
            kl: kl.f_sum(Kind::Double)?.f_double_value(&[])?,
            agreeing: u64::try_from(agreeing).unwrap_or(0),
            tokens: self.answer.len() as u64,
        })
    }

    /// KL(teacher ‖ student) in nats, the mean over the answer's tokens; differentiable in `parts`, which are
    /// of any float dtype on the model's device.
    pub(crate) fn loss(&self, student: Student<'_>, parts: &Parts) -> Result<Tensor> {
        let teacher = {
            let _guard = NoGrad::new();
            student.model.logits(&self.hidden)?
        };
        let own = self.logits(student, parts)?;
        Ok(divergence(&teacher, &own)?.f_mean(Kind::Float)?)
    }

    fn logits(&self, student: Student<'_>, parts: &Parts) -> Result<Tensor> {
        match parts {
            Parts::Soft { header, trailer } => self.row(student, Some((header, trailer))),
            Parts::Bridge(bridge) => self.logits_behind(student, bridge),
        }
    }

    /// From one row in which documents stand between `soft` tokens.
    fn row(&self, student: Student<'_>, soft: Option<(&Tensor, &Tensor)>) -> Result<Tensor> {
        let Student { model, primer, .. } = student;
        let lesson = &self.lesson;
        let mut pieces = vec![embed(model, &lesson.preamble)?];
        let mut tokens = lesson.preamble.len();
        let mut each = Vec::with_capacity(lesson.documents.len());
        for document in &lesson.documents {
            let ids = embed(model, document)?;
            let wrapped = match soft {
                None => vec![ids],
                Some((header, trailer)) => {
                    let [header, trailer] =
                        [header, trailer].map(|soft| soft.f_to_kind(model.kind()));
                    vec![header?, ids, trailer?]
                }
            };
            let start = tokens;
            for piece in wrapped {
                tokens += usize::try_from(piece.size2()?.0).unwrap_or(0);
                pieces.push(piece);
            }
            each.push(Isolated {
                tokens: start..tokens,
                primed: primer.map_or(0, |primer| (primer.before)(document)),
            });
        }
        pieces.push(embed(model, &self.prompt_and_answer())?);
        let embeddings = Tensor::f_cat(&pieces, 0)?.f_unsqueeze(0)?;
        let mut pass = Pass::new().with_mask(Mask::Documents(Documents {
            each,
            primer: primer.map(|primer| Rc::clone(primer.kv)),
        }));
        let hidden = model.forward_embeddings(&embeddings, &mut pass)?;
        self.answer_logits(model, &hidden)
    }

    /// Logits at the answer's tokens, from the hidden states `[1, S, d]` of a row that ends in what is read of it.
    pub(crate) fn answer_logits(&self, model: &Transformer, hidden: &Tensor) -> Result<Tensor> {
        let answer = int(self.answer.len());
        model.logits(&hidden.f_select(0, 0)?.f_narrow(0, -answer, answer)?)
    }
}

/// Input embeddings `[n, d]` of tokens; no gradients.
pub(crate) fn embed(model: &Transformer, ids: &[u32]) -> Result<Tensor> {
    let _guard = NoGrad::new();
    model.check_ids(ids)?;
    model.embed(&id_tensor(ids, model.device())?)
}

/// KL(p ‖ q) of each row, f32 `[rows]`, from logits f32 `[rows, V]`.
fn divergence(teacher: &Tensor, student: &Tensor) -> Result<Tensor> {
    let p = teacher.f_log_softmax(-1, Kind::Float)?;
    let q = student.f_log_softmax(-1, Kind::Float)?;
    let terms = p.f_exp()?.f_mul(&p.f_sub(&q)?)?;
    Ok(terms.f_sum_dim_intlist([-1_i64].as_slice(), false, Kind::Float)?)
}
