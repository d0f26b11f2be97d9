// y = x · wᵀ for many rows (ops/matmul.rs): tiles of 32 rows, or with TALL 64, × 64 outputs, 16 columns at a time through
// workgroup memory; each thread keeps 4 or 8 rows × 4 outputs. Grid: x = blocks of 64 outputs, y = blocks of rows. Workgroup
// 16 × 8. Workgroup memory holds vectors of four rows or outputs: an index is checked once for four numbers.
#import matmul_factors
#import matmul
#import vectors

#ifdef TALL
const FOURS: u32 = 2u; // vectors of rows of a thread
#else
const FOURS: u32 = 1u;
#endif
const ROWS: u32 = 32u; // of FOURS = 1
const OUTS: u32 = 64u;
const DEPTH: u32 = 16u;
const ROW_VECTORS: u32 = ROWS * FOURS / 4u;
const OUT_VECTORS: u32 = OUTS / 4u;
// Columns lie one after the other, those of x and then those of w, with a gap so that threads write to different banks.
const ROW_PITCH: u32 = ROW_VECTORS + 1u;
const OUT_PITCH: u32 = OUT_VECTORS + 1u;
const OUTS_AT: u32 = DEPTH * ROW_PITCH;

var<workgroup> held: array<vec4<f32>, OUTS_AT + DEPTH * OUT_PITCH>;

// Where column `column` of a row of x or w is, or if it is behind the last one, the last four columns.
fn present(column: u32) -> u32 {
    return min(column, (params.d_in - 1u) / 4u * 4u);
}

// Four columns of a row of x, from `column` on; 0 behind the last one. Rows behind the last one are it again. No branch stands
// between loads, so that a thread waits for all of them together.
fn x_columns(row: u32, rows: u32, column: u32) -> vec4<f32> {
    let i = present(column);
    return select(vec4<f32>(), x4(min(row, rows - 1u) * params.d_in + i, params.d_in - i), column < params.d_in);
}

// The same of w.
fn w_columns(out: u32, column: u32) -> vec4<f32> {
    let i = present(column);
    return select(vec4<f32>(), weight4(min(out, params.d_out - 1u) * params.d_in + i, params.d_in - i), column < params.d_in);
}

// Holds four columns of four rows of x or w, `pitch` apart from `at` on.
fn hold(at: u32, pitch: u32, a: vec4<f32>, b: vec4<f32>, c: vec4<f32>, d: vec4<f32>) {
    held[at] = vec4<f32>(a.x, b.x, c.x, d.x);
    held[at + pitch] = vec4<f32>(a.y, b.y, c.y, d.y);
    held[at + 2u * pitch] = vec4<f32>(a.z, b.z, c.z, d.z);
    held[at + 3u * pitch] = vec4<f32>(a.w, b.w, c.w, d.w);
}

@compute @workgroup_size(16, 8)
fn main(
    @builtin(local_invocation_id) local: vec3<u32>,
    @builtin(local_invocation_index) id: u32,
    @builtin(workgroup_id) group: vec3<u32>,
) {
    let rows = counted(params.counted_by, params.rows) * params.per_row;
    let row0 = group.y * ROWS * FOURS;
    let out0 = group.x * OUTS;
    // What a thread loads for all of its workgroup: four columns of four rows of x or w.
    let four = id / (DEPTH / 4u);
    let column = id % (DEPTH / 4u) * 4u;
    var sums: array<vec4<f32>, 4u * FOURS>; // by row, over outputs
    for (var i0 = 0u; i0 < params.d_in; i0 += DEPTH) {
        workgroupBarrier();
        let i = i0 + column;
        if four < ROW_VECTORS {
            let row = row0 + 4u * four;
            hold(column * ROW_PITCH + four, ROW_PITCH, x_columns(row, rows, i), x_columns(row + 1u, rows, i),
                x_columns(row + 2u, rows, i), x_columns(row + 3u, rows, i));
        } else if four < ROW_VECTORS + OUT_VECTORS {
            let vector = four - ROW_VECTORS;
            let out = out0 + 4u * vector;
            hold(OUTS_AT + column * OUT_PITCH + vector, OUT_PITCH, w_columns(out, i), w_columns(out + 1u, i),
                w_columns(out + 2u, i), w_columns(out + 3u, i));
        }
        workgroupBarrier();
        for (var i = 0u; i < DEPTH; i++) {
            let w = held[OUTS_AT + i * OUT_PITCH + local.x];
            for (var f = 0u; f < FOURS; f++) {
                let x = held[i * ROW_PITCH + local.y * FOURS + f];
                for (var r = 0u; r < 4u; r++) { sums[4u * f + r] += component(x, r) * w; }
            }
        }
    }
    for (var r = 0u; r < 4u * FOURS; r++) {
        for (var o = 0u; o < 4u; o++) {
            let row = row0 + local.y * 4u * FOURS + r;
            let out = out0 + local.x * 4u + o;
            if row < rows && out < params.d_out { store(row, out, component(sums[r], o)); }
        }
    }
}
