//! From rows to vectors: token embeddings, and image vectors in their place.

use crate::error::Result;
use crate::ops::{expect, require};
use crate::params;
use crate::plan::{Caps, Extent, Grid, Io, Kernel, Op, ParamStruct, PlanBuilder, Slot, Step};
use crate::quant::groups::GroupStack;
use crate::shader;
use crate::tensor::{DType, Spec};

/// One row of a batch, as the words of the `rows` input.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, bytemuck::Pod, bytemuck::Zeroable)]
pub struct Row {
    /// Token id, with [`TOKEN_IMAGE`] or [`TOKEN_CLAMP`].
    pub token: u32,
    /// Position in its sequence, from 0.
    pub pos: u32,
    /// First row of its sequence in the KV cache.
    pub seq_base: u32,
    /// Tokens that the row attends to, itself included: `pos + 1`.
    pub seq_len: u32,
}

/// Words of a [`Row`].
pub const ROW_WORDS: usize = size_of::<Row>() / 4;
/// Flag of [`Row::token`]: the row takes its vector from the image input.
pub const TOKEN_IMAGE: u32 = 1 << 31;
/// Flag of [`Row::token`]: the embedding is clamped (EmberNet's text beside an image).
pub const TOKEN_CLAMP: u32 = 1 << 30;

/// x[r] = table[token of row r] or image[r], clamped to ±bound where the row's flags say so; or table[position of row r].
///
/// rows `[n, 4]` U32, table `[vocab of this shard, d]` F32 or F16, or `[1, vocab of this shard, d]` Groups, image `[n, d]` F32 → x `[n, d]` F32. Tokens behind
/// the vocabulary read the last one. A shard writes only the rows whose token it holds, from number `first` on.
#[derive(Debug)]
struct Embed {
    bound: f32,
    first: usize,
    vocab: usize,
    image: bool,
    /// Which word of a row picks the vector.
    word: usize,
}

/// [`Row::token`] among a row's words.
const TOKEN: usize = 0;
/// [`Row::pos`] among a row's words.
const POS: usize = 1;

params!(EmbedParams { width: u32, first: u32, shard: u32, vocab: u32, bound: f32, word: u32 });

impl PlanBuilder {
    /// Vectors of `rows` from a table that may be cut into shards by rows, and from `image` where given.
    #[track_caller]
    pub fn embed(&self, rows: Slot, shards: &[Slot], image: Option<Slot>, bound: f32) -> Slot {
        let vocab = shards.iter().map(|&s| self.spec(s).rows()).sum();
        let op = |first| Embed { bound, first, vocab, image: image.is_some(), word: TOKEN };
        let inputs = |shard| [rows, shard].into_iter().chain(image).collect::<Vec<Slot>>();
        let x = self.push(op(0), &inputs(shards[0]));
        let mut first = self.spec(shards[0]).rows();
        for &shard in &shards[1..] {
            self.push_into(op(first), &inputs(shard), &[x]);
            first += self.spec(shard).rows();
        }
        x
    }

    /// Vectors of the rows' positions, from a table `[positions, d]`.
    #[track_caller]
    pub fn embed_positions(&self, rows: Slot, table: Slot) -> Slot {
        let vocab = self.spec(table).rows();
        self.push(Embed { bound: f32::INFINITY, first: 0, vocab, image: false, word: POS }, &[rows, table])
    }
}

impl Op for Embed {
    fn name(&self) -> &'static str {
        "embed"
    }

    fn infer(&self, inputs: &[&Spec]) -> Result<Vec<Spec>> {
        let (rows, table) = (inputs[0], inputs[1]);
        let n = rows.shape[0];
        expect("rows", rows, &[n, ROW_WORDS], &[DType::U32])?;
        let is_table = match table.dtype {
            DType::F32 | DType::F16 => table.shape.len() == 2,
            DType::Groups { .. } => table.shape.len() == 3 && table.shape[0] == 1,
            _ => false,
        };
        require("table", table, is_table, "[vocab, d] F32 or F16, or [1, vocab, d] Groups")?;
        if self.image {
            expect("image vectors", inputs[2], &[n, table.width()], &[DType::F32])?;
        }
        Ok(vec![Spec::counted(&[n, table.width()], DType::F32, rows.counted_by)])
    }

    fn cpu(&self, step: &Step, io: &mut Io) {
        let (rows, table, width) = (io.u32s(0), io.floats(1), io.spec(1).width());
        let shard = io.spec(1).rows();
        let groups = matches!(io.spec(1).dtype, DType::Groups { .. }).then(|| GroupStack(io.u32s(1)).part(0));
        let image = if self.image { io.f32s(2) } else { &[] };
        let n = step.rows_in_use(io.spec(0));
        let x = io.out_f32s(0);
        for r in 0..n {
            let word = rows[r * ROW_WORDS + self.word];
            let token = ((word & !(TOKEN_IMAGE | TOKEN_CLAMP)) as usize).min(self.vocab - 1);
            let from_image = self.image && word & TOKEN_IMAGE != 0;
            if !from_image && !(self.first..self.first + shard).contains(&token) {
                continue;
            }
            let bound = if word & (TOKEN_IMAGE | TOKEN_CLAMP) != 0 { self.bound } else { f32::INFINITY };
            for i in 0..width {
                let at = r * width + i;
                let v = match groups {
                    _ if from_image => image[at],
                    Some(groups) => groups.value(token - self.first, i),
                    None => table.get((token - self.first) * width + i),
                };
                x[at] = v.clamp(-bound, bound);
            }
        }
    }

    fn bytes_read(&self, step: &Step, inputs: &[(&Spec, u64)]) -> u64 {
        let used = |i: usize| inputs.get(i).map_or(0, |(spec, bytes)| step.used(spec, *bytes));
        // A row reads one row of one shard; which one is not known.
        let table = inputs[1].1 * step.rows_in_use(inputs[0].0) as u64 / self.vocab as u64;
        used(0) + table + used(2)
    }

    fn kernel(&self, _: &Caps, inputs: &[&Spec], outputs: &[&Spec]) -> Kernel {
        let params = EmbedParams {
            width: outputs[0].width() as u32,
            first: self.first as u32,
            shard: inputs[1].rows() as u32,
            vocab: self.vocab as u32,
            bound: self.bound,
            word: self.word as u32,
        };
        let groups = matches!(inputs[1].dtype, DType::Groups { .. });
        let flags = [(self.image, "IMAGE"), (inputs[1].dtype == DType::F16, "F16"), (groups, "GROUPS")];
        let defines = flags.into_iter().filter_map(|(on, name)| on.then_some(name)).collect();
        let grid = Grid::x(Extent::rows(&outputs[0].leading_only(), 1, 1));
        Kernel { source: shader!("rows/embed"), defines, overrides: vec![], params: params.params(), grid }
    }
}
