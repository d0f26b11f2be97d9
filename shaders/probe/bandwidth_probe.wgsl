// y = sums over 32 pieces of each chunk of x, modulo 2^32 (ops/bandwidth_probe.rs). Grid: one workgroup per chunk, a thread four
// columns of it, so that a workgroup reads 4 KiB side by side in each turn.
#import step

const PIECES: u32 = 32u;
const VEC4S: u32 = 256u;

struct Params {
    chunks: u32,
}
@group(0) @binding(1) var<uniform> params: Params;
#bind var<storage, read> x: array<vec4<u32>>; // [chunks, 32, 1024]
#bind var<storage, read_write> y: array<vec4<u32>>; // [chunks, 1024]

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_id) thread: vec3<u32>) {
    if group.x >= params.chunks { return; }
    let at = group.x * PIECES * VEC4S + thread.x;
    var sum = vec4<u32>(0u);
    for (var piece = 0u; piece < PIECES; piece++) {
        sum += x[at + piece * VEC4S];
    }
    y[group.x * VEC4S + thread.x] = sum;
}
