// y = (x − mean) / sqrt(var + eps) · w + b, row by row (ops/layer_norm.rs).
// Grid: one workgroup per row. Source: Ba et al. 2016.
#import reduce

struct Params {
    width: u32,
    eps: f32,
}
@group(0) @binding(1) var<uniform> params: Params;
#bind var<storage, read> x: array<f32>; // [rows, width]
#bind var<storage, read> w: array<f32>; // [width]
#bind var<storage, read> b: array<f32>; // [width]
#bind var<storage, read_write> y: array<f32>; // [rows, width]

fn run(lane: Lane, group: vec3<u32>) {
    let base = group.x * params.width;
    let n = f32(params.width);
    var sum = 0.0;
    for (var i = lane.id; i < params.width; i += WG) { sum += x[base + i]; }
    let mean = workgroup_sum(lane, sum) / n;
    // A second pass over the differences: a difference of large sums would lose the small variance.
    var squares = 0.0;
    for (var i = lane.id; i < params.width; i += WG) {
        let d = x[base + i] - mean;
        squares += d * d;
    }
    let rms = sqrt(workgroup_sum(lane, squares) / n + params.eps);
    for (var i = lane.id; i < params.width; i += WG) {
        y[base + i] = (x[base + i] - mean) / rms * w[i] + b[i];
    }
}
