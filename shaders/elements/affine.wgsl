// y = x · scale + bias + residual (ops/affine.rs). Grid: one thread per element.
#import step

struct Params {
    counted_by: u32,
    rows: u32,
    per_row: u32, // elements of a leading row
    width: u32,
}
@group(0) @binding(1) var<uniform> params: Params;
#bind var<storage, read> x: array<f32>; // [rows, per_row]
#ifdef SCALE
#bind var<storage, read> scale: array<f32>; // [width]
#endif
#ifdef BIAS
#bind var<storage, read> bias: array<f32>; // [width]
#endif
#ifdef RESIDUAL
#bind var<storage, read> residual: array<f32>; // [rows, per_row]
#endif
#bind var<storage, read_write> y: array<f32>; // [rows, per_row]

@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
    if id.x >= counted(params.counted_by, params.rows) * params.per_row { return; }
    var v = x[id.x];
#ifdef SCALE
    v *= scale[id.x % params.width];
#endif
#ifdef BIAS
    v += bias[id.x % params.width];
#endif
#ifdef RESIDUAL
    v += residual[id.x];
#endif
    y[id.x] = v;
}
