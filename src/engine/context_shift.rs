//! What leaves a session whose context is full.

/// How a session goes on once its context is full: the older half of its text leaves, as often as it takes, but for what
/// stands at the beginning. What stays is as if nothing else had ever been pushed: the tokens behind the gap run again, at
/// their new positions, which takes as long as a prompt of that many tokens; half a context of further tokens pays for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ContextShift {
    /// How many tokens at the beginning of the text stay; none: those of the system message that a conversation begins
    /// with, or the first token alone. Pictures, which stand in front of the text, stay too.
    pub keep: Option<usize>,
}

/// Text tokens that have left a session: `tokens`, from the place `at` among those that stay.
#[derive(Debug, Default)]
pub(crate) struct Forgotten {
    pub at: usize,
    pub tokens: Vec<u32>,
}

impl Forgotten {
    /// All tokens, of which `staying` stay.
    pub fn whole(&self, staying: &[u32]) -> Vec<u32> {
        let (before, behind) = staying.split_at(self.at.min(staying.len()));
        [before, &self.tokens, behind].concat()
    }

    /// The place among all tokens of a place among those that stay.
    pub fn place(&self, staying: usize) -> usize {
        if staying > self.at { staying + self.tokens.len() } else { staying }
    }

    /// Nothing has left.
    pub fn clear(&mut self) {
        *self = Self::default();
    }
}

/// How many of `n` tokens leave, from the place `keep` on, so that `room` is enough: half of those behind it, as often as it
/// takes, but for the last `new`. None if that is not enough.
pub(crate) fn leaving(n: usize, room: usize, keep: usize, new: usize) -> Option<usize> {
    let mut left = n;
    while left > room {
        let free = left.saturating_sub(keep + new);
        let half = left.saturating_sub(keep).div_ceil(2);
        left -= half.min(free);
        if free == 0 {
            return None;
        }
    }
    Some(n - left)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn half_leaves_as_often_as_it_takes_and_what_is_new_stays() {
        assert_eq!(leaving(10, 10, 2, 1), Some(0));
        assert_eq!(leaving(11, 10, 2, 1), Some(5), "half of 9");
        assert_eq!(leaving(40, 10, 0, 1), Some(30));
        assert_eq!(leaving(40, 10, 2, 8), Some(30), "all but the first and the new ones");
        assert_eq!(leaving(40, 10, 2, 9), None);
        assert_eq!(leaving(2, 1, 0, 2), None);
        assert_eq!(leaving(5, 0, 0, 0), Some(5));
    }

    #[test]
    fn what_left_has_its_place() {
        let forgotten = Forgotten { at: 2, tokens: vec![7, 8, 9] };
        assert_eq!(forgotten.whole(&[1, 2, 3]), [1, 2, 7, 8, 9, 3]);
        assert_eq!([0, 2, 3].map(|n| forgotten.place(n)), [0, 2, 6]);
    }
}
