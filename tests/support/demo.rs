//! What sessions with the demo model are given, and what they generate.
#![allow(dead_code)] // Each test uses a part.

use ternion::engine::GenerateOptions;
use ternion::{Image, Result, Session};

/// A small picture.
pub fn picture() -> Image {
    Image::from_rgb(8, 8, (0..192).map(|i| (i * 5) as u8).collect()).expect("a picture")
}

/// So many tokens, the most likely ones, whatever they are.
pub fn greedy(max_tokens: usize) -> GenerateOptions {
    GenerateOptions { max_tokens: Some(max_tokens), eos: Some(u32::MAX), ..GenerateOptions::default() }
}

/// The tokens that a session generates.
pub fn generated(session: &mut Session, options: GenerateOptions) -> Result<Vec<u32>> {
    session.generate(options)?.map(|token| Ok(token?.id)).collect()
}
