// Parameters of the dense products, their bindings behind x and w, and writing their results (ops/matmul.rs).
#import step

struct Params {
    counted_by: u32,
    rows: u32,
    per_row: u32, // vectors of a row
    d_in: u32,
    d_out: u32,
    col0: u32,
    width: u32,
}
@group(0) @binding(1) var<uniform> params: Params;
#ifdef BIAS
#bind var<storage, read> bias: array<f32>; // [d_out]
#endif
#ifdef RESIDUAL
#bind var<storage, read> residual: array<f32>; // [rows · per_row, width]
#endif
#bind var<storage, read_write> y: array<f32>; // [rows · per_row, width]

// Writes element `out` of row `row`, with what is added to it.
fn store(row: u32, out: u32, sum: f32) {
    let at = row * params.width + params.col0 + out;
    var v = sum;
#ifdef INT8
    v *= scale_of(out);
#endif
#ifdef BIAS
    v += bias[out];
#endif
#ifdef RESIDUAL
    v += residual[at];
#endif
    y[at] = v;
}
