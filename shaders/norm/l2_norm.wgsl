// y = x / max(|x|, floor), row by row (ops/l2_norm.rs). Grid: one workgroup per row.
#import reduce

struct Params {
    width: u32,
    floor: f32,
}
@group(0) @binding(1) var<uniform> params: Params;
#bind var<storage, read> x: array<f32>; // [rows, width]
#bind var<storage, read_write> y: array<f32>; // [rows, width]

fn run(lane: Lane, group: vec3<u32>) {
    let base = group.x * params.width;
    var squares = 0.0;
    for (var i = lane.id; i < params.width; i += WG) { squares += x[base + i] * x[base + i]; }
    let size = at_least(sqrt(workgroup_sum(lane, squares)), params.floor);
    for (var i = lane.id; i < params.width; i += WG) { y[base + i] = x[base + i] / size; }
}
