//! Telling a model's thought from its answer, while the text comes in pieces.
//!
//! A model that thinks writes `<think>`, its thought, `</think>`, and its answer. Some templates end with `<think>`
//! themselves: then no opening tag comes, and the text begins inside the thought ([`super::opens_thought`]).

/// The tag that begins a thought.
const OPEN: &str = "<think>";
/// The tag that ends it.
const CLOSE: &str = "</think>";

/// Which of the two a piece of text belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// What the model thinks before it answers.
    Thought,
    /// What it answers.
    Answer,
}

/// Where in the text the next piece comes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    /// Nothing but white space has come; a tag may.
    Start,
    Thought,
    Answer,
}

/// Splits a text that comes in pieces, wherever they are cut.
///
/// A thought stands at the beginning: a `<think>` behind the first word of an answer is part of it. White space around the
/// tags belongs to neither part.
#[derive(Debug, Clone)]
pub struct ThoughtSplitter {
    place: Place,
    /// Whether the part has begun: white space in front of it is dropped.
    begun: bool,
    /// What may be a part of a tag, or white space in front of one.
    held: String,
}

impl ThoughtSplitter {
    /// A splitter at the beginning of what a model writes, which is `inside` a thought where the prompt opened one.
    pub fn new(inside: bool) -> Self {
        let place = if inside { Place::Thought } else { Place::Start };
        ThoughtSplitter { place, begun: false, held: String::new() }
    }

    /// Takes the next piece of text; gives what became certain with it, in order.
    pub fn push(&mut self, piece: &str) -> Vec<(Part, String)> {
        self.held.push_str(piece);
        let mut out = Vec::new();
        while self.step(&mut out) {}
        out
    }

    /// Gives what is still held back: the beginning of a tag that did not go on. The splitter is to be made anew after it.
    pub fn finish(&mut self) -> Vec<(Part, String)> {
        let rest = std::mem::take(&mut self.held);
        let mut out = Vec::new();
        match self.place {
            // White space at the end of a thought that did not end is not part of it.
            Place::Thought => self.give(Part::Thought, rest.trim_end(), &mut out),
            Place::Start | Place::Answer => self.give(Part::Answer, &rest, &mut out),
        }
        out
    }

    /// Takes from what is held back as much as is certain; whether more may be.
    fn step(&mut self, out: &mut Vec<(Part, String)>) -> bool {
        match self.place {
            Place::Start => {
                let text = self.held.trim_start();
                if text.is_empty() || OPEN.starts_with(text) && text != OPEN {
                    return false;
                }
                self.place = match text.strip_prefix(OPEN) {
                    Some(rest) => {
                        self.held = rest.to_owned();
                        Place::Thought
                    }
                    None => Place::Answer,
                };
                true
            }
            Place::Thought => self.step_thought(out),
            Place::Answer => {
                let text = std::mem::take(&mut self.held);
                self.give(Part::Answer, &text, out);
                false
            }
        }
    }

    fn step_thought(&mut self, out: &mut Vec<(Part, String)>) -> bool {
        let text = std::mem::take(&mut self.held);
        // A model may repeat the tag that the prompt ended with.
        if !self.begun {
            let inner = text.trim_start();
            if let Some(rest) = inner.strip_prefix(OPEN) {
                self.held = rest.to_owned();
                return true;
            }
            if OPEN.starts_with(inner) {
                self.held = text;
                return false;
            }
        }
        if let Some((thought, rest)) = text.split_once(CLOSE) {
            self.give(Part::Thought, thought.trim_end(), out);
            (self.place, self.begun, self.held) = (Place::Answer, false, rest.to_owned());
            return true;
        }
        let tag = (1..CLOSE.len()).rev().find(|&n| text.ends_with(&CLOSE[..n])).unwrap_or(0);
        let certain = text[..text.len() - tag].trim_end().len();
        self.give(Part::Thought, &text[..certain], out);
        self.held = text[certain..].to_owned();
        false
    }

    /// Gives text of a part, without the white space in front of the part.
    fn give(&mut self, part: Part, text: &str, out: &mut Vec<(Part, String)>) {
        let text = if self.begun { text } else { text.trim_start() };
        if !text.is_empty() {
            self.begun = true;
            out.push((part, text.to_owned()));
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Thought and answer of a text in pieces.
    fn split<'a>(inside: bool, pieces: impl IntoIterator<Item = &'a str>) -> [String; 2] {
        let mut splitter = ThoughtSplitter::new(inside);
        let mut all: Vec<(Part, String)> = pieces.into_iter().flat_map(|piece| splitter.push(piece)).collect();
        all.extend(splitter.finish());
        let order = all.iter().map(|(part, _)| *part == Part::Answer);
        assert!(order.clone().is_sorted(), "a thought behind the answer: {all:?}");
        let of = |part| all.iter().filter(|(p, _)| *p == part).map(|(_, text)| text.as_str()).collect();
        [of(Part::Thought), of(Part::Answer)]
    }

    #[test]
    fn a_thought_is_told_from_an_answer() {
        for (inside, text, thought, answer) in [
            (false, "<think>\nhm, 1 < 2\n</think>\n\nTwo.\n", "hm, 1 < 2", "Two.\n"),
            (false, "<think>\n\n</think>\n\nyes", "", "yes"),
            (false, "  Hello <think>x</think>", "", "Hello <think>x</think>"),
            (false, "<thin air", "", "<thin air"),
            (false, "<th", "", "<th"),
            (true, "hm\n</think>\n\nyes </think>", "hm", "yes </think>"),
            (true, "<think>\nhm</think>yes", "hm", "yes"),
            (true, "a </thin", "a </thin", ""),
            (true, "never ends \n", "never ends", ""),
            (true, "", "", ""),
        ] {
            assert_eq!(split(inside, [text]), [thought, answer], "{text:?}");
        }
    }

    #[test]
    fn text_comes_as_soon_as_it_is_certain() {
        let mut splitter = ThoughtSplitter::new(true);
        assert_eq!(splitter.push("a b "), [(Part::Thought, "a b".to_owned())]);
        assert_eq!(splitter.push("c</th"), [(Part::Thought, " c".to_owned())]);
        assert_eq!(splitter.push("e"), [(Part::Thought, "</the".to_owned())]);
        assert_eq!(splitter.push("</think>"), []);
        assert_eq!(splitter.push("\nd "), [(Part::Answer, "d ".to_owned())]);
        assert_eq!(splitter.push("e"), [(Part::Answer, "e".to_owned())]);
    }

    proptest! {
        #[test]
        fn where_a_text_is_cut_changes_nothing(
            inside: bool,
            words in prop::collection::vec(
                prop::sample::select(vec!["<think>", "</think>", "<", "think", ">", "</", " ", "\n", "a", "\u{e9}", "\u{6f22}"]),
                0..24,
            ),
            cuts in prop::collection::vec(0usize..120, 0..12),
        ) {
            let text = words.concat();
            let mut cuts: Vec<usize> = cuts.into_iter().filter(|&at| text.is_char_boundary(at)).collect();
            cuts.extend([0, text.len()]);
            cuts.sort_unstable();
            let pieces = cuts.windows(2).map(|pair| &text[pair[0]..pair[1]]);
            prop_assert_eq!(split(inside, pieces), split(inside, [text.as_str()]));
        }
    }
}
