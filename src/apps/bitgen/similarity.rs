//! Similarity of texts and images: cosines, and probabilities at a temperature.

use crate::error::{Error, Result};

/// The cosines of some texts' and some images' features.
#[derive(Debug, Clone, PartialEq)]
pub struct Similarities {
    /// `[texts][images]`, in -1..=1.
    pub cosine: Vec<Vec<f32>>,
    /// Divides the cosines before a softmax.
    pub temperature: f32,
}

impl Similarities {
    /// Of features, vectors `[d]` of length 1 each.
    ///
    /// # Errors
    /// [`Error::Format`] for features that are not finite, which broken weights give.
    pub fn new(texts: &[Vec<f32>], images: &[Vec<f32>], temperature: f32) -> Result<Self> {
        for (what, features) in [("text", texts), ("image", images)] {
            if let Some(i) = features.iter().position(|f| !finite(f)) {
                return Err(not_finite(format!("features of {what} {}", i + 1)));
            }
        }
        let row = |text: &Vec<f32>| images.iter().map(|image| cosine(text, image)).collect();
        Ok(Similarities { cosine: texts.iter().map(row).collect(), temperature })
    }

    /// `[texts][images]`: the cosines divided by the temperature.
    pub fn scaled(&self) -> Vec<Vec<f32>> {
        self.cosine.iter().map(|row| row.iter().map(|c| c / self.temperature).collect()).collect()
    }

    /// `[texts][images]`: the probability of each text for an image, if one of them is right: a softmax over the texts.
    pub fn text_for_image(&self) -> Vec<Vec<f32>> {
        let (scaled, images) = (self.scaled(), self.cosine.first().map_or(0, Vec::len));
        let column = |i: usize| softmax(&scaled.iter().filter_map(|row| row.get(i).copied()).collect::<Vec<f32>>());
        let columns: Vec<Vec<f32>> = (0..images).map(column).collect();
        (0..scaled.len()).map(|t| columns.iter().filter_map(|c| c.get(t).copied()).collect()).collect()
    }

    /// `[texts][images]`: the probability of each image for a text, if one of them is right: a softmax over the images.
    pub fn image_for_text(&self) -> Vec<Vec<f32>> {
        self.scaled().iter().map(|row| softmax(row)).collect()
    }
}

/// The cosine of two vectors of length 1.
pub(crate) fn cosine(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// The length of a vector.
pub(crate) fn length(vector: &[f32]) -> f32 {
    vector.iter().map(|v| v * v).sum::<f32>().sqrt()
}

/// Whether all values are finite.
pub(crate) fn finite(features: &[f32]) -> bool {
    features.iter().all(|v| v.is_finite())
}

/// The error for non-finite features.
pub(crate) fn not_finite(object: impl ToString) -> Error {
    Error::format(object, "are not finite; the model's weights are broken")
}

fn softmax(x: &[f32]) -> Vec<f32> {
    let max = x.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let powers: Vec<f64> = x.iter().map(|v| f64::from(v - max).exp()).collect();
    let sum: f64 = powers.iter().sum();
    powers.iter().map(|p| (p / sum) as f32).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn probabilities_are_those_of_a_softmax_over_either_side() {
        let texts = [vec![1.0, 0.0], vec![0.0, 1.0]];
        let images = [vec![1.0, 0.0], vec![0.6, 0.8], vec![-1.0, 0.0]];
        let found = Similarities::new(&texts, &images, 0.5).unwrap();
        assert_eq!(found.cosine, [[1.0, 0.6, -1.0], [0.0, 0.8, 0.0]]);
        assert_eq!(found.scaled(), [[2.0, 1.2, -2.0], [0.0, 1.6, 0.0]]);
        let near = |a: f32, b: f64| (f64::from(a) - b).abs() < 1e-6;
        let (texts, images) = (found.text_for_image(), found.image_for_text());
        assert!(near(texts[0][1], 1.2f64.exp() / (1.2f64.exp() + 1.6f64.exp())), "{texts:?}");
        assert!(near(images[1][1], 1.6f64.exp() / (1.6f64.exp() + 2.0)), "{images:?}");
        assert!(texts[0].iter().zip(&texts[1]).all(|(a, b)| near(a + b, 1.0)), "{texts:?}");
        assert!(images.iter().all(|row| near(row.iter().sum(), 1.0)));
    }

    #[test]
    fn nothing_has_no_similarities_and_numbers_that_are_none_are_refused() {
        let none = Similarities::new(&[], &[vec![1.0]], 1.0).unwrap();
        assert!(none.text_for_image().is_empty() && none.image_for_text().is_empty());
        let error = Similarities::new(&[vec![1.0]], &[vec![1.0], vec![f32::NAN]], 1.0).unwrap_err().to_string();
        assert!(error.contains("image 2") && error.contains("finite"), "{error}");
    }
}
