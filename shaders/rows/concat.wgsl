// y[r] = [a[r], b[r]] (ops/concat.rs). Grid: one thread per element of y.
#import step

struct Params {
    counted_by: u32,
    rows: u32,
    width_a: u32,
    width_b: u32,
}
@group(0) @binding(1) var<uniform> params: Params;
#bind var<storage, read> a: array<f32>; // [rows, width_a]
#bind var<storage, read> b: array<f32>; // [rows, width_b]
#bind var<storage, read_write> y: array<f32>; // [rows, width_a + width_b]

@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
    let width = params.width_a + params.width_b;
    let row = id.x / width;
    let i = id.x % width;
    if row >= counted(params.counted_by, params.rows) { return; }
    if i < params.width_a {
        y[id.x] = a[row * params.width_a + i];
    } else {
        y[id.x] = b[row * params.width_b + i - params.width_a];
    }
}
