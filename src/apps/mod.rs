//! Applications of models and of the engine. None uses another, except the index of pictures, which is made of BitGen's
//! features.
//!
//! * [`bitgen`]: features of images and texts, their similarities, captions, and an episodic memory.
//! * [`picture_index`]: pictures of folders, found by a text or a picture.
//! * [`robots`]: robots chosen for a task, and the reasoning behind the choice.
//! * [`refiner`]: EmberNet's "VA refiner", which penalises tokens that ignore the image.
//! * [`attention_rollout`]: where in a picture a model looked while it read or wrote a token.

pub mod attention_rollout;
pub mod bitgen;
pub mod picture_index;
pub mod refiner;
pub mod robots;
