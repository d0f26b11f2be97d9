// y = x · wᵀ for many rows (ops/matmul.rs): tiles of 32 rows × 64 outputs, 16 columns at a time through workgroup memory;
// each thread keeps 4 rows × 4 outputs. Grid: x = blocks of 64 outputs, y = blocks of 32 rows. Workgroup 16 × 8.
#import matmul_factors
#import matmul
#import vectors

const ROWS: u32 = 32u;
const OUTS: u32 = 64u;
const DEPTH: u32 = 16u;
const THREADS: u32 = 128u;
// Columns lie one after the other, with a gap so that threads write to different banks.
const ROW_PITCH: u32 = ROWS + 1u;
const OUT_PITCH: u32 = OUTS + 1u;

var<workgroup> xs: array<f32, DEPTH * ROW_PITCH>;
var<workgroup> ws: array<f32, DEPTH * OUT_PITCH>;

@compute @workgroup_size(16, 8)
fn main(
    @builtin(local_invocation_id) local: vec3<u32>,
    @builtin(local_invocation_index) id: u32,
    @builtin(workgroup_id) group: vec3<u32>,
) {
    let rows = counted(params.counted_by, params.rows) * params.per_row;
    let row0 = group.y * ROWS;
    let out0 = group.x * OUTS;
    let vec4s = DEPTH / 4u;
    var sums: array<vec4<f32>, 4>; // by row, over outputs 16 apart
    for (var i0 = 0u; i0 < params.d_in; i0 += DEPTH) {
        workgroupBarrier();
        for (var t = id; t < (ROWS + OUTS) * vec4s; t += THREADS) {
            let at = t / vec4s;
            let column = t % vec4s * 4u;
            let left = params.d_in - min(i0 + column, params.d_in); // elements of the row from here on
            // Rows and outputs behind the last ones are those again, and are not written.
            if at < ROWS {
                var v = vec4<f32>();
                if left > 0u { v = x4(min(row0 + at, rows - 1u) * params.d_in + i0 + column, left); }
                for (var c = 0u; c < 4u; c++) { xs[(column + c) * ROW_PITCH + at] = component(v, c); }
            } else {
                var v = vec4<f32>();
                if left > 0u { v = weight4(min(out0 + at - ROWS, params.d_out - 1u) * params.d_in + i0 + column, left); }
                for (var c = 0u; c < 4u; c++) { ws[(column + c) * OUT_PITCH + at - ROWS] = component(v, c); }
            }
        }
        workgroupBarrier();
        for (var i = 0u; i < DEPTH; i++) {
            let w0 = i * OUT_PITCH + local.x;
            let w = vec4<f32>(ws[w0], ws[w0 + 16u], ws[w0 + 32u], ws[w0 + 48u]);
            for (var r = 0u; r < 4u; r++) { sums[r] += xs[i * ROW_PITCH + local.y * 4u + r] * w; }
        }
    }
    for (var r = 0u; r < 4u; r++) {
        for (var o = 0u; o < 4u; o++) {
            let row = row0 + local.y * 4u + r;
            let out = out0 + local.x + 16u * o;
            if row < rows && out < params.d_out { store(row, out, component(sums[r], o)); }
        }
    }
}
