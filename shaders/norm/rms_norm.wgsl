// y = w · clamp(x / sqrt(max(mean(x²), floor) + eps)), row by row (ops/rms_norm.rs).
// Grid: one workgroup per row. Source: Zhang & Sennrich 2019.
#import reduce

struct Params {
    width: u32,
    eps: f32,
    floor: f32,
    in_bound: f32,
    out_bound: f32,
}
@group(0) @binding(1) var<uniform> params: Params;
#bind var<storage, read> x: array<f32>; // [rows, width]
#bind var<storage, read> w: array<f32>; // [width]
#bind var<storage, read_write> y: array<f32>; // [rows, width]

fn run(lane: Lane, group: vec3<u32>) {
    let base = group.x * params.width;
    var sum = 0.0;
    for (var i = lane.id; i < params.width; i += WG) {
        let v = bounded(x[base + i], params.in_bound);
        sum += v * v;
    }
    let mean = at_least(workgroup_sum(lane, sum) / f32(params.width), params.floor);
    let rms = sqrt(mean + params.eps);
    for (var i = lane.id; i < params.width; i += WG) {
        let v = bounded(x[base + i], params.in_bound);
        y[base + i] = w[i] * bounded(v / rms, params.out_bound);
    }
}
