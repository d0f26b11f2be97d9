//! Where a token's attention goes: attention rollout, for inspection.
//!
//! Fused kernels do not store attention weights. A row is therefore run again by a plan that has them as outputs; other
//! runs cost nothing more.

use std::ops::Range;
use std::sync::Arc;

use crate::engine::programs::{Program, floats, required};
use crate::engine::resident::Resident;
use crate::engine::{Engine, Session};
use crate::error::{Error, Result};
use crate::files::Image;
use crate::models::{ImageTrace, TextShape, slots};
use crate::ops::Row;
use crate::plan::{Plan, Step};

/// Where the attention of one text token goes. See [`AttentionRollout::attention`].
#[derive(Debug, Clone, PartialEq)]
pub struct TokenAttention {
    /// The token's number among the session's text tokens.
    pub token: usize,
    /// By layer: its attention to every row up to itself, those of pictures first; the mean over heads. Each adds up
    /// to 1.
    pub layers: Vec<Vec<f32>>,
    /// The pictures' part of it.
    pub images: Vec<ImageAttention>,
}

/// The part of a token's attention that goes to a picture, and where in the picture it leads.
#[derive(Debug, Clone, PartialEq)]
pub struct ImageAttention {
    /// The share of the token's attention that goes to this picture's rows, the mean over layers: 0 to 1.
    pub share: f32,
    /// Which rows of [`TokenAttention::layers`] are the picture's.
    pub rows: Range<usize>,
    /// Patches per side.
    pub grid: usize,
    /// Patches per side of the blocks that the model joins: attention does not distinguish the patches of a block.
    pub block: usize,
    /// `[grid, grid]`, row by row from the top left: how that attention spreads over the patches; adds up to 1.
    pub patches: Vec<f32>,
}

/// Attention rollout (Abnar & Zuidema 2020) along the stages by which a model's image tokens come from patches.
///
/// A traced program of a row of text is prepared when attention is first asked for, and given back with the rollout; what
/// was found of a picture is kept as long.
#[derive(Debug)]
pub struct AttentionRollout {
    engine: Arc<Resident>,
    text: Option<(TextShape, Program)>,
    pictures: Vec<(Arc<Image>, Origin)>,
}

/// How a picture's tokens came from its patches.
#[derive(Debug, Clone)]
struct Origin {
    /// `[tokens, cells]`: each row adds up to 1.
    cells: Vec<f32>,
    grid: usize,
    block: usize,
}

impl AttentionRollout {
    /// A rollout for the sessions of an engine.
    pub fn new(engine: &Engine) -> Self {
        AttentionRollout { engine: engine.resident().clone(), text: None, pictures: Vec::new() }
    }

    /// Where the attention of text token `token` goes, counted from 0 in [`Session::tokens`]: of the row that reads this
    /// token and predicts the next one. So where the model looked as it wrote token n is the attention of n − 1.
    ///
    /// The row runs once more with its attention as output, the mean over heads; for the session it has run as before.
    /// For each picture, the mean over layers of what goes to its tokens is led back to the patches by the attention that
    /// made these tokens. For EmberNet that is the mean of the projector's two cross attentions times the pooler's, and
    /// each of the compressor's blocks is 2 × 2 patches. Left out are residual connections, the sizes of the values that
    /// are added up, the mixing between patches inside the encoder, and attention to text that had read the picture: a
    /// patch stands for the token that the encoder made at its place.
    ///
    /// # Errors
    /// [`Error::Argument`] with the range if there is no such token, and for a session of another engine;
    /// [`Error::OutOfMemory`] if the traced plan does not fit on the device, [`Error::DeviceLost`] if the device was lost.
    pub fn attention(&mut self, session: &mut Session, token: usize) -> Result<TokenAttention> {
        if !Arc::ptr_eq(&self.engine, &session.engine) {
            return Err(Error::argument("session", "belongs to another engine"));
        }
        let n = session.tokens().len();
        if token >= n {
            let range = if n == 0 { "there are none".into() } else { format!("there are 0 to {}", n - 1) };
            return Err(Error::argument("text token", format!("is {token}; {range}")));
        }
        session.advance(session.image_rows() + token)?;
        let layers = self.trace_text(session.state_slot(), session.text_row(token))?;
        let per_image = session.image_rows() / session.pictures().len().max(1);
        let part = |(i, picture): (usize, &Arc<Image>)| -> Result<ImageAttention> {
            Ok(self.origin(picture)?.attention(&layers, i * per_image..(i + 1) * per_image))
        };
        let images = session.pictures().iter().enumerate().map(part).collect::<Result<_>>()?;
        Ok(TokenAttention { token, layers, images })
    }

    /// Runs one row of text again, whose sequence is in the rows of a slot up to it: by layer, what it attends to.
    fn trace_text(&mut self, slot: usize, row: Row) -> Result<Vec<Vec<f32>>> {
        let (runner, model) = (&mut *self.engine.runner()?, self.engine.model.as_ref());
        let shape = TextShape { max_rows: 1, max_outputs: 1, images: false, ..runner.bounds() };
        let row = Row { seq_base: self.engine.states.range(slot).start as u32, ..row };
        let backend = runner.backend.as_mut();
        let (_, program) = match &self.text {
            // A cache that has grown has released the programs for the smaller one.
            Some(text) if text.0 == shape => text,
            _ => self.text.insert((shape, Program::prepare(backend, &Arc::new(model.trace_text(&shape)?))?)),
        };
        program.write(backend, slots::ROWS, bytemuck::cast_slice(&[row]))?;
        // Without outputs, what comes behind the last layer does nothing.
        program.run(backend, &Step::new(1, 0, row.seq_len as usize))?;
        let names: Vec<String> = (0..model.info().layers).map(slots::attention).collect();
        let wanted: Vec<_> = names.iter().map(|name| (name.as_str(), row.seq_len as usize)).collect();
        Ok(program.read(backend, &wanted)?.into_iter().map(|words| floats(&words)).collect())
    }

    /// How a picture's tokens came from its patches; it is encoded again for that, once.
    fn origin(&mut self, picture: &Arc<Image>) -> Result<Origin> {
        if let Some((_, origin)) = self.pictures.iter().find(|(known, _)| Arc::ptr_eq(known, picture)) {
            return Ok(origin.clone());
        }
        let origin = trace_image(&self.engine, picture)?;
        self.pictures.push((picture.clone(), origin.clone()));
        Ok(origin)
    }
}

impl Drop for AttentionRollout {
    fn drop(&mut self) {
        if let (Some((_, program)), Ok(mut runner)) = (&self.text, self.engine.runner()) {
            runner.backend.release(program.id);
        }
    }
}

/// Encodes a picture again: where its tokens came from. Its program holds large matrices, and goes when it has run.
fn trace_image(engine: &Resident, image: &Image) -> Result<Origin> {
    let info = engine.image_info()?;
    let ImageTrace { plan, stages, grid, block } = engine.model.trace_image()?;
    let shapes = stage_shapes(&plan, &stages, info.tokens, grid.div_ceil(block.max(1)).pow(2))?;
    let names = stages.iter().zip(&shapes).flat_map(|(names, [n, m])| names.iter().map(move |s| (s.clone(), n * m)));
    let program = Program::prepare(engine.runner()?.backend.as_mut(), &Arc::new(plan))?;
    let matrices = engine.run_image(&program, image, names.collect(), None);
    if let Ok(mut runner) = engine.runner() {
        runner.backend.release(program.id);
    }
    let mut read = matrices?.into_iter();
    let mut cells = identity(info.tokens);
    for (stage, [n, m]) in stages.iter().zip(shapes) {
        let layers: Vec<Vec<f32>> = read.by_ref().take(stage.len()).collect();
        cells = product(&cells, &mean(&layers), n, m);
    }
    Ok(Origin { cells, grid, block })
}

/// The matrices' sizes `[n, m]` of each stage: the first has a row for each image token, the last a column for each cell.
fn stage_shapes(plan: &Plan, stages: &[Vec<String>], tokens: usize, cells: usize) -> Result<Vec<[usize; 2]>> {
    let shape = |name: &String| -> Result<[usize; 2]> {
        let spec = plan.spec(required(plan.outputs.get(name).copied(), name)?);
        Ok([spec.rows(), spec.width()])
    };
    let (mut n, mut all) = (tokens, Vec::new());
    for stage in stages {
        let shapes = stage.iter().map(shape).collect::<Result<Vec<_>>>()?;
        let width = shapes.first().map_or(0, |[_, width]| *width);
        if shapes.iter().any(|shape| *shape != [n, width]) {
            return Err(Error::format("the model's trace", format!("has a stage that is not [{n}, {width}]")));
        }
        all.push([n, width]);
        n = width;
    }
    if n != cells {
        return Err(Error::format("the model's trace", format!("leads to {n} cells, expected {cells}")));
    }
    Ok(all)
}

/// The matrix that changes nothing.
fn identity(n: usize) -> Vec<f32> {
    (0..n * n).map(|i| f32::from(i % (n + 1) == 0)).collect()
}

/// The mean of matrices of one size, element by element.
fn mean(all: &[Vec<f32>]) -> Vec<f32> {
    let n = all.len().max(1) as f32;
    let sum = |i: usize| all.iter().filter_map(|m| m.get(i)).sum::<f32>() / n;
    (0..all.first().map_or(0, Vec::len)).map(sum).collect()
}

/// a `[.., n]` times b `[n, m]`.
fn product(a: &[f32], b: &[f32], n: usize, m: usize) -> Vec<f32> {
    let mut out = Vec::with_capacity(a.len() / n.max(1) * m);
    for row in a.chunks_exact(n.max(1)) {
        out.extend((0..m).map(|j| row.iter().zip(b.iter().skip(j).step_by(m)).map(|(a, b)| a * b).sum::<f32>()));
    }
    out
}

impl Origin {
    /// The part of a token's attention, by layer, that goes to the picture in these rows.
    pub fn attention(&self, layers: &[Vec<f32>], rows: Range<usize>) -> ImageAttention {
        let at = |layer: &Vec<f32>| layer.get(rows.clone()).unwrap_or_default().to_vec();
        let tokens = mean(&layers.iter().map(at).collect::<Vec<_>>());
        let share: f32 = tokens.iter().sum();
        let a_side = self.grid.div_ceil(self.block.max(1));
        let cells = product(&tokens, &self.cells, tokens.len(), a_side * a_side);
        // A cell's part goes to its patches evenly; those at an edge have fewer.
        let patches_of = |cell: usize| self.block.min(self.grid - cell * self.block);
        let patch = |i: usize| {
            let [y, x] = [i / self.grid / self.block, i % self.grid / self.block];
            let part = cells.get(y * a_side + x).copied().unwrap_or(0.0);
            if share > 0.0 { part / share / (patches_of(y) * patches_of(x)) as f32 } else { 0.0 }
        };
        let patches = (0..self.grid * self.grid).map(patch).collect();
        ImageAttention { share, rows, grid: self.grid, block: self.block, patches }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cell_at_the_edge_gives_all_to_the_patches_that_it_has() {
        // 3 × 3 patches in 2 × 2 cells of 4, 2, 2 and 1; two tokens, one of the first cell and one of the last.
        let origin = Origin { cells: vec![1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0], grid: 3, block: 2 };
        let layers = [vec![0.1, 0.2, 0.3, 0.4], vec![0.1, 0.4, 0.1, 0.4]];
        let found = origin.attention(&layers, 1..3);
        assert!((found.share - 0.5).abs() < 1e-6);
        let want = [0.15, 0.15, 0.0, 0.15, 0.15, 0.0, 0.0, 0.0, 0.4];
        assert!(found.patches.iter().zip(want).all(|(f, w)| (f - w).abs() < 1e-6), "{found:?}");
    }

    #[test]
    fn stages_multiply_in_order() {
        let a = [1.0, 2.0, 3.0, 4.0];
        assert_eq!(product(&identity(2), &a, 2, 2), a);
        assert_eq!(product(&a, &[1.0, 0.0, 2.0, 0.0, 1.0, 2.0], 2, 3), [1.0, 2.0, 6.0, 3.0, 4.0, 14.0]);
        assert_eq!(mean(&[vec![1.0, 0.0], vec![0.0, 1.0]]), [0.5, 0.5]);
    }
}
