// Blocks of factor × factor tokens as single wider tokens (ops/pixel_shuffle.rs). Grid: one workgroup per output token.

struct Params {
    grid: u32,
    tokens: u32, // along a side of the output
    factor: u32,
    width: u32, // of an input token
}
@group(0) @binding(1) var<uniform> params: Params;
#bind var<storage, read> x: array<f32>; // [grid², width]
#bind var<storage, read_write> y: array<f32>; // [tokens², factor² · width]

@compute @workgroup_size(64)
fn main(@builtin(local_invocation_index) id: u32, @builtin(workgroup_id) group: vec3<u32>) {
    let f = params.factor;
    let wide = f * f * params.width;
    for (var i = id; i < wide; i += 64u) {
        let block = i / params.width;
        let row = group.x / params.tokens * f + block / f;
        let column = group.x % params.tokens * f + block % f;
        var v = 0.0;
        if row < params.grid && column < params.grid {
            v = x[(row * params.grid + column) * params.width + i % params.width];
        }
        y[group.x * wide + i] = v;
    }
}
