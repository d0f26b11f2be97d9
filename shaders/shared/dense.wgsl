// Parameters and bindings of the dense products behind x, and reading their weight (ops/matmul.rs).
#import step

struct Params {
    lead: u32,
    rows: u32,
    per_lead: u32, // vectors of a row
    d_in: u32,
    d_out: u32,
    col0: u32,
    width: u32,
}
@group(0) @binding(1) var<uniform> params: Params;
#ifdef F16
#bind var<storage, read> w: array<vec2<u32>>; // [d_out, d_in / 4]
#else
#bind var<storage, read> w: array<vec4<f32>>; // [d_out, d_in / 4]
#endif
#ifdef BIAS
#bind var<storage, read> bias: array<f32>; // [d_out]
#endif
#ifdef RESIDUAL
#bind var<storage, read> residual: array<f32>; // [rows · per_lead, width]
#endif
#bind var<storage, read_write> y: array<f32>; // [rows · per_lead, width]

// Writes element `out` of row `row`, with what is added to it.
fn store(row: u32, out: u32, sum: f32) {
    let at = row * params.width + params.col0 + out;
    var v = sum;
#ifdef BIAS
    v += bias[out];
#endif
#ifdef RESIDUAL
    v += residual[at];
#endif
    y[at] = v;
}

// Four neighbouring elements of w.
fn weight4(at: u32) -> vec4<f32> {
#ifdef F16
    let pair = w[at / 4u];
    return vec4<f32>(unpack2x16float(pair.x), unpack2x16float(pair.y));
#else
    return w[at / 4u];
#endif
}
