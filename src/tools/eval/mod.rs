//! Measures a model on a folder of pictures, or on a text.
//!
//! * `data`: the folder and its list.
//! * `questions`: questions with known answers, for chat models.
//! * `perplexity`: what a text surprises a chat model by.
//! * `objectives`: the training objectives of BitGen and retrieval, as formulas over features.
//! * `pairs`: a BitGen on pictures with captions, by those.

mod data;
mod objectives;
mod pairs;
mod perplexity;
mod questions;

pub use data::{CaptionSet, DataSet, Pair, Question};
pub use objectives::{Queues, Ranked, contrastive_loss, matching_loss, rank, recall};
pub use pairs::{PairEvaluation, PairOptions, Reconstruction, evaluate_pairs};
pub use perplexity::{Perplexity, PerplexityOptions, perplexity};
pub use questions::{Evaluation, Score, evaluate, is_right};
