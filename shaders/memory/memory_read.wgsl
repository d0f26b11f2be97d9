// The slots of a memory that answer a query best, and their weighted sum (ops/memory_read.rs).
// Grid: one workgroup per row; a thread scores every 64th slot. Source: Das et al. 2024 (Larimar).
#import reduce

const MAX_SLOTS: u32 = 2048u;
const MAX_K: u32 = 16u;
const TAKEN: f32 = -3.4e38;

struct Params {
    width: u32,
    slots: u32,
    k: u32,
    floor: f32,
}
@group(0) @binding(1) var<uniform> params: Params;
#bind var<storage, read> q: array<f32>; // [rows, width]
#bind var<storage, read> memory: array<f32>; // [slots, width]
#bind var<storage, read> quality: array<f32>; // [slots]
#bind var<storage, read_write> y: array<f32>; // [rows, width]
#bind var<storage, read_write> slot_ids: array<u32>; // [rows, k]
#bind var<storage, read_write> weights: array<f32>; // [rows, k]

var<workgroup> scores: array<f32, MAX_SLOTS>;
var<workgroup> chosen: array<u32, MAX_K>;
var<workgroup> parts: array<f32, MAX_K>;

// The best slots in falling order, the lower of equal ones first, and their softmax.
fn choose(row: u32) {
    var total = 0.0;
    var best = 0.0;
    for (var j = 0u; j < params.k; j++) {
        var at = 0u;
        for (var s = 1u; s < params.slots; s++) {
            if order_of(scores[s]) > order_of(scores[at]) { at = s; }
        }
        if j == 0u { best = scores[at]; }
        chosen[j] = at;
        parts[j] = exp(scores[at] - best);
        total += parts[j];
        scores[at] = TAKEN;
    }
    for (var j = 0u; j < params.k; j++) {
        parts[j] /= total;
        slot_ids[row * params.k + j] = chosen[j];
        weights[row * params.k + j] = parts[j];
    }
}

fn run(lane: Lane, group: vec3<u32>) {
    let base = group.x * params.width;
    var squares = 0.0;
    for (var i = lane.id; i < params.width; i += WG) { squares += q[base + i] * q[base + i]; }
    let size = at_least(sqrt(workgroup_sum(lane, squares)), params.floor);
    for (var s = lane.id; s < params.slots; s += WG) {
        var dots = 0.0;
        var own = 0.0;
        for (var i = 0u; i < params.width; i++) {
            let m = memory[s * params.width + i];
            dots += q[base + i] * m;
            own += m * m;
        }
        scores[s] = dots / size / at_least(sqrt(own), params.floor) * quality[s];
    }
    workgroupBarrier();
    if lane.id == 0u { choose(group.x); }
    workgroupBarrier();
    for (var i = lane.id; i < params.width; i += WG) {
        var sum = 0.0;
        for (var j = 0u; j < params.k; j++) { sum += parts[j] * memory[chosen[j] * params.width + i]; }
        y[base + i] = sum;
    }
}
