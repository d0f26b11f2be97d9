//! Which experts the rows of a session chose: logged in every run.

use std::ops::Range;

use crate::engine::session::Session;
use crate::error::{Error, Result};
use crate::models::ModelInfo;

/// Which experts the rows of a session chose in each layer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Routing {
    /// Experts to choose from; [`crate::models::ModelInfo::experts`] has their names.
    pub experts: usize,
    /// Experts chosen by a row in a layer.
    pub per_row: usize,
    /// Rows that come from pictures; those of text follow.
    pub image_rows: usize,
    /// By layer, the numbers of the experts that each row chose, the likeliest first: `[row · per_row + i]`.
    pub choices: Vec<Vec<u32>>,
}

impl Routing {
    /// Layers.
    pub fn layers(&self) -> usize {
        self.choices.len()
    }

    /// Rows: those of pictures, then those of text.
    pub fn rows(&self) -> usize {
        self.choices.first().map_or(0, |l| l.len() / self.per_row.max(1))
    }

    /// The experts that a row chose in a layer, the likeliest first; none outside the session.
    pub fn chosen(&self, layer: usize, row: usize) -> &[u32] {
        let choices = self.choices.get(layer).map_or(&[][..], Vec::as_slice);
        choices.get(row * self.per_row..(row + 1) * self.per_row).unwrap_or_default()
    }

    /// The share of some rows that chose an expert in a layer, 0 to 1.
    pub fn share_of_rows(&self, expert: usize, layer: usize, rows: Range<usize>) -> f32 {
        let n = rows.len().max(1) as f32;
        rows.filter(|&row| self.chosen(layer, row).contains(&(expert as u32))).count() as f32 / n
    }

    /// The share of the layers in which a row chose an expert, 0 to 1.
    pub fn share_of_layers(&self, expert: usize, row: usize) -> f32 {
        let layers = (0..self.layers()).filter(|&l| self.chosen(l, row).contains(&(expert as u32)));
        layers.count() as f32 / self.layers().max(1) as f32
    }
}

impl Session {
    /// The model, if it is a mixture of experts.
    fn mixture(&self) -> Result<&ModelInfo> {
        let info = self.engine.model.info();
        if info.experts.is_empty() {
            let object = format!("the routing of {}", info.family);
            return Err(Error::Unsupported { object, problem: "the model has no experts".into() });
        }
        Ok(info)
    }

    /// The choices of the rows that went through the model.
    fn routing_so_far(&self) -> Result<Routing> {
        let info = self.mixture()?;
        let choices = self.engine.routing(self.state_slot(), self.cached())?;
        let (experts, per_row) = (info.experts.len(), info.experts_per_token);
        Ok(Routing { experts, per_row, image_rows: self.image_rows(), choices })
    }

    /// How often each expert was chosen so far: `[layer][expert]`, each layer's shares adding up to 1.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for a model without a mixture of experts, [`Error::DeviceLost`] if the device was lost.
    pub fn expert_shares(&self) -> Result<Vec<Vec<f32>>> {
        let Routing { experts, choices, .. } = self.routing_so_far()?;
        let share = |choices: Vec<u32>| {
            let mut counts = vec![0.0; experts];
            for &e in &choices {
                if let Some(count) = counts.get_mut(e as usize) {
                    *count += 1.0 / choices.len() as f32;
                }
            }
            counts
        };
        Ok(choices.into_iter().map(share).collect())
    }

    /// Which experts every row of the session chose, pending ones included: those are run first.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for a model without a mixture of experts, [`Error::DeviceLost`] if the device was lost.
    pub fn routing(&mut self) -> Result<Routing> {
        self.mixture()?;
        self.advance(self.len())?;
        self.routing_so_far()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_count_what_was_chosen() {
        // Two layers, three rows, two experts per row.
        let choices = vec![vec![0, 1, 0, 2, 1, 2], vec![2, 1, 1, 0, 0, 2]];
        let routing = Routing { experts: 3, per_row: 2, image_rows: 1, choices };
        assert_eq!((routing.layers(), routing.rows()), (2, 3));
        assert_eq!(routing.chosen(0, 2), [1, 2]);
        assert!(routing.chosen(0, 3).is_empty() && routing.chosen(2, 0).is_empty());
        assert_eq!(routing.share_of_rows(0, 0, 1..3), 0.5);
        assert_eq!(routing.share_of_layers(2, 2), 1.0);
        assert_eq!(routing.share_of_layers(1, 1), 0.5);
    }
}
