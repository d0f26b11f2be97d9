//! Attention of new rows over the cache, which they get into first: rotary positions, the write of keys and values, and the
//! attention itself, in one launch where there is one row.

use crate::error::Result;
use crate::ops::attention::{Attention, Front};
use crate::ops::rope_kv_write::{Heads, RopeKvWrite};
use crate::ops::{AttentionShape, Composed, Pairing, QkNorm, Rotation, expect};
use crate::plan::{Caps, Io, Kernel, Op, PlanBuilder, Slot, Step, Variants};
use crate::tensor::{DType, Spec};

/// The composition of `rope_kv_write` and `attention` over the cache, for one row: its key and value get into the cache in the
/// launch that attends to them. Each workgroup turns the queries of its kv head; the one of the chunk
/// with the row's own key also writes the key and the value, which no other reads.
///
/// qkv `[1, (heads + 2·kv_heads)·d]` F32, rows `[1, 4]` with `seq_len = pos + 1`, table `[positions, pairs, 2]` F32, and with a
/// norm of heads its weights `[2, d]` → y `[1, heads·d]` F32, and the caches k, v `[capacity, kv_heads·d]` F32 or F16. Several rows
/// may be of one sequence, where a row attends to what another one writes; they take two launches.
#[derive(Debug)]
struct RopeAttention {
    rope: RopeKvWrite,
    /// That of either cache.
    cache: Spec,
}

/// Elements that a thread turns: those of a vector of the cache.
const EIGHT: usize = 8;

impl PlanBuilder {
    /// Causal attention of each row over its sequence in the cache, into which its key and value go first: `[n, heads·d]`, and
    /// the turned queries where they are a slot of their own. What it reads is that of [`PlanBuilder::rope_kv_write`].
    #[track_caller]
    pub fn rope_attention(
        &self,
        qkv: Slot,
        rows: Slot,
        (rotation, positions): (&Rotation, usize),
        norm: Option<QkNorm>,
        shape: AttentionShape,
        kv: [Slot; 2],
    ) -> (Slot, Option<Slot>) {
        let rope = RopeKvWrite { shape, pairing: rotation.pairing, norm: norm.map(|n| n.norm) };
        let op = RopeAttention { rope, cache: self.spec(kv[0]) };
        if self.is_traced() || self.spec(rows).shape[0] != 1 || !op.is_possible(rotation.frequencies.len()) {
            let q = self.rope_kv_write(qkv, rows, (rotation, positions), norm, shape, kv);
            return (self.cached_attention(q, kv[0], kv[1], rows, shape), Some(q));
        }
        let table = self.rotation_table(rotation, positions);
        let width = shape.heads * shape.d;
        let y = self.temp(Spec::counted(&[1, width], DType::F32, self.spec(qkv).counted_by));
        let inputs: Vec<Slot> = [qkv, rows, table].into_iter().chain(norm.map(|n| n.weights)).collect();
        self.push_into(op, &inputs, &[y, kv[0], kv[1]]);
        (y, None)
    }
}

impl RopeAttention {
    fn attention(&self) -> Attention {
        Attention::cached(self.rope.shape)
    }

    /// Whether the kernels for few rows over the cache fit, and eight elements turn with eight others or among themselves.
    /// A word of 8-bit integers and the scales of two heads belong to several workgroups.
    fn is_possible(&self, pairs: usize) -> bool {
        let per_eight = if self.rope.pairing == Pairing::Interleaved { EIGHT / 2 } else { EIGHT };
        let q = self.queries(&Spec::fixed(&[1, 1], DType::F32));
        let decodes = self.attention().is_decode(&[&q, &self.cache, &self.cache]);
        decodes && self.cache.dtype != DType::Int8 && pairs > 0 && pairs.is_multiple_of(per_eight)
    }

    /// The turned queries, counted as `like` is.
    fn queries(&self, like: &Spec) -> Spec {
        like.with_last(self.rope.shape.heads * self.rope.shape.d, DType::F32)
    }
}

impl Op for RopeAttention {
    fn name(&self) -> &'static str {
        "rope_attention"
    }

    fn infer(&self, inputs: &[&Spec]) -> Result<Vec<Spec>> {
        expect("rows", inputs[1], &[1, inputs[1].width()], &[DType::U32])?;
        self.rope.infer(inputs)
    }

    fn check_outputs(&self, inputs: &[&Spec], outputs: &[&Spec]) -> Result<()> {
        self.infer(inputs)?;
        self.rope.check_outputs(inputs, outputs)
    }

    fn cpu(&self, step: &Step, io: &mut Io) {
        let mut chain = Composed::new(step, false, io);
        let inputs: Vec<usize> = (0..io.inputs.len()).collect();
        let q = chain.apply_to_states(&self.rope, &inputs, io, 1);
        chain.finish_from_states(&self.attention(), [q, 1], io, 1);
    }

    /// Keys and values by the calling thread, which takes less time than a call; queries by the thread that attends with them.
    fn cpu_fast(&self, step: &Step, io: &mut Io) {
        let (heads, n) = (Heads::new(&self.rope, io), step.rows_in_use(io.spec(0)));
        let (y, caches) = io.outputs.split_at_mut(1);
        let [k, v] = caches else { unreachable!("the outputs are y, keys and values") };
        heads.write_all(n, [k, v]);
        let inputs = vec![io.inputs[0], (k.0, &*k.1), (v.0, &*v.1), io.inputs[1]];
        let outputs = y.iter_mut().map(|(spec, words)| (*spec, &mut **words)).collect();
        let make_query = |r: usize, h: usize, to: &mut [f32]| heads.turned(r, h, to);
        self.attention().run(n, &mut Io { inputs, outputs, threads: io.threads }, Some(&make_query));
    }

    fn bytes_read(&self, step: &Step, inputs: &[(&Spec, u64)]) -> u64 {
        let caches = 2 * step.contexts(&self.cache, 4 * self.cache.words() as u64);
        self.rope.bytes_read(step, inputs) + caches
    }

    fn kernel(&self, caps: &Caps, inputs: &[&Spec], outputs: &[&Spec]) -> Kernel {
        self.variants(caps, inputs, outputs).take(None).kernel
    }

    fn variants(&self, caps: &Caps, inputs: &[&Spec], outputs: &[&Spec]) -> Variants {
        let RopeKvWrite { pairing, norm, .. } = self.rope;
        let front = Front { pairs: inputs[2].shape[1], interleaved: pairing == Pairing::Interleaved, norm };
        let q = self.queries(inputs[0]);
        self.attention().decode(caps, &[&q, outputs[1], outputs[2]], Some(front))
    }
}
