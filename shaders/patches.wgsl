// The patches of an image as rows (ops/patches.rs). Grid: a workgroup a patch.

struct Params {
    side: u32,
    size: u32, // of a patch
    grid: u32,
    width: u32, // channels · patch²
}
@group(0) @binding(1) var<uniform> params: Params;
#bind var<storage, read> x: array<f32>; // [channels, side, side]
#bind var<storage, read_write> y: array<f32>; // [grid², width]

@compute @workgroup_size(64)
fn main(@builtin(local_invocation_index) id: u32, @builtin(workgroup_id) group: vec3<u32>) {
    let p = params.size;
    for (var i = id; i < params.width; i += 64u) {
        let row = group.x / params.grid * p + i / p % p;
        let column = group.x % params.grid * p + i % p;
        y[group.x * params.width + i] = x[(i / (p * p) * params.side + row) * params.side + column];
    }
}
