// The mean of each span's rows (ops/span_mean.rs). Grid: one thread per element of y.
#import step

struct Params {
    counted_by: u32,
    spans: u32,
    width: u32,
}
@group(0) @binding(1) var<uniform> params: Params;
#bind var<storage, read> x: array<f32>; // [n, width]
#bind var<storage, read> spans: array<vec2<u32>>; // [spans]: first row, rows
#bind var<storage, read_write> y: array<f32>; // [spans, width]

@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
    let which = id.x / params.width;
    if which >= counted(params.counted_by, params.spans) { return; }
    let span = spans[which];
    var sum = 0.0;
    for (var r = 0u; r < span.y; r++) { sum += x[(span.x + r) * params.width + id.x % params.width]; }
    y[id.x] = sum / f32(span.y);
}
