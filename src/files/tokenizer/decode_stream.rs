//! The text of ids that arrive one at a time.

use crate::error::Result;
use crate::files::tokenizer::{REPLACEMENT, Tokenizer};

/// Turns ids that arrive one at a time into text, giving each piece as soon as it is certain.
///
/// It decodes a short window of the last ids and gives what the newest one added, so that decoders which treat the
/// first token of a text differently (a leading space dropped) see a text going on. While the window ends in U+FFFD,
/// a character may be incomplete, and that end is held back.
#[derive(Clone, Debug)]
pub struct DecodeStream {
    skip_special: bool,
    /// The last ids: some whose text is out, for context, then those since.
    pub(super) ids: Vec<u32>,
    /// How many of `ids` had arrived when text last came out with nothing held back.
    settled: usize,
    /// What of the text of `ids` is out.
    shown: String,
    /// What of the text of `ids` is held back.
    held: String,
    /// How many ids in a row have left something held back.
    waiting: usize,
}

impl DecodeStream {
    /// Ids that may wait for the rest of a character. One has at most four bytes, and a token at least one, so after
    /// more than this the bytes are broken for good.
    const MAX_WAITING: usize = 8;

    /// Ids of an incomplete character: three bytes of four.
    const MAX_INCOMPLETE: usize = 3;

    /// Ids kept at most, whatever they decode to.
    pub(super) const MAX_WINDOW: usize = 64;

    /// Ids kept when the window is full: more than the U+FFFD held back can stand for, up to three bytes each.
    const CONTEXT: usize = 4 * Self::MAX_INCOMPLETE;

    /// A stream at the beginning of a text; with `skip_special`, special tokens give nothing.
    pub fn new(skip_special: bool) -> Self {
        Self { skip_special, ids: Vec::new(), settled: 0, shown: String::new(), held: String::new(), waiting: 0 }
    }

    /// Takes the next id and gives the text that became certain with it, which may be empty. The pieces of a stream,
    /// with that of [`DecodeStream::finish`], are the text of all its ids.
    ///
    /// # Errors
    /// Those of [`Tokenizer::decode`].
    pub fn push(&mut self, tokenizer: &Tokenizer, id: u32) -> Result<String> {
        if tokenizer.is_silent(id, self.skip_special) {
            return Ok(String::new());
        }
        self.ids.push(id);
        let text = tokenizer.decode(&self.ids, self.skip_special)?;
        let mut fresh = match text.strip_prefix(self.shown.as_str()) {
            Some(fresh) => fresh.to_string(),
            // The decoder has changed its mind about text that is out (a run of byte tokens that is broken at its
            // end loses its whole characters too): the new ids are read by themselves.
            None => tokenizer.decode(self.ids.get(self.settled..).unwrap_or_default(), self.skip_special)?,
        };
        self.waiting = if fresh.ends_with(REPLACEMENT) { self.waiting + 1 } else { 0 };
        self.held = fresh.split_off(self.certain_len(&fresh));
        if text.starts_with(self.shown.as_str()) {
            self.shown.push_str(&fresh);
        } else if self.held.is_empty() {
            self.shown = text;
        }
        self.forget(tokenizer, !fresh.is_empty() && self.held.is_empty())?;
        Ok(fresh)
    }

    /// Gives what is still held back, U+FFFD for a character that stayed incomplete, and begins a new text.
    pub fn finish(&mut self) -> String {
        let rest = std::mem::take(&mut self.held);
        *self = Self::new(self.skip_special);
        rest
    }

    /// How much of `fresh`, in bytes, later ids cannot change.
    fn certain_len(&self, fresh: &str) -> usize {
        let max = if self.waiting > Self::MAX_WAITING { Self::MAX_INCOMPLETE } else { usize::MAX };
        let uncertain = fresh.chars().rev().take_while(|&c| c == REPLACEMENT).take(max).count();
        fresh.len() - uncertain * REPLACEMENT.len_utf8()
    }

    /// Drops the ids that are no longer needed as context, so that each step costs the same.
    fn forget(&mut self, tokenizer: &Tokenizer, all_out: bool) -> Result<()> {
        let drop = if all_out {
            std::mem::replace(&mut self.settled, self.ids.len())
        } else if self.ids.len() > Self::MAX_WINDOW {
            self.ids.len() - Self::CONTEXT
        } else {
            return Ok(());
        };
        self.ids.drain(..drop.min(self.ids.len()));
        self.settled = self.settled.saturating_sub(drop);
        self.shown = tokenizer.decode(&self.ids, self.skip_special)?;
        let certain = self.shown.strip_suffix(self.held.as_str()).map_or(self.shown.len(), str::len);
        self.shown.truncate(certain);
        Ok(())
    }
}
