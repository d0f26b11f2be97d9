//! Measuring a model on a folder of pictures: questions with known answers (`questions`, for chat models), or captions
//! (`pairs`, for BitGen: the objectives that it is trained with, and retrieval).

mod data;
mod objectives;
mod pairs;
mod questions;

pub use data::{CaptionSet, DataSet, Pair, Question};
pub use objectives::{Queues, Ranked, contrastive_loss, matching_loss, rank, recall};
pub use pairs::{PairEvaluation, PairOptions, Reconstruction, evaluate_pairs};
pub use questions::{Evaluation, Score, evaluate, is_right};
