//! What BitGen is trained for, as formulas over features of length 1, and retrieval.

use crate::apps::bitgen::similarity::cosine;
use crate::error::{Error, Result};
use crate::files::{ModelFiles, Weights};
use crate::threads;

/// Features of earlier texts and pictures that a checkpoint keeps, against which its contrastive loss is taken.
#[derive(Debug, Clone, PartialEq)]
pub struct Queues {
    /// How many of each.
    pub columns: usize,
    /// Of texts, `[d, columns]`.
    pub texts: Vec<f32>,
    /// Of pictures, `[d, columns]`.
    pub images: Vec<f32>,
}

impl Queues {
    /// The queues of a BitGen's checkpoint whose features are `d` wide, if it has them; a packed model may not.
    ///
    /// # Errors
    /// As [`Weights::open`]; [`Error::MissingTensors`] for one queue without the other, [`Error::Shape`] for others than
    /// `[d, columns]`, [`Error::Unsupported`] for values that are not floats.
    pub fn read(files: impl Into<ModelFiles>, d: usize) -> Result<Option<Self>> {
        let weights = Weights::open(files)?;
        let file = || weights.path().display().to_string();
        let names = ["text", "image"].map(|side| format!("cross_modal_fusion.{side}_queue"));
        let shapes = names.each_ref().map(|name| weights.shape(name));
        let [Some(texts), Some(images)] = &shapes else {
            let missing = names.into_iter().zip(&shapes).filter(|(_, shape)| shape.is_none());
            let names: Vec<String> = missing.map(|(name, _)| name).collect();
            return if names.len() == 2 { Ok(None) } else { Err(Error::MissingTensors { file: file(), names }) };
        };
        let columns = texts.get(1).copied().unwrap_or_default();
        for (name, shape) in names.iter().zip([texts, images]) {
            if columns == 0 || *shape != [d, columns] {
                let expected = format!("[{d}, columns], as many columns in both queues");
                return Err(Error::shape(format!("{}: tensor {name}", file()), expected, format!("{shape:?}")));
            }
        }
        let read = |name: &str| weights.checkpoint().read_f32(name, 0..d * columns);
        Ok(Some(Queues { columns, texts: read(&names[0])?, images: read(&names[1])? }))
    }
}

/// The contrastive loss (ITC) of a batch of pairs, text i and picture i, in nats: each text's similarities to all
/// pictures of the batch and of the queue are logits among which its own picture is the right class, and the other way
/// round. The mean over both ways:
///
/// ```text
/// texts:    −ln softmax([t_i · v_j / temperature for all j; t_i · image_queue / temperature])_i
/// pictures: −ln softmax([v_i · t_j / temperature for all j; v_i · text_queue  / temperature])_i
/// ```
///
/// Without queues the batch is all there is. Source: Wang et al. 2022 (FIBER), as BitGen's first stage is trained.
pub fn contrastive_loss(texts: &[Vec<f32>], images: &[Vec<f32>], temperature: f32, queues: Option<&Queues>) -> f64 {
    let one_way = |queries: &[Vec<f32>], keys: &[Vec<f32>], queue: Option<&[f32]>| -> f64 {
        let loss = |(i, query): (usize, &Vec<f32>)| {
            let mut logits: Vec<f32> = keys.iter().map(|key| cosine(query, key)).collect();
            logits.extend(queue.map_or_else(Vec::new, |queue| products(query, queue)));
            logits.iter_mut().for_each(|l| *l /= temperature);
            -f64::from(crate::engine::log_probs::log_probability(&logits, i))
        };
        threads::shared().map(queries.iter().enumerate(), loss).into_iter().sum::<f64>() / queries.len().max(1) as f64
    };
    let to_images = one_way(texts, images, queues.map(|q| q.images.as_slice()));
    let to_texts = one_way(images, texts, queues.map(|q| q.texts.as_slice()));
    (to_images + to_texts) / 2.0
}

/// How a query's own candidates stand among all.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Ranked {
    /// Wrong candidates in front of the best right one; of equal cosines the wrong ones are in front.
    pub rank: usize,
    /// The largest cosine of a wrong candidate, if there are wrong ones.
    pub hardest: Option<f32>,
}

/// Ranks candidates by their cosine with each query; `right` has each query's right candidates.
pub fn rank(queries: &[Vec<f32>], candidates: &[Vec<f32>], right: &[Vec<usize>]) -> Vec<Ranked> {
    let one = |(query, right): (&Vec<f32>, &Vec<usize>)| {
        let cosines: Vec<f32> = candidates.iter().map(|c| cosine(query, c)).collect();
        let best = right.iter().filter_map(|&i| cosines.get(i).copied()).fold(f32::NEG_INFINITY, f32::max);
        let wrong = || cosines.iter().enumerate().filter(|(i, _)| !right.contains(i)).map(|(_, &cosine)| cosine);
        let hardest = wrong().fold(None, |max: Option<f32>, c| Some(max.map_or(c, |m| m.max(c))));
        Ranked { rank: wrong().filter(|&c| c >= best).count(), hardest }
    };
    threads::shared().map(queries.iter().zip(right), one)
}

/// The share of queries with a right candidate among the first `k`.
pub fn recall(ranked: &[Ranked], k: usize) -> f64 {
    ranked.iter().filter(|r| r.rank < k).count() as f64 / ranked.len().max(1) as f64
}

/// The matching loss (ITM), in nats. BitGen does not have a head for it: the cosine is the logit of "these match", and the
/// loss is the mean binary cross-entropy over three cosines a pair: its own (a match), its text's with the most similar
/// picture that does not match it, and its picture's with the most similar text that does not (no matches). Where all
/// match, there is no such term. As a cosine is at most 1, the loss is at least `ln(1 + 1/e)` = 0.313 for matches.
///
/// `pairs` are numbers of texts and pictures; `hardest` are, for all texts and for all pictures, the cosines of
/// [`Ranked::hardest`]. Source: Li et al. 2021 (ALBEF), with the hardest in place of one that is drawn.
pub fn matching_loss(texts: &[Vec<f32>], images: &[Vec<f32>], pairs: &[[usize; 2]], hardest: [&[Ranked]; 2]) -> f64 {
    let (mut sum, mut n) = (0.0, 0);
    let mut add = |logit: f32| {
        // −ln sigmoid(logit), which for what does not match is taken of −logit.
        sum += f64::from(-logit).exp().ln_1p();
        n += 1;
    };
    for &[text, image] in pairs {
        if let (Some(t), Some(v)) = (texts.get(text), images.get(image)) {
            add(cosine(t, v));
        }
        let negative = |ranked: &[Ranked], i: usize| ranked.get(i).and_then(|r| r.hardest);
        for cosine in [negative(hardest[0], text), negative(hardest[1], image)].into_iter().flatten() {
            add(-cosine);
        }
    }
    sum / f64::from(n.max(1))
}

/// The products of a vector `[d]` with the columns of a matrix `[d, n]`.
fn products(vector: &[f32], matrix: &[f32]) -> Vec<f32> {
    let columns = matrix.len() / vector.len().max(1);
    let mut all = vec![0.0; columns];
    for (v, row) in vector.iter().zip(matrix.chunks(columns.max(1))) {
        all.iter_mut().zip(row).for_each(|(sum, m)| *sum += v * m);
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Unit vectors at these angles in degrees.
    fn at(degrees: &[f32]) -> Vec<Vec<f32>> {
        degrees.iter().map(|a| vec![a.to_radians().cos(), a.to_radians().sin()]).collect()
    }

    #[test]
    fn contrastive_loss_is_the_cross_entropy_both_ways() {
        let (texts, images) = (at(&[0.0, 60.0]), at(&[0.0, 90.0]));
        let c = |a: f32| f64::from(a.to_radians().cos()) / 0.5;
        let nll = |own: f64, others: &[f64]| (own.exp() + others.iter().map(|o| o.exp()).sum::<f64>()).ln() - own;
        let want = (nll(c(0.0), &[c(90.0)]) + nll(c(30.0), &[c(60.0)])) / 2.0;
        let back = (nll(c(0.0), &[c(60.0)]) + nll(c(30.0), &[c(90.0)])) / 2.0;
        assert!((contrastive_loss(&texts, &images, 0.5, None) - (want + back) / 2.0).abs() < 1e-6);
        // One column each: a picture at 180 degrees, a text at 0.
        let queues = Queues { columns: 1, texts: vec![1.0, 0.0], images: vec![-1.0, 0.0] };
        let want = (nll(c(0.0), &[c(90.0), c(180.0)]) + nll(c(30.0), &[c(60.0), c(120.0)])) / 2.0;
        let back = (nll(c(0.0), &[c(60.0), c(0.0)]) + nll(c(30.0), &[c(90.0), c(90.0)])) / 2.0;
        assert!((contrastive_loss(&texts, &images, 0.5, Some(&queues)) - (want + back) / 2.0).abs() < 1e-6);
    }

    #[test]
    fn ranks_count_wrong_ones_in_front_and_ties_against_the_model() {
        let (queries, candidates) = (at(&[0.0, 0.0, 90.0]), at(&[10.0, 20.0, 0.0, 20.0]));
        let ranked = rank(&queries, &candidates, &[vec![2], vec![1], vec![0, 3]]);
        assert_eq!(ranked.iter().map(|r| r.rank).collect::<Vec<_>>(), [0, 3, 1]);
        let cos = |a: f32| a.to_radians().cos();
        for (r, want) in ranked.iter().zip([cos(10.0), cos(0.0), cos(70.0)]) {
            assert!((r.hardest.unwrap() - want).abs() < 1e-6);
        }
        assert_eq!([1, 2, 4].map(|k| recall(&ranked, k)), [1.0 / 3.0, 2.0 / 3.0, 1.0]);
        assert_eq!(rank(&queries[..1], &candidates[..1], &[vec![0]]), [Ranked { rank: 0, hardest: None }]);
    }

    #[test]
    fn matching_loss_takes_each_pair_and_its_hardest_wrong_ones() {
        let (texts, images) = (at(&[0.0, 60.0]), at(&[0.0, 90.0]));
        let right = [vec![0], vec![1]];
        let hardest = [rank(&texts, &images, &right), rank(&images, &texts, &right)];
        let bce = |cosine: f64, matches: bool| (if matches { -cosine } else { cosine }).exp().ln_1p();
        let c = |a: f32| f64::from(a.to_radians().cos());
        let first = bce(c(0.0), true) + bce(c(90.0), false) + bce(c(60.0), false);
        let second = bce(c(30.0), true) + bce(c(60.0), false) + bce(c(90.0), false);
        let found = matching_loss(&texts, &images, &[[0, 0], [1, 1]], [&hardest[0], &hardest[1]]);
        assert!((found - (first + second) / 6.0).abs() < 1e-6);
        let alone = [Ranked { rank: 0, hardest: None }];
        let found = matching_loss(&texts[..1], &images[..1], &[[0, 0]], [&alone, &alone]);
        assert!((found - (1.0 + (-1f64).exp()).ln()).abs() < 1e-6);
    }
}
