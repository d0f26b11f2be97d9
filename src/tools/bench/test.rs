//! What a test does, by its numbers.

use std::fmt;

use crate::error::{Error, Result};
use crate::models::{ImageInfo, ModelInfo};
use crate::tools::bench::row::TestNumbers;

/// One thing that is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Test {
    /// `ppN @ dD`: a prompt of N tokens is read, to the first token of the answer, behind D tokens that are in the cache.
    Prompt {
        /// Tokens of the prompt.
        tokens: usize,
        /// Tokens in the cache before; their time does not count.
        depth: usize,
    },
    /// `tgN @ dD × S sessions`: S sessions generate N tokens each, after D tokens that are in the cache.
    Generate {
        /// Tokens that each session generates.
        tokens: usize,
        /// Tokens in each session's cache before; their time does not count.
        depth: usize,
        /// Sessions that generate at the same time.
        sessions: usize,
    },
    /// `image`: a picture is scaled and encoded.
    Image,
    /// `image+ppN`: a picture is encoded and read, and a prompt of N tokens behind it, to the first token of the answer.
    ImagePrompt {
        /// Tokens of the prompt.
        tokens: usize,
    },
}

/// The error for a model without an image encoder.
pub(crate) fn no_image() -> Error {
    Error::Unsupported { object: "the image test".into(), problem: "the model reads text only".into() }
}

/// How the model reads images.
pub(crate) fn image(info: &ModelInfo) -> Result<ImageInfo> {
    info.image.ok_or_else(no_image)
}

impl Test {
    /// Sessions that run at the same time.
    pub fn sessions(self) -> usize {
        if let Test::Generate { sessions, .. } = self { sessions } else { 1 }
    }

    /// Tokens in a session's cache before.
    pub fn depth(self) -> usize {
        match self {
            Test::Prompt { depth, .. } | Test::Generate { depth, .. } => depth,
            Test::Image | Test::ImagePrompt { .. } => 0,
        }
    }

    /// Tokens that one repetition counts, of all sessions together.
    pub fn tokens(self, info: &ModelInfo) -> usize {
        let image = info.image.map_or(0, |i| i.tokens);
        match self {
            Test::Prompt { tokens, .. } => tokens,
            Test::Generate { tokens, sessions, .. } => tokens * sessions,
            Test::Image => image,
            Test::ImagePrompt { tokens } => image + tokens,
        }
    }

    /// What it does, in numbers, but for the context.
    pub(crate) fn numbers(self) -> TestNumbers {
        let none = TestNumbers { n_sessions: 1, ..TestNumbers::default() };
        match self {
            Test::Prompt { tokens, depth } => TestNumbers { n_prompt: tokens as u64, n_depth: depth as u64, ..none },
            Test::Generate { tokens, depth, sessions } => {
                TestNumbers { n_gen: tokens as u64, n_depth: depth as u64, n_sessions: sessions as u64, ..none }
            }
            Test::Image => TestNumbers { n_images: 1, ..none },
            Test::ImagePrompt { tokens } => TestNumbers { n_images: 1, n_prompt: tokens as u64, ..none },
        }
    }

    /// Rows of the cache that a session needs.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for an image if the model reads none.
    pub fn context(self, info: &ModelInfo) -> Result<usize> {
        Ok(match self {
            Test::Prompt { tokens, depth } | Test::Generate { tokens, depth, .. } => depth + 1 + tokens,
            Test::Image => image(info)?.tokens,
            Test::ImagePrompt { tokens } => image(info)?.tokens + tokens + 1,
        })
    }
}

impl fmt::Display for Test {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let at = |depth: usize| if depth > 0 { format!(" @ d{depth}") } else { String::new() };
        match *self {
            Test::Prompt { tokens, depth } => write!(f, "pp{tokens}{}", at(depth)),
            Test::Image => write!(f, "image"),
            Test::ImagePrompt { tokens } => write!(f, "image+pp{tokens}"),
            Test::Generate { tokens, depth, sessions: 1 } => write!(f, "tg{tokens}{}", at(depth)),
            Test::Generate { tokens, depth, sessions } => write!(f, "tg{tokens}{} × {sessions} sessions", at(depth)),
        }
    }
}
