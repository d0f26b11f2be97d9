// out = x + clamp(Σ weight · y + y of the shared experts) (ops/combine.rs). Grid: one thread per element.
#import step
#import bounds

struct Params {
    counted_by: u32,
    rows: u32,
    width: u32,
    slots: u32, // of a row: k, then the shared ones'
    k: u32,
    bound: f32,
}
@group(0) @binding(1) var<uniform> params: Params;
#bind var<storage, read> x: array<f32>; // [rows, width]
#bind var<storage, read> y: array<f32>; // [rows, slots, width]
#bind var<storage, read> weights: array<f32>; // [rows, k]
#bind var<storage, read_write> out: array<f32>; // [rows, width]

@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
    let row = id.x / params.width;
    let i = id.x % params.width;
    if row >= counted(params.counted_by, params.rows) { return; }
    let base = row * params.slots * params.width + i;
    var sum = 0.0;
    for (var s = 0u; s < params.k; s++) { sum += weights[row * params.k + s] * y[base + s * params.width]; }
    for (var s = params.k; s < params.slots; s++) { sum += y[base + s * params.width]; }
    out[id.x] = x[id.x] + bounded(sum, params.bound);
}
