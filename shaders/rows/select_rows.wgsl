// y[i] = x[which[i]] (ops/select_rows.rs). Grid: one thread per element of y.
#import step

struct Params {
    counted_by: u32,
    rows: u32,
    width: u32,
}
@group(0) @binding(1) var<uniform> params: Params;
#bind var<storage, read> x: array<f32>; // [n, width]
#bind var<storage, read> which: array<u32>; // [rows]
#bind var<storage, read_write> y: array<f32>; // [rows, width]

@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
    let row = id.x / params.width;
    if row >= counted(params.counted_by, params.rows) { return; }
    y[id.x] = x[which[row] * params.width + id.x % params.width];
}
