//! Applications of models and of the engine. None of them uses another, but the index of pictures, which is made of BitGen's
//! features.

pub mod attention_rollout;
pub mod bitgen;
pub mod picture_index;
pub mod refiner;
pub mod robots;
