//! A text as its tokens come: what of it is certain, and when it ends.

use serde::Serialize;

use crate::engine::repetition::Repetition;
use crate::engine::sampler::StopStrings;
use crate::error::Result;
use crate::files::{DecodeStream, Tokenizer};

/// Why a generation ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum StopReason {
    /// The model ended its text.
    Eos,
    /// A stop string was generated.
    StopString,
    /// As many tokens as asked for, or as a generation has that asks for no number.
    Length,
    /// The context is full.
    Context,
    /// It repeated itself without end ([`GenerateOptions::end_loops`](crate::engine::GenerateOptions)).
    Repetition,
    /// The caller ended it ([`Cancel`](crate::engine::Cancel)).
    Cancelled,
}

/// The text of one generation, whoever chooses its tokens.
#[derive(Debug)]
pub(crate) struct GeneratedText {
    stop: StopStrings,
    text: DecodeStream,
    eos: Vec<u32>,
    /// Tokens that may still come.
    left: usize,
    /// Why it ends when none may.
    limit: StopReason,
    ended: Option<StopReason>,
    /// Where a repetition ends it.
    repetition: Option<Repetition>,
}

impl GeneratedText {
    /// A text of at most `max_tokens` tokens that ends with any token of `eos`, or before any of the strings `stop`.
    ///
    /// # Errors
    /// Those of [`StopStrings::new`].
    pub fn new(stop: Vec<String>, eos: Vec<u32>, max_tokens: usize) -> Result<Self> {
        let ended = (max_tokens == 0).then_some(StopReason::Length);
        let (stop, text) = (StopStrings::new(stop)?, DecodeStream::new(true));
        Ok(GeneratedText { stop, text, eos, left: max_tokens, limit: StopReason::Length, ended, repetition: None })
    }

    /// The same, where it is the context that holds no more tokens.
    pub fn until_full(mut self) -> Self {
        self.limit = StopReason::Context;
        self.ended = self.ended.map(|_| self.limit);
        self
    }

    /// The same, which ends where it repeats itself, if that is so wanted.
    pub fn end_loops(mut self, wanted: bool) -> Self {
        self.repetition = wanted.then(Repetition::default);
        self
    }

    /// Why it ended, if it has.
    pub fn ended(&self) -> Option<StopReason> {
        self.ended
    }

    /// Ends it where it is; what was held back does not come.
    pub fn cancel(&mut self) {
        self.ended.get_or_insert(StopReason::Cancelled);
    }

    /// Tokens that may still come.
    pub fn left(&self) -> usize {
        self.left
    }

    /// Whether a token ends the text, and is not part of it.
    pub fn is_eos(&self, id: u32) -> bool {
        self.eos.contains(&id)
    }

    /// Takes the next token; the text that becomes certain with it.
    ///
    /// # Errors
    /// Those of [`DecodeStream::push`].
    pub fn accept(&mut self, id: u32, tokenizer: Option<&Tokenizer>) -> Result<String> {
        if self.is_eos(id) {
            self.left = self.left.saturating_sub(1);
            self.ended = Some(StopReason::Eos);
            return Ok(self.rest());
        }
        self.push(id, tokenizer)
    }

    /// [`GeneratedText::accept`] of a token that is part of the text whatever its number.
    ///
    /// # Errors
    /// Those of [`DecodeStream::push`].
    pub fn push(&mut self, id: u32, tokenizer: Option<&Tokenizer>) -> Result<String> {
        self.left = self.left.saturating_sub(1);
        let piece = tokenizer.map_or(Ok(String::new()), |tokenizer| self.text.push(tokenizer, id))?;
        let (mut text, stopped) = self.stop.push(&piece);
        let repeats = self.repetition.as_mut().is_some_and(|repetition| repetition.push(id));
        if stopped {
            self.ended = Some(StopReason::StopString);
        } else if repeats || self.left == 0 {
            self.ended = Some(if repeats { StopReason::Repetition } else { self.limit });
            text += &self.rest();
        }
        Ok(text)
    }

    /// What was held back: a part of a character, or of a stop string.
    fn rest(&mut self) -> String {
        let (text, stopped) = self.stop.push(&self.text.finish());
        if stopped { text } else { text + &self.stop.flush() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_ends_where_it_repeats_itself_if_that_is_wanted() {
        for wanted in [false, true] {
            let mut text = GeneratedText::new(Vec::new(), vec![5], 1000).unwrap().end_loops(wanted);
            for i in 0..1000 {
                if text.ended().is_none() {
                    text.accept(10 + i % 3, None).unwrap();
                }
            }
            let (why, left) = if wanted { (StopReason::Repetition, 904) } else { (StopReason::Length, 0) };
            assert_eq!((text.ended(), text.left()), (Some(why), left));
        }
    }

    #[test]
    fn a_text_ends_at_any_of_its_ends_and_at_its_length() {
        let text_of = |n| GeneratedText::new(Vec::new(), vec![5, 7], n).unwrap();
        for eos in [5, 7] {
            let mut text = text_of(3);
            text.accept(1, None).unwrap();
            assert_eq!(text.ended(), None);
            text.accept(eos, None).unwrap();
            assert_eq!((text.ended(), text.left()), (Some(StopReason::Eos), 1));
        }
        let mut text = text_of(1);
        text.push(5, None).unwrap();
        assert_eq!(text.ended(), Some(StopReason::Length), "a token that is pushed is part of the text");
        assert_eq!(text_of(0).ended(), Some(StopReason::Length));
        assert_eq!(text_of(0).until_full().ended(), Some(StopReason::Context));
        let mut text = text_of(1).until_full();
        assert_eq!(text.ended(), None);
        text.accept(1, None).unwrap();
        assert_eq!(text.ended(), Some(StopReason::Context));
    }
}
