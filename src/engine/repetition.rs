//! Texts that repeat themselves without end.

use std::collections::VecDeque;

/// The longest passage whose repetition is looked for, in tokens.
const LONGEST: usize = 64;
/// How often a passage must come in a row.
const TIMES: usize = 8;
/// How many tokens its repetitions must have together: a line of dashes or a table's edge has fewer.
const TOKENS: usize = 96;

/// Looks for a passage of up to 64 tokens that comes eight times in a row, with 96 tokens or more together.
#[derive(Debug, Default)]
pub(crate) struct Repetition {
    /// The last tokens, the newest at the end.
    last: VecDeque<u32>,
    /// By length of a passage less 1: how many tokens in a row are the one that stands as far in front of them.
    alike: Vec<usize>,
}

impl Repetition {
    /// Takes the next token; whether the text goes round in circles.
    pub fn push(&mut self, token: u32) -> bool {
        self.alike.resize(LONGEST, 0);
        for (length, alike) in (1..).zip(&mut self.alike) {
            let before = self.last.len().checked_sub(length).map(|at| self.last[at]);
            *alike = if before == Some(token) { *alike + 1 } else { 0 };
        }
        if self.last.len() == LONGEST {
            self.last.pop_front();
        }
        self.last.push_back(token);
        (1..).zip(&self.alike).any(|(length, alike)| *alike + length >= (TIMES * length).max(TOKENS))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How many tokens are taken until it is found, if it is.
    fn found(tokens: impl IntoIterator<Item = u32>) -> Option<usize> {
        let mut repetition = Repetition::default();
        tokens.into_iter().position(|token| repetition.push(token)).map(|at| at + 1)
    }

    #[test]
    fn passages_of_all_lengths_are_found_when_they_have_come_often_enough() {
        for length in [1, 2, 5, 12, 13, 63, 64] {
            let begin = 1000..1017;
            let text = begin.chain((0..10_000).map(|i| i % length as u32));
            assert_eq!(found(text), Some(17 + (TIMES * length).max(TOKENS)), "{length} tokens");
        }
    }

    #[test]
    fn what_changes_is_not_found() {
        // A count, with the same words around it.
        assert_eq!(found((0..5_000).map(|i| if i % 4 == 0 { i } else { 7 })), None);
        // A passage that is too long, and one that comes too seldom.
        assert_eq!(found((0..5_000).map(|i| i % 65)), None);
        assert_eq!(found((0..5_000).map(|i| if i % 100 < 95 { 3 } else { i })), None);
        assert_eq!(found([]), None);
    }
}
