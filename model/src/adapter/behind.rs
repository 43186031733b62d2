//! What is computed of a lesson's documents, kept while the next lesson is about the same.
//!
//! Owns the teacher's context of preamble and documents, and the student's, in which each document is its packet. Both are
//! used up to the prompt by every lesson over these documents; an adapter's bridge leaves the student's as it is.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use tch::Tensor;

use super::student::{Student, embed};
use super::{Lesson, Taught};
use crate::error::Result;
use crate::kv::SequenceKv;
use crate::packet::PacketKv;
use crate::tensor::NoGrad;
use crate::transformer::{Input, Transformer};

/// Where the contexts of the last lesson's documents lie.
#[derive(Default)]
pub struct Desk {
    /// Names the weights that they were computed under.
    under: Cell<[u8; 32]>,
    teacher: Last<SequenceKv>,
    student: Last<Rc<PacketKv>>,
}

/// What was computed of the documents that the last lesson was about.
struct Last<T>(RefCell<Option<(Documents, T)>>);

/// Preamble and documents in tokens.
type Documents = (Vec<u32>, Vec<Vec<u32>>);

impl<T> Default for Last<T> {
    fn default() -> Self {
        Self(RefCell::default())
    }
}

impl<T> Last<T> {
    /// Takes what lies here away, and gives it where it is of the lesson's documents.
    fn take(&self, lesson: &Lesson) -> Option<T> {
        let (documents, computed) = self.0.take()?;
        lesson.is_about(&documents).then_some(computed)
    }

    fn put(&self, lesson: &Lesson, computed: T) {
        self.0.replace(Some((lesson.about(), computed)));
    }

    fn clear(&self) {
        self.0.take();
    }
}

impl Desk {
    /// Clears it where what lies there was computed under other weights than those that `revision` names.
    pub fn under(&self, revision: [u8; 32]) {
        if self.under.replace(revision) != revision {
            self.teacher.clear();
            self.student.clear();
        }
    }

    /// Lets go of the teacher's context, when the last lesson is taught.
    pub fn dismiss_teacher(&self) {
        self.teacher.clear();
    }

    /// A context of the lesson's preamble and documents under full attention.
    ///
    /// # Errors
    /// A lesson longer than the model's context, or libtorch's.
    pub(crate) fn full(&self, model: &Transformer, lesson: &Lesson) -> Result<SequenceKv> {
        let ids = lesson.beginning();
        if let Some(mut kv) = self.teacher.take(lesson) {
            kv.truncate(ids.len())?;
            return Ok(kv);
        }
        let mut kv = model.isolated_kv()?;
        if !ids.is_empty() {
            drop(model.forward(Input::Ids(&ids), &mut kv)?);
        }
        Ok(kv)
    }

    /// Takes back what [`Self::full`] gave, whatever has been computed behind it.
    pub(crate) fn keep_full(&self, lesson: &Lesson, kv: SequenceKv) {
        self.teacher.put(lesson, kv);
    }

    /// The context of a student without an adapter up to the prompt, as one packet whose keys stand at their places.
    ///
    /// # Errors
    /// As [`Self::full`].
    fn packets(&self, student: Student<'_>, lesson: &Lesson) -> Result<Rc<PacketKv>> {
        let context = match self.student.take(lesson) {
            Some(context) => context,
            None => Rc::new(packets(student, lesson)?),
        };
        self.student.put(lesson, Rc::clone(&context));
        Ok(context)
    }
}

/// A student's context without an adapter up to the prompt: preamble and packets, turned to their places.
fn packets(student: Student<'_>, lesson: &Lesson) -> Result<PacketKv> {
    let _guard = NoGrad::new();
    let Student { model, primer, .. } = student;
    let mut kv = model.isolated_kv()?;
    if !lesson.preamble.is_empty() {
        drop(model.forward(Input::Ids(&lesson.preamble), &mut kv)?);
    }
    for document in &lesson.documents {
        let mut alone = model.isolated_kv()?;
        if let Some(primer) = primer {
            let before = (primer.before)(document);
            alone.attach_part(Rc::clone(primer.kv), 0..before)?;
        }
        drop(model.forward(Input::Ids(document), &mut alone)?);
        let packet = model.packet(alone)?;
        model.attach_copy(&packet, packet.shape().tokens, &mut kv)?;
    }
    kv.into_packet()
}

impl std::fmt::Debug for Desk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Desk").finish_non_exhaustive()
    }
}

impl Lesson {
    /// Preamble and documents, all tokens in order.
    fn beginning(&self) -> Vec<u32> {
        let mut ids = self.preamble.clone();
        ids.extend(self.documents.iter().flatten());
        ids
    }

    fn about(&self) -> Documents {
        (self.preamble.clone(), self.documents.clone())
    }

    fn is_about(&self, (preamble, documents): &Documents) -> bool {
        (preamble, documents) == (&self.preamble, &self.documents)
    }
}

impl Taught {
    /// The student's logits at the answer's tokens, f32 `[answer, V]`, over packets without soft tokens and behind
    /// `bridge`, `[layers, 2, kv_heads, P, head_dim]` of any float dtype on the model's device; differentiable in that.
    ///
    /// # Errors
    /// A bridge for another model, a context that is too long, or libtorch's.
    pub(crate) fn logits_behind(&self, student: Student<'_>, bridge: &Tensor) -> Result<Tensor> {
        let model = student.model;
        let context = student.desk.packets(student, &self.lesson)?;
        let embeddings = embed(model, &self.prompt_and_answer())?;
        let hidden = model.forward_over(&embeddings.f_unsqueeze(0)?, &context, bridge)?;
        self.answer_logits(model, &hidden)
    }
}
