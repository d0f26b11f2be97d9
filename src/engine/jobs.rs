//! What is to run, rows of text or an image, and what it gives.

use crate::engine::cancel::Cancel;
use crate::engine::programs::Program;
use crate::ops::{Row, SampleParams};

/// Rows of one sequence that are to run, in order; the token after the last one is wanted.
#[derive(Debug, Clone, Default)]
pub struct Job {
    /// The session's slot in the KV cache, which must have the rows.
    pub slot: usize,
    /// What to run. Where the sequence begins in the cache (`seq_base`) is filled in when a batch runs.
    pub rows: Vec<Row>,
    /// Vectors of the first rows, where they come from images: `[n, width]`.
    pub image: Vec<f32>,
    /// Whether the logits are wanted instead of the token.
    pub logits: bool,
    /// How the token is chosen.
    pub sample: SampleParams,
    /// The session's row of adjustments, where `sample` names one ([`crate::ops::adjustments`]); empty if the device has it
    /// already.
    pub adjustments: Vec<u32>,
    /// How many tokens one after the other may be chosen before the host sees them, where there is one row; 0 counts as 1.
    pub max_tokens: usize,
    /// Layers whose shared expert's hidden vector is wanted with the logits, of those that the engine was opened for.
    pub hidden: Vec<usize>,
    /// Rows that have run.
    pub done: usize,
    /// What may end it between two batches.
    pub cancel: Option<Cancel>,
}

/// An image that an encoder's program is to read.
#[derive(Debug)]
pub struct ImageJob {
    /// The encoder, prepared.
    pub program: Program,
    /// Its input: pixel values.
    pub pixels: Vec<f32>,
    /// Outputs that are wanted, by name, each with its number of words.
    pub outputs: Vec<(String, usize)>,
    /// Nodes of the program that have run.
    pub done: usize,
    /// What may end it between two pieces.
    pub cancel: Option<Cancel>,
}

/// What a caller adds to the queue.
#[derive(Debug)]
pub enum Work {
    /// Rows of text.
    Text(Job),
    /// An image.
    Image(ImageJob),
}

impl Work {
    /// The slot whose rows of the cache it needs, and how many.
    pub fn cache_rows(&self) -> Option<(usize, usize)> {
        match self {
            Work::Text(job) => job.rows.last().map(|row| (job.slot, row.seq_len as usize)),
            Work::Image(_) => None,
        }
    }
}

/// What runs next.
#[derive(Debug)]
pub enum Turn {
    /// Parts of jobs as one batch, each with a number of its rows.
    Text(Vec<(Job, usize)>),
    /// A piece of an image's program.
    Image(ImageJob),
}

/// What a finished job gives.
#[derive(Debug, Clone, PartialEq)]
pub enum JobOutput {
    /// The tokens chosen one after the other, at least one; `u32::MAX` where logits were not finite.
    Tokens(Vec<u32>),
    /// All logits, and the hidden vectors asked for, by layer.
    Logits(Vec<f32>, Vec<(usize, Vec<f32>)>),
    /// The outputs of an image's program that were asked for.
    Image(Vec<Vec<f32>>),
}
