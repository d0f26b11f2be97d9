//! Tensors of a BitGen's checkpoint that are not read, and those that are not parameters.

/// Ends of the names of what only training needs: queues of features, numbers of batches, and the scales of BitNetLinears,
/// which follow from their weights and inputs.
const TRAINING: [&str; 5] = ["_queue", "queue_ptr", ".weight_scale", ".input_scale", ".num_batches_tracked"];
/// Ends of the names of a batch norm's statistics.
const STATISTICS: [&str; 2] = [".running_mean", ".running_var"];
/// Parts of the names of modules whose results the original does not use.
const UNUSED: [&str; 4] =
    ["dinov2_model.embeddings.mask_token", "cross_modal_text_pooler.", "cross_modal_image_pooler.", ".ln2."];

/// Whether neither model reads the tensor.
pub fn is_unread(name: &str) -> bool {
    TRAINING.iter().any(|end| name.ends_with(end)) || UNUSED.iter().any(|part| name.contains(part))
}

/// Whether the tensor is a buffer rather than a parameter.
pub fn is_buffer(name: &str) -> bool {
    TRAINING.iter().chain(&STATISTICS).any(|end| name.ends_with(end))
}
