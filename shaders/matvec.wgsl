// y = x · wᵀ for few rows (ops/matmul.rs). Grid: x = groups of OUTS outputs, y = rows.
// 16 lanes share an output and read neighbouring elements; their sums meet behind one barrier.
#bind var<storage, read> x: array<vec4<f32>>; // [rows · per_lead, d_in / 4]
#import weight
#import dense

const OUTS: u32 = 4u;
const LANES: u32 = 16u;

var<workgroup> shares: array<f32, OUTS * LANES>;

@compute @workgroup_size(LANES, OUTS)
fn main(@builtin(local_invocation_id) local: vec3<u32>, @builtin(workgroup_id) group: vec3<u32>) {
    let out = group.x * OUTS + local.y;
    let row = group.y;
    let last = min(out, params.d_out - 1u); // lanes beyond read the last output again and write nothing
    var sum = 0.0;
    for (var i = local.x * 4u; i < params.d_in; i += LANES * 4u) {
        sum += dot(x[(row * params.d_in + i) / 4u], weight4(last * params.d_in + i));
    }
    shares[local.y * LANES + local.x] = sum;
    workgroupBarrier();
    if local.x != 0u || out >= params.d_out { return; }
    for (var i = 1u; i < LANES; i++) { sum += shares[local.y * LANES + i]; }
    store(row, out, sum);
}
