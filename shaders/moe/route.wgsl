// Norm, logits and the k most probable experts of each row in one launch (ops/route.rs). Grid: one workgroup per row.
// Eight threads share the logit of an expert; one thread chooses.
#import reduce
#import choose_experts

struct Params {
    width: u32,
    experts: u32,
    k: u32,
    eps: f32,
    floor: f32,
    in_bound: f32,
    out_bound: f32,
}
@group(0) @binding(1) var<uniform> params: Params;
#bind var<storage, read> x: array<vec4<f32>>; // [rows, width / 4]
#bind var<storage, read> norm: array<vec4<f32>>; // [width / 4]
#bind var<storage, read> w: array<vec4<f32>>; // [experts, width / 4]
#bind var<storage, read> bias: array<f32>; // [experts]
#bind var<storage, read> rows: array<vec4<u32>>; // [rows]: token, pos, seq_base, seq_len
#bind var<storage, read_write> expert_ids: array<u32>; // [rows, k]
#bind var<storage, read_write> expert_weights: array<f32>; // [rows, k]
#bind var<storage, read_write> log: array<u32>; // [capacity, k]

const MAX_EXPERTS: u32 = 512u;
const EXPERTS_PER_PASS: u32 = 32u; // experts, at most as many as threads
const LANES: u32 = 8u; // threads of an expert

var<workgroup> shares: array<f32, EXPERTS_PER_PASS * LANES>;
var<workgroup> logits: array<f32, MAX_EXPERTS>;

fn run(lane: Lane, group: vec3<u32>) {
    let row = group.x;
    let quarter = params.width / 4u;
    var squares = 0.0;
    for (var i = lane.id; i < quarter; i += WG) {
        let v = bounded4(x[row * quarter + i], params.in_bound);
        squares += dot(v, v);
    }
    let rms = sqrt(at_least(workgroup_sum(lane, squares) / f32(params.width), params.floor) + params.eps);

    let share = lane.id % LANES;
    for (var first = 0u; first < params.experts; first += EXPERTS_PER_PASS) {
        let end = min(first + EXPERTS_PER_PASS, params.experts);
        for (var e = first + lane.id / LANES; e < end; e += WG / LANES) {
            var sum = 0.0;
            for (var i = share; i < quarter; i += LANES) {
                let v = bounded4(x[row * quarter + i], params.in_bound) / rms;
                sum += dot(norm[i] * bounded4(v, params.out_bound), w[e * quarter + i]);
            }
            shares[(e - first) * LANES + share] = sum;
        }
        workgroupBarrier();
        let mine = first + lane.id;
        if mine < end {
            var logit = bias[mine];
            for (var i = 0u; i < LANES; i++) { logit += shares[lane.id * LANES + i]; }
            logits[mine] = logit;
        }
        workgroupBarrier();
    }
    if lane.id == 0u { choose(row, 0u); }
}
