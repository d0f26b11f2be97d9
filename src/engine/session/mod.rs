//! A conversation: what was pushed, what was said, and where it lies in the KV cache.
//!
//! In reading order: this file, `saved` (sessions that fork, and that go into files and come back).

mod saved;

use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::engine::cache::SessionState;
use crate::engine::cancel::Cancel;
use crate::engine::context_shift::{ContextShift, Forgotten, leaving};
use crate::engine::conversation::{Advance, Conversation};
use crate::engine::jobs::{Job, JobOutput, Work};
use crate::engine::open::required_tokenizer;
use crate::engine::resident::Resident;
use crate::error::{Error, Result};
use crate::files::Image;
use crate::files::chat_template::Message;
use crate::files::chat_template::thoughts::ThoughtSplitter;
use crate::ops::{Row, TOKEN_IMAGE};

/// A conversation with a model. Dropping it frees its part of the KV cache.
///
/// Push images, then text; generate; push more text; generate again. EmberNet reads all images before all text, so an
/// image cannot follow text.
#[derive(Debug)]
pub struct Session {
    pub(crate) engine: Arc<Resident>,
    state: SessionState,
    /// Tokens whose keys and values are in the cache.
    cached: usize,
    /// Vectors of the images, `[n, d]`, and how many rows they are.
    image: Vec<f32>,
    image_rows: usize,
    /// At the model's size.
    pictures: Vec<Arc<Image>>,
    /// Text tokens pushed or generated, in order, but for those that have left.
    tokens: Vec<u32>,
    forgotten: Forgotten,
    shift: Option<ContextShift>,
    /// How each of them goes into a row: prompt tokens beside an image are clamped.
    row_tokens: Vec<u32>,
    image_time: Duration,
    /// What was said in messages.
    conversation: Conversation,
    /// The number of tokens behind which an answer to a message begins.
    answer_at: Option<usize>,
    cancel: Option<Cancel>,
}

/// An image as the model reads it, before it belongs to a session.
#[derive(Debug)]
struct Encoded {
    /// At the model's size.
    picture: Arc<Image>,
    /// `[rows, d]`.
    vectors: Vec<f32>,
    rows: usize,
    time: Duration,
}

impl Session {
    pub(crate) fn new(engine: Arc<Resident>) -> Result<Self> {
        Ok(Session {
            state: engine.states.take()?,
            engine,
            cached: 0,
            image: Vec::new(),
            image_rows: 0,
            pictures: Vec::new(),
            tokens: Vec::new(),
            forgotten: Forgotten::default(),
            shift: None,
            row_tokens: Vec::new(),
            image_time: Duration::ZERO,
            conversation: Conversation::default(),
            answer_at: None,
            cancel: None,
        })
    }

    /// Encodes an image and puts it behind the images pushed so far. Streams of other sessions go on meanwhile.
    ///
    /// # Errors
    /// [`Error::Argument`] after text was pushed, [`Error::Unsupported`] for a model without vision,
    /// [`Error::ContextFull`] if the context is full, [`Error::Cancelled`] ([`Session::cancel_with`]).
    pub fn push_image(&mut self, image: &Image) -> Result<()> {
        if !self.tokens.is_empty() {
            return Err(Error::argument(
                "image",
                "cannot follow text: the model reads images first; reset the session",
            ));
        }
        let encoded = self.encode(image, self.len())?;
        self.hold(encoded);
        Ok(())
    }

    /// Begins a new conversation about one image, as [`Session::reset`] and [`Session::push_image`] do; with an error
    /// the session stays as it was.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for a model without vision, [`Error::ContextFull`] if the context is too small for an image.
    pub fn reset_to_image(&mut self, image: &Image) -> Result<()> {
        let encoded = self.encode(image, 0)?;
        self.reset();
        self.hold(encoded);
        Ok(())
    }

    /// Encodes an image that is to lie behind `used` tokens.
    fn encode(&self, image: &Image, used: usize) -> Result<Encoded> {
        let start = Instant::now();
        let info = self.engine.image_info()?;
        self.check_room(used, info.tokens)?;
        self.check_cancelled("the image")?;
        let image = image.resized(info.size)?;
        let vectors = self.engine.encode_image(&image, self.cancel.clone())?;
        Ok(Encoded { picture: Arc::new(image), vectors, rows: info.tokens, time: start.elapsed() })
    }

    /// Puts an encoded image behind those before it.
    fn hold(&mut self, encoded: Encoded) {
        let Encoded { picture, vectors, rows, time } = encoded;
        self.image.extend(vectors);
        self.image_rows += rows;
        self.pictures.push(picture);
        self.image_time += time;
    }

    /// Pushes text as it is, with the tokenizer's special tokens if it is the first.
    ///
    /// # Errors
    /// [`Error::Argument`] without a tokenizer, [`Error::ContextFull`] if the context is full.
    pub fn push_text(&mut self, text: &str) -> Result<()> {
        let tokenizer = required_tokenizer(self.engine.tokenizer.as_ref())?;
        tokenizer.check_text(text, self.state.context())?;
        let ids = tokenizer.encode(text, self.tokens.is_empty())?;
        self.push_tokens(&ids)
    }

    /// Pushes a question, as a message of the user.
    ///
    /// # Errors
    /// As [`Session::push_message`].
    pub fn push_question(&mut self, question: &str) -> Result<()> {
        self.push_message("user", question)
    }

    /// Pushes a message of the conversation, in the form that the model was trained with: its chat template, or the
    /// family's own. Roles are `user`, `system`, `assistant` and those that the template knows.
    ///
    /// What was generated since the last message is the answer to it. A template may write earlier messages in another way
    /// once more follow (without the thoughts of an answer): tokens from the first that differs on run again. With an error
    /// the session stays as it was.
    ///
    /// # Errors
    /// [`Error::Argument`] without a tokenizer, for a role or an order of roles that the form rejects, and behind text that
    /// was pushed as it is; [`Error::Format`] for a template that fails; [`Error::ContextFull`] if the context is full.
    pub fn push_message(&mut self, role: &str, text: &str) -> Result<()> {
        let engine = self.engine.clone();
        let tokenizer = required_tokenizer(engine.tokenizer.as_ref())?;
        let no_form = || Error::argument("message", "has no form without the model's own tokenizer");
        let opened = engine.prompt.as_ref().ok_or_else(no_form)?;
        tokenizer.check_text(text, self.state.context())?;
        let (message, with_image) = (Message::new(role, text), !self.pictures.is_empty());
        let all = self.forgotten.whole(&self.tokens);
        let advance = self.conversation.with(message, &all, with_image, &opened.prompt, tokenizer)?;
        let new = if self.shifts() { tokenizer.encode(text, false)?.len() } else { 0 };
        self.change_to(all, advance, new)?;
        self.answer_at = Some(self.tokens.len());
        Ok(())
    }

    /// Makes the session one of other tokens than `all` that it has, the last `new` of which stay.
    fn change_to(&mut self, mut all: Vec<u32>, advance: Advance, new: usize) -> Result<()> {
        let Advance { conversation, keep, ids } = advance;
        self.check_tokens(&ids)?;
        all.truncate(keep);
        all.extend(ids);
        let gap = self.gap(conversation.opening, all.len(), new)?;
        let forgotten = Forgotten { at: gap.start, tokens: all.drain(gap).collect() };
        let same = self.tokens.iter().zip(&all).take_while(|(a, b)| a == b).count();
        self.cut(same);
        self.extend(&all[same..]);
        (self.conversation, self.forgotten, self.answer_at) = (conversation, forgotten, None);
        Ok(())
    }

    /// Takes the last message of the user back, with what followed it: the conversation is as it was before, written as
    /// its form writes it. False where there is none; with an error the session stays as it was.
    ///
    /// # Errors
    /// Those of the chat template.
    pub fn undo(&mut self) -> Result<bool> {
        let engine = self.engine.clone();
        let (Some(tokenizer), Some(opened)) = (engine.tokenizer.as_ref(), engine.prompt.as_ref()) else {
            return Ok(false);
        };
        let all = self.forgotten.whole(&self.tokens);
        match self.conversation.without_last(&all, &opened.prompt, tokenizer)? {
            Some(advance) => self.change_to(all, advance, 0).map(|()| true),
            None => Ok(false),
        }
    }

    /// Takes the answer to the last message back, so that another one can be generated. False where there is no message that
    /// is answered, or its beginning has left the context.
    pub fn undo_answer(&mut self) -> bool {
        let answer = self.answer_at.filter(|&at| at < self.tokens.len());
        answer.map(|at| self.cut(at)).is_some()
    }

    /// Whether, and how, tokens leave when the context is full, so that pushing and generating go on; at first they do not,
    /// and what does not fit is an error.
    pub fn shift_context(&mut self, shift: Option<ContextShift>) {
        self.shift = shift;
    }

    /// How many text tokens have left, since the context was full.
    pub fn forgotten(&self) -> usize {
        self.forgotten.tokens.len()
    }

    /// Whether tokens leave when the context is full.
    pub(crate) fn shifts(&self) -> bool {
        self.shift.is_some()
    }

    /// Which of `all` tokens of a text are outside of the context: those that have left, and more if there are too many.
    /// Its first message has `opening` tokens, and the last `new` stay.
    fn gap(&self, opening: usize, all: usize, new: usize) -> Result<Range<usize>> {
        let keep = self.shift.and_then(|shift| shift.keep).unwrap_or(opening.max(1));
        let at = if self.forgotten() > 0 { self.forgotten.at } else { keep }.min(all);
        let new = new.min(all - at);
        let gone = self.forgotten().min(all - at - new);
        let room = self.state.context().saturating_sub(self.image_rows);
        if !self.shifts() {
            self.check_room(self.image_rows, all - gone)?;
        }
        match leaving(all - gone, room, at, new) {
            Some(more) => Ok(at..at + gone + more),
            None => self.check_room(self.image_rows + at, new).map(|()| at..at + gone),
        }
    }

    /// Makes room for `n` more tokens; how many leave for it.
    fn make_room_for(&mut self, n: usize, new: usize) -> Result<usize> {
        let gone = self.forgotten();
        let gap = self.gap(self.conversation.opening, gone + self.tokens.len() + n, new)?;
        let (at, more) = (gap.start, gap.len().saturating_sub(gone));
        if more > 0 {
            self.row_tokens.drain(at..at + more);
            self.forgotten.at = at;
            self.forgotten.tokens.extend(self.tokens.drain(at..at + more));
            self.cached = self.cached.min(self.image_rows + at);
            self.answer_at = self.answer_at.filter(|&answer| answer >= at + more).map(|answer| answer - more);
        }
        Ok(more)
    }

    /// Makes room for the next token where the context is full and shifts; how many tokens leave for it.
    ///
    /// # Errors
    /// [`Error::ContextFull`] if what has to stay leaves none.
    pub(crate) fn make_room(&mut self) -> Result<usize> {
        // The last token is the one that the next is chosen after.
        if self.shifts() && self.room() == 0 { self.make_room_for(1, 2) } else { Ok(0) }
    }

    /// Lets this handle end what the session does: an image is then an error and the session stays as it was; a generation
    /// ends with [`StopReason::Cancelled`](crate::engine::StopReason), in its prompt too, which runs again when the next begins.
    pub fn cancel_with(&mut self, cancel: Cancel) {
        self.cancel = Some(cancel);
    }

    /// Whether the session's handle has ended what it does.
    pub(crate) fn is_cancelled(&self) -> bool {
        Cancel::has_ended(&self.cancel)
    }

    /// [`Error::Cancelled`] for `what` if so.
    pub(crate) fn check_cancelled(&self, what: &str) -> Result<()> {
        self.cancel.as_ref().map_or(Ok(()), |cancel| cancel.check(what))
    }

    /// Whether the next token is the first of the answer to a message.
    pub(crate) fn begins_answer(&self) -> bool {
        self.answer_at == Some(self.tokens.len())
    }

    /// Whether a model that can think before it answers is to do so; none, as at first, leaves it to its template.
    pub fn enable_thinking(&mut self, enable: Option<bool>) {
        self.conversation.enable_thinking = enable;
    }

    /// What tells a thought from an answer in the text that is generated next; none for a model without thoughts.
    pub fn thought_splitter(&self) -> Option<ThoughtSplitter> {
        self.conversation.thought_splitter(&self.engine.prompt.as_ref()?.prompt)
    }

    /// Pushes tokens by number.
    ///
    /// # Errors
    /// [`Error::Argument`] for a token outside the vocabulary, [`Error::ContextFull`] if the context is full.
    pub fn push_tokens(&mut self, ids: &[u32]) -> Result<()> {
        self.check_tokens(ids)?;
        self.make_room_for(ids.len(), ids.len())?;
        self.extend(ids);
        self.answer_at = None;
        Ok(())
    }

    /// Puts tokens behind those before them.
    fn extend(&mut self, ids: &[u32]) {
        let with_image = !self.pictures.is_empty();
        self.tokens.extend(ids);
        self.row_tokens.extend(ids.iter().map(|&id| self.engine.model.prompt_token(id, with_image)));
    }

    /// Rejects tokens that the model does not have.
    fn check_tokens(&self, ids: &[u32]) -> Result<()> {
        let vocab = self.engine.model.info().vocab;
        match ids.iter().find(|&&id| id as usize >= vocab) {
            None => Ok(()),
            Some(id) => Err(Error::argument("token", format!("{id} is outside the vocabulary of {vocab}"))),
        }
    }

    /// Whether `n` tokens fit behind `used` ones.
    fn check_room(&self, used: usize, n: usize) -> Result<()> {
        let context = self.state.context();
        if used + n <= context {
            return Ok(());
        }
        Err(Error::ContextFull { what: "the session".into(), needed: (used + n) as u64, available: context as u64 })
    }

    /// Tokens so far: image rows, pushed text, generated text.
    pub fn len(&self) -> usize {
        self.image_rows + self.tokens.len()
    }

    /// Whether nothing was pushed.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Tokens that still fit.
    pub fn room(&self) -> usize {
        self.state.context() - self.len()
    }

    /// Text tokens pushed and generated, but for those that have left: what a session on another engine needs to go on from
    /// here.
    pub fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    /// Time spent encoding images.
    pub fn image_time(&self) -> Duration {
        self.image_time
    }

    /// Forgets the text; image vectors stay, and are not encoded again.
    pub fn reset_text(&mut self) {
        self.tokens.clear();
        self.forgotten.clear();
        self.row_tokens.clear();
        self.conversation.clear();
        self.answer_at = None;
        // Nothing before them changes the keys and values of the images.
        self.cached = self.cached.min(self.image_rows);
    }

    /// Forgets the text and the images.
    pub fn reset(&mut self) {
        self.reset_text();
        self.cached = 0;
        self.image.clear();
        self.pictures.clear();
        (self.image_rows, self.image_time) = (0, Duration::ZERO);
    }

    /// Forgets the text behind its first `tokens` tokens, with the messages that ended there; what stays is not run again.
    pub fn truncate(&mut self, tokens: usize) {
        self.conversation.truncate(self.forgotten.place(tokens));
        if tokens <= self.forgotten.at {
            self.forgotten.clear();
        }
        self.cut(tokens);
    }

    /// Keeps the first `tokens` tokens of the text.
    fn cut(&mut self, tokens: usize) {
        self.tokens.truncate(tokens);
        self.row_tokens.truncate(tokens);
        self.cached = self.cached.min(self.len());
    }

    /// How many pictures were pushed.
    pub fn images(&self) -> usize {
        self.pictures.len()
    }

    /// Its pictures at the model's size, in order.
    pub(crate) fn pictures(&self) -> &[Arc<Image>] {
        &self.pictures
    }

    /// Rows that come from pictures; those of text follow.
    pub(crate) fn image_rows(&self) -> usize {
        self.image_rows
    }

    /// How many rows of the KV cache hold tokens that went through the model.
    pub(crate) fn cached(&self) -> usize {
        self.cached
    }

    /// The row that text token `token` is, but for its place in the cache.
    pub(crate) fn text_row(&self, token: usize) -> Row {
        self.row(self.image_rows + token)
    }

    /// The row of position `pos`, but for its place in the cache.
    fn row(&self, pos: usize) -> Row {
        let token = pos.checked_sub(self.image_rows).map_or(TOKEN_IMAGE, |t| self.row_tokens[t]);
        Row { token, pos: pos as u32, seq_base: 0, seq_len: pos as u32 + 1 }
    }

    /// Everything from token `from` on as a job in the rows of `kv`.
    fn job(&self, kv: &SessionState, from: usize, logits: bool, hidden: &[usize]) -> Job {
        let rows: Vec<Row> = (from..self.len()).map(|pos| self.row(pos)).collect();
        let width = self.engine.model.info().image.map_or(0, |i| i.width);
        let image = self.image.get(from * width..).unwrap_or_default().to_vec();
        let (hidden, cancel) = (hidden.to_vec(), self.cancel.clone());
        Job { slot: kv.slot(), rows, image, logits, hidden, cancel, ..Job::default() }
    }

    /// Everything that is not in the cache yet, as a job; its outcome belongs to the last token. With `logits` come the
    /// hidden vectors of the layers in `hidden`.
    pub(crate) fn pending(&self, logits: bool, hidden: &[usize]) -> Job {
        // After an end of text nothing is pending: the last token runs again, for the same keys and values.
        let from = self.cached.min(self.len().saturating_sub(1));
        self.job(&self.state, from, logits, hidden)
    }

    /// Marks all tokens so far as cached.
    pub(crate) fn mark_cached(&mut self) {
        self.cached = self.len();
    }

    /// Runs the tokens before row `n` that are not in the cache yet, and those behind them.
    pub(crate) fn advance(&mut self, n: usize) -> Result<()> {
        if self.cached >= n {
            return Ok(());
        }
        self.engine.run(Work::Text(self.pending(false, &[])))?;
        self.mark_cached();
        Ok(())
    }

    /// The slot of what a device keeps for the session besides rows of the cache.
    pub(crate) fn state_slot(&self) -> usize {
        self.state.slot()
    }

    /// Logits after everything so far, were the first image's vectors zero; none without an image. The pass takes rows
    /// of the KV cache as one more session would, and frees them.
    pub(crate) fn logits_without_image(&self) -> Result<Option<Vec<f32>>> {
        let Some(info) = self.engine.model.info().image.filter(|_| !self.pictures.is_empty()) else { return Ok(None) };
        let kv = self.engine.states.take()?;
        let mut job = self.job(&kv, 0, true, &[]);
        job.image.iter_mut().take(info.tokens * info.width).for_each(|v| *v = 0.0);
        match self.engine.run(Work::Text(job))? {
            JobOutput::Logits(logits, _) => Ok(Some(logits)),
            JobOutput::Tokens(_) | JobOutput::Image(_) => Ok(None),
        }
    }

    /// Appends a generated token; it goes through the model with the next step, or has already if it `ran`.
    pub(crate) fn append(&mut self, token: u32, ran: bool) {
        self.tokens.push(token);
        self.row_tokens.push(token);
        if ran {
            self.mark_cached();
        }
    }
}
