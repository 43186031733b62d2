//! Lessons: what an adapter learns from, and the teacher's part in them.
//!
//! Owns the layout [preamble | documents | question] and the teacher: the model itself under full
//! attention, whose greedy answer is the target. No labels. What is kept of the teacher are the
//! hidden states behind its logits: at the width of a model they are some hundred times smaller
//! than logits over a vocabulary, and give the same numbers.

use tch::Tensor;

use super::{Desk, file};
use crate::error::{Error, Result};
use crate::tensor::NoGrad;
use crate::transformer::{Input, Transformer};

/// What is asked, in tokens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lesson {
    /// Before the documents: the start of the chat template, BOS included. Not wrapped.
    pub preamble: Vec<u32>,
    /// The documents' tokens, each as its packet holds them.
    pub documents: Vec<Vec<u32>>,
    /// After the documents, to where the answer begins; at least one token.
    pub prompt: Vec<u32>,
}

impl Lesson {
    /// Tokens under full attention, the answer not counted.
    #[must_use]
    pub fn tokens(&self) -> usize {
        let documents: usize = self.documents.iter().map(Vec::len).sum();
        self.preamble.len() + documents + self.prompt.len()
    }
}

/// A lesson with its teacher's answer.
#[derive(Debug)]
pub struct Taught {
    /// What was asked.
    pub lesson: Lesson,
    /// The greedy answer, the token that ends the turn included where it came.
    pub answer: Vec<u32>,
    /// What the answer's tokens were chosen from: `[answer, d]` after the last norm, model's dtype.
    pub(crate) hidden: Tensor,
}

impl Taught {
    /// A lesson and the answer that was kept of it.
    ///
    /// # Errors
    /// Not one hidden state for each token of the answer.
    pub fn new(lesson: Lesson, answer: Vec<u32>, hidden: Tensor) -> Result<Self> {
        let (rows, _) = hidden.size2()?;
        if answer.is_empty() || usize::try_from(rows).ok() != Some(answer.len()) {
            return Err(Error::Invalid(format!(
                "an answer of {} tokens with {rows} hidden states",
                answer.len()
            )));
        }
        Ok(Self {
            lesson,
            answer,
            hidden,
        })
    }

    /// What the student reads behind the documents: the answer's last token is only ever an answer, never read.
    pub(crate) fn prompt_and_answer(&self) -> Vec<u32> {
        let read = self.answer.split_last().map_or(&[][..], |(_, read)| read);
        [&self.lesson.prompt[..], read].concat()
    }

    /// The teacher's hidden states, `[answer, d]`.
    pub fn hidden(&self) -> &Tensor {
        &self.hidden
    }

    /// Answer and hidden states as bytes; the lesson is not among them, for it can be made again.
    ///
    /// # Errors
    /// libtorch's.
    pub fn answer_bytes(&self) -> Result<Vec<u8>> {
        let ids: Vec<i64> = self.answer.iter().map(|&id| i64::from(id)).collect();
        let ids = Tensor::f_from_slice(&ids)?;
        file::write(
            &[("answer", &ids), ("hidden", &self.hidden)],
            Default::default(),
        )
    }

    /// `lesson` with the answer that [`Self::answer_bytes`] kept, for a model that computes like `model`.
    ///
    /// # Errors
    /// Bytes that are damaged, or another model's.
    pub fn from_answer_bytes(lesson: Lesson, bytes: &[u8], model: &Transformer) -> Result<Self> {
        let (tensors, _) = file::read(bytes)?;
        let ids = tensors.tensor("answer").map_err(file::damaged)?;
        let hidden = tensors.tensor("hidden").map_err(file::damaged)?;
        let width = model.config().hidden_size;
        let size = crate::tensor::element_size(model.kind())?;
        let fits = ids.dtype() == safetensors::Dtype::I64
            && hidden.dtype().bitsize() == 8 * size
            && hidden.shape().len() == 2
            && hidden.shape().get(1) == Some(&width);
        if !fits {
            return Err(file::refused(
                "a teacher's answer of another model".to_owned(),
            ));
        }
        let answer = Vec::<i64>::try_from(file::tensor(&ids, tch::Kind::Int64)?)?;
        let answer = answer
            .into_iter()
            .map(|id| u32::try_from(id).unwrap_or(u32::MAX))
            .collect::<Vec<u32>>();
        model.check_ids(&answer)?;
        let hidden = file::tensor(&hidden, model.kind())?.f_to_device(model.device())?;
        Self::new(lesson, answer, hidden)
    }
}

/// Lets the model answer under full attention, greedily, at most `most` tokens long and up to
/// where `is_over` says that the tokens so far are the whole answer. What it computes of the documents it leaves on the desk.
///
/// # Errors
/// An empty prompt, a lesson longer than the context, or libtorch's.
pub fn teach(
    (model, desk): (&Transformer, &Desk),
    lesson: Lesson,
    most: usize,
    is_over: impl Fn(&[u32]) -> bool,
) -> Result<Taught> {
    let _guard = NoGrad::new();
    if lesson.prompt.is_empty() || most == 0 {
        return Err(Error::Invalid(
            "a lesson needs a prompt, and an answer of at least one token".to_owned(),
        ));
    }
    let mut kv = desk.full(model, &lesson)?;
    let mut states = model.forward(Input::Ids(&lesson.prompt), &mut kv)?;
    let (mut answer, mut hidden) = (Vec::new(), Vec::new());
    loop {
        let last = states.f_narrow(0, -1, 1)?;
        let id = model.logits(&last)?.f_argmax(-1, false)?;
        let id = u32::try_from(id.f_int64_value(&[0])?).unwrap_or(0);
        answer.push(id);
        hidden.push(last.copy());
        if is_over(&answer) || answer.len() >= most {
            break;
        }
        states = model.decode(&[id], &mut [&mut kv])?;
    }
    desk.keep_full(&lesson, kv);
    let hidden = Tensor::f_cat(&hidden, 0)?;
    Taught::new(lesson, answer, hidden)
}
