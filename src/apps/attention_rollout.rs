//! What a model did, to look at: the experts of each row, and where a token's attention goes.
//!
//! Experts are logged in every run. Attention is not: a fused kernel never writes its weights down. So a row is run once
//! more by a plan that has them as outputs. Such a plan is prepared when it is first asked for, and other runs pay
//! nothing. That of a picture, which runs once a picture, holds large matrices, and gives them back when it has run.

use std::ops::Range;
use std::sync::Arc;

use crate::engine::open::Inner;
use crate::engine::runner::{Core, floats, required};
use crate::error::{Error, Result};
use crate::files::Image;
use crate::models::{ChatModel, ImageTrace, TextShape, slots};
use crate::ops::Row;
use crate::plan::{ProgramId, Slot, Step};

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

/// Where the attention of one text token goes. See [`crate::engine::Session::attention`].
#[derive(Debug, Clone, PartialEq)]
pub struct Attention {
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
    /// Which rows of [`Attention::layers`] are the picture's.
    pub rows: Range<usize>,
    /// Patches a side.
    pub grid: usize,
    /// Patches a side of the blocks that the model joins: attention does not tell the patches of a block apart.
    pub block: usize,
    /// `[grid, grid]`, row by row from the top left: how that attention spreads over the patches; adds up to 1.
    pub patches: Vec<f32>,
}

/// Programs that are prepared when they are first asked for.
#[derive(Debug, Default)]
pub(crate) struct Traces {
    text: Option<TextProgram>,
}

/// A traced step of one row.
#[derive(Debug)]
struct TextProgram {
    id: ProgramId,
    nodes: usize,
    rows: Slot,
    layers: Vec<Slot>,
}

/// A traced image plan. The matrices of each stage come with their rows and columns.
#[derive(Debug)]
struct ImageProgram {
    id: ProgramId,
    nodes: usize,
    pixels: Slot,
    stages: Vec<Vec<(Slot, [usize; 2])>>,
    grid: usize,
    block: usize,
}

/// How a picture's tokens came from its patches.
#[derive(Debug)]
pub(crate) struct Origin {
    /// `[tokens, cells]`: each row adds up to 1.
    cells: Vec<f32>,
    grid: usize,
    block: usize,
}

impl TextProgram {
    fn new(core: &mut Core, model: &dyn ChatModel) -> Result<Self> {
        let shape = TextShape { max_rows: 1, max_outputs: 1, images: false, ..core.text_shape() };
        let plan = Arc::new(model.trace_text(&shape)?);
        let layer = |i| required(plan.outputs.get(&slots::attention(i)).copied(), &slots::attention(i));
        Ok(TextProgram {
            nodes: plan.nodes.len(),
            rows: required(plan.input(slots::ROWS), slots::ROWS)?,
            layers: (0..model.info().layers).map(layer).collect::<Result<_>>()?,
            id: core.backend.prepare(plan, false)?,
        })
    }
}

impl ImageProgram {
    fn new(core: &mut Core, model: &dyn ChatModel, tokens: usize) -> Result<Self> {
        let ImageTrace { plan, stages, grid, block } = model.trace_image()?;
        let plan = Arc::new(plan);
        let matrix = |name: &String| -> Result<(Slot, [usize; 2])> {
            let slot = required(plan.outputs.get(name).copied(), name)?;
            Ok((slot, [plan.spec(slot).rows(), plan.spec(slot).width()]))
        };
        let stages: Vec<Vec<_>> =
            stages.iter().map(|names| names.iter().map(matrix).collect()).collect::<Result<_>>()?;
        let mut n = tokens;
        for stage in &stages {
            let width = stage.first().map_or(0, |(_, [_, width])| *width);
            if stage.iter().any(|&(_, shape)| shape != [n, width]) {
                return Err(Error::format("the model's trace", format!("has a stage that is not [{n}, {width}]")));
            }
            n = width;
        }
        let cells = grid.div_ceil(block.max(1)).pow(2);
        if n != cells {
            return Err(Error::format("the model's trace", format!("leads to {n} cells, expected {cells}")));
        }
        Ok(ImageProgram {
            nodes: plan.nodes.len(),
            pixels: required(plan.input(slots::PIXELS), slots::PIXELS)?,
            id: core.backend.prepare(plan, false)?,
            stages,
            grid,
            block,
        })
    }

    /// The words of all stages' matrices for a picture.
    fn run(&self, core: &mut Core, pixels: &[f32]) -> Result<Vec<Vec<u32>>> {
        core.backend.write(self.id, self.pixels, 0, bytemuck::cast_slice(pixels))?;
        core.backend.run(self.id, &Step::FULL, 0..self.nodes)?;
        let ranges: Vec<_> = self.stages.iter().flatten().map(|&(slot, [n, m])| (slot, 0..n * m)).collect();
        core.backend.read(self.id, &ranges)
    }
}

impl Inner {
    /// Runs one row of text again, whose sequence is in the cache up to it: by layer, what it attends to.
    pub fn trace_text(&self, row: Row) -> Result<Vec<Vec<f32>>> {
        let core = &mut *self.core();
        let program = match core.traces.text.take() {
            Some(program) => program,
            None => TextProgram::new(core, self.model.as_ref())?,
        };
        let program = core.traces.text.insert(program);
        core.backend.write(program.id, program.rows, 0, bytemuck::cast_slice(&[row]))?;
        // Without outputs, what comes behind the last layer does nothing.
        let step = Step { rows: 1, outputs: 0, context: row.seq_len, reserved: 0 };
        core.backend.run(program.id, &step, 0..program.nodes)?;
        let ranges: Vec<_> = program.layers.iter().map(|&slot| (slot, 0..row.seq_len as usize)).collect();
        Ok(core.backend.read(program.id, &ranges)?.into_iter().map(|words| floats(&words)).collect())
    }

    /// Encodes a picture again: where its tokens came from.
    pub fn trace_image(&self, image: &Image) -> Result<Origin> {
        let info = self.image_info()?;
        let pixels = image.resized(info.size)?.pixel_values(info.mean, info.std);
        let core = &mut *self.core();
        let program = ImageProgram::new(core, self.model.as_ref(), info.tokens)?;
        let matrices = program.run(core, &pixels);
        core.backend.release(program.id);
        let mut read = matrices?.into_iter().map(|words| floats(&words));
        let mut cells = identity(info.tokens);
        for stage in &program.stages {
            let layers: Vec<Vec<f32>> = read.by_ref().take(stage.len()).collect();
            let [n, m] = stage.first().map_or([0; 2], |(_, shape)| *shape);
            cells = product(&cells, &mean(&layers), n, m);
        }
        Ok(Origin { cells, grid: program.grid, block: program.block })
    }
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

    #[test]
    fn shares_count_what_was_chosen() {
        // Two layers, three rows, two experts a row.
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
