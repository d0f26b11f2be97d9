// The number of each row's largest element, the lowest of equal ones (ops/argmax.rs). Grid: a workgroup a row.

const THREADS: u32 = 256u;
const NOT_FINITE: u32 = 0xffffffffu;
const EXPONENT: u32 = 0x7f800000u; // all ones: infinity or NaN; a comparison with NaN may be optimised away

struct Params {
    width: u32,
}
@group(0) @binding(1) var<uniform> params: Params;
#bind var<storage, read> x: array<u32>; // [rows, width], f32 bits
#bind var<storage, read_write> y: array<u32>; // [rows]

var<workgroup> best_of: array<u32, THREADS>;

@compute @workgroup_size(256)
fn main(@builtin(local_invocation_index) id: u32, @builtin(workgroup_id) group: vec3<u32>) {
    let base = group.x * params.width;
    var best = min(id, params.width - 1u);
    var broken = false;
    for (var i = id; i < params.width; i += THREADS) {
        let bits = x[base + i];
        broken = broken || (bits & EXPONENT) == EXPONENT;
        if bitcast<f32>(bits) > bitcast<f32>(x[base + best]) { best = i; }
    }
    best_of[id] = select(best, NOT_FINITE, broken);
    workgroupBarrier();
    if id != 0u { return; }
    for (var t = 1u; t < THREADS; t++) {
        let other = best_of[t];
        if best == NOT_FINITE || other == NOT_FINITE || broken {
            best = NOT_FINITE;
            break;
        }
        let a = bitcast<f32>(x[base + best]);
        let b = bitcast<f32>(x[base + other]);
        if b > a || (b == a && other < best) { best = other; }
    }
    y[group.x] = best;
}
