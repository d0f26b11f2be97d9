// h = clamp(silu(clamp(gate)) · up), or relu(gate)² · up (ops/swiglu.rs). Grid: one thread per output.
#import step
#import gated

struct Params {
    counted_by: u32,
    rows: u32,
    per_row: u32,
    width: u32,
    gate_bound: f32,
    product_bound: f32,
    relu2: u32,
}
@group(0) @binding(1) var<uniform> params: Params;
#bind var<storage, read> x: array<f32>; // [rows · per_row, 2 · width]: gate, up
#bind var<storage, read_write> y: array<f32>; // [rows · per_row, width]

@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
    let row = id.x / params.width;
    if row >= counted(params.counted_by, params.rows) * params.per_row { return; }
    let at = row * 2u * params.width + id.x % params.width;
    y[id.x] = gated(vec4<f32>(x[at]), vec4<f32>(x[at + params.width])).x;
}
