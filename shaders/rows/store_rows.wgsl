// y[which[r]] = x[r] (ops/store_rows.rs). Grid: one thread per element that is stored.
#import step

struct Params {
    counted_by: u32,
    rows: u32,
    per_row: u32, // rows of each of these
    x_width: u32,
    at: u32, // first column of x
    width: u32,
    places: u32, // rows of y
}
@group(0) @binding(1) var<uniform> params: Params;
#bind var<storage, read> x: array<f32>; // [rows · per_row, x_width]
#bind var<storage, read> which: array<u32>; // [rows · per_row]
#bind var<storage, read_write> y: array<f32>; // [places, width]

@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
    let row = id.x / params.width;
    if row >= counted(params.counted_by, params.rows) * params.per_row { return; }
    let place = which[row];
    let i = id.x % params.width;
    if place < params.places { y[place * params.width + i] = x[row * params.x_width + params.at + i]; }
}
