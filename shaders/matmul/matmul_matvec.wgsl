// y = x · wᵀ for few rows (ops/matmul.rs). Grid: x = groups of GROUPS · OUTS outputs.
// LANES lanes read neighbouring parts of OUTS weight rows each, and their sums are added behind a barrier. The rows of x
// follow one another, so that the weights of a workgroup are read from memory once.
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
#bind var<storage, read> x: array<vec4<f32>>; // [rows · per_row, d_in / 4]
#ifdef INT8
#ifdef WIDE
#bind var<storage, read> w: array<vec2<u32>>; // [d_out, d_in / 8], then scales [d_out / 2]
#else
#bind var<storage, read> w: array<u32>; // [d_out, d_in / 4], then scales [d_out]
#endif
#else
#ifdef F16
#ifdef WIDE
#bind var<storage, read> w: array<vec4<u32>>; // [d_out, d_in / 8]
#else
#bind var<storage, read> w: array<vec2<u32>>; // [d_out, d_in / 4]
#endif
#else
#bind var<storage, read> w: array<vec4<f32>>; // [d_out, d_in / 4]
#endif
#endif
#ifdef BIAS
#bind var<storage, read> bias: array<f32>; // [d_out]
#endif
#ifdef RESIDUAL
#bind var<storage, read> residual: array<f32>; // [rows · per_row, width]
#endif
#bind var<storage, read_write> y: array<f32>; // [rows · per_row, width]

override LANES: u32 = 16u;
override GROUPS: u32 = 4u;
const OUTS: u32 = 4u;

var<workgroup> shares: array<f32, GROUPS * OUTS * LANES>;

#ifdef INT8
#ifdef WIDE
const LOAD: u32 = 2u; // fours of elements of a load of w

fn product(at: u32, a: vec4<f32>, b: vec4<f32>) -> f32 {
    let v = w[at];
    return dot(a, vec4<f32>(unpack4xI8(v.x))) + dot(b, vec4<f32>(unpack4xI8(v.y)));
}

// The scale of row `out` of w.
fn scale_of(out: u32) -> f32 {
    return bitcast<f32>(w[params.d_out * params.d_in / 8u + out / 2u][out % 2u]);
}
#else
const LOAD: u32 = 1u;

fn product(at: u32, a: vec4<f32>, b: vec4<f32>) -> f32 {
    return dot(a, vec4<f32>(unpack4xI8(w[at])));
}

fn scale_of(out: u32) -> f32 {
    return bitcast<f32>(w[params.d_out * params.d_in / 4u + out]);
}
#endif
#else
#ifdef F16
fn halves(pair: vec2<u32>) -> vec4<f32> {
    return vec4<f32>(unpack2x16float(pair.x), unpack2x16float(pair.y));
}

#ifdef WIDE
const LOAD: u32 = 2u; // fours of elements of a load of w

fn product(at: u32, a: vec4<f32>, b: vec4<f32>) -> f32 {
    let v = w[at];
    return dot(a, halves(v.xy)) + dot(b, halves(v.zw));
}
#else
const LOAD: u32 = 1u;

fn product(at: u32, a: vec4<f32>, b: vec4<f32>) -> f32 {
    return dot(a, halves(w[at]));
}
#endif
#else
const LOAD: u32 = 1u;

fn product(at: u32, a: vec4<f32>, b: vec4<f32>) -> f32 {
    return dot(a, w[at]);
}
#endif
#endif

@compute @workgroup_size(LANES, GROUPS)
fn main(@builtin(local_invocation_id) local: vec3<u32>, @builtin(workgroup_id) group: vec3<u32>) {
    let loads = params.d_in / (4u * LOAD);
    let first = group.x * GROUPS * OUTS;
    var base = array<u32, OUTS>();
    for (var o = 0u; o < OUTS; o++) {
        // Outputs beyond the last read the last again and write nothing.
        base[o] = min(first + local.y * OUTS + o, params.d_out - 1u) * loads;
    }
    let me = local.y * LANES + local.x;
    let rows = counted(params.counted_by, params.rows) * params.per_row;
    for (var row = 0u; row < rows; row++) {
        var sum = array<f32, OUTS>();
        for (var i = local.x; i < loads; i += LANES) {
            let at = LOAD * (row * loads + i);
            let a = x[at];
            let b = x[at + LOAD - 1u];
            for (var o = 0u; o < OUTS; o++) { sum[o] += product(base[o] + i, a, b); }
        }
        workgroupBarrier(); // the row before has been added up
        for (var o = 0u; o < OUTS; o++) { shares[(local.y * OUTS + o) * LANES + local.x] = sum[o]; }
        workgroupBarrier();
        for (var o = me; o < GROUPS * OUTS; o += LANES * GROUPS) {
            let out = first + o;
            if out < params.d_out {
                var v = 0.0;
                for (var i = 0u; i < LANES; i++) { v += shares[o * LANES + i]; }
#ifdef INT8
                v *= scale_of(out);
#endif
#ifdef BIAS
                v += bias[out];
#endif
                let at = row * params.width + params.col0 + out;
#ifdef RESIDUAL
                v += residual[at];
#endif
                y[at] = v;
            }
        }
    }
}
