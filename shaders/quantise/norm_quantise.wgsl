// RMSNorm and absmax quantisation of each row under each of several norms (ops/norm_quantise.rs).
// Grid: x = sets, y = rows, a workgroup each. Source: Ma et al. 2024 (BitNet b1.58), section 2.
#import reduce

struct Params {
    width: u32,
    sets: u32,
    norms: u32, // of one expert
    k: u32,
    n_experts: u32,
    x_per_set: u32,
    eps: f32,
    rms_floor: f32,
    in_bound: f32,
    out_bound: f32,
    max_code: f32,
    act_bound: f32,
    act_floor: f32,
}
@group(0) @binding(1) var<uniform> params: Params;
#bind var<storage, read> x: array<f32>; // [rows, width] or [rows, sets, width]
#bind var<storage, read> w: array<f32>; // [norms of all experts, width]
#ifdef EXPERTS
#bind var<storage, read> expert_ids: array<u32>; // [rows, k]
#endif
#bind var<storage, read_write> codes: array<u32>; // [rows, sets, width / 4 padded to 8]
#bind var<storage, read_write> act_scale_and_sum: array<vec2<f32>>; // [rows, sets]: 1/k, sum of codes

fn normed(at: u32, weight: f32, rms: f32) -> f32 {
    let v = bounded(x[at], params.in_bound);
    let y = weight * bounded(v / rms, params.out_bound);
    return bounded(y, params.act_bound);
}

fn run(lane: Lane, group: vec3<u32>) {
    let which = group.x;
    let row = group.y;
    let out = row * params.sets + which;
    let x0 = select(row, out, params.x_per_set != 0u) * params.width;
    var norm = which;
#ifdef EXPERTS
    let slot = which / params.norms;
    var expert = params.n_experts + slot - params.k;
    if slot < params.k { expert = expert_ids[row * params.k + slot]; }
    norm = expert * params.norms + which % params.norms;
#endif
    let w0 = norm * params.width;

    var squares = 0.0;
    for (var i = lane.id; i < params.width; i += WG) {
        let v = bounded(x[x0 + i], params.in_bound);
        squares += v * v;
    }
    let rms = sqrt(at_least(workgroup_sum(lane, squares) / f32(params.width), params.rms_floor) + params.eps);

    var max_order = magnitude(params.act_floor);
    for (var i = lane.id; i < params.width; i += WG) {
        max_order = max(max_order, magnitude(normed(x0 + i, w[w0 + i], rms)));
    }
    let k = params.max_code / of_order(workgroup_max(lane, max_order));

    let words = (params.width + 31u) / 32u * 8u;
    var sum = 0.0;
    for (var word = lane.id; word < words; word += WG) {
        var packed = 0u;
        for (var b = 0u; b < 4u; b++) {
            let i = 4u * word + b;
            if i < params.width {
                let v = normed(x0 + i, w[w0 + i], rms);
                let code = code_of(v * k, params.max_code);
                sum += code;
                packed |= (bitcast<u32>(i32(code)) & 0xffu) << (8u * b);
            }
        }
        codes[out * words + word] = packed;
    }
    let total = workgroup_sum(lane, sum);
    if lane.id == 0u { act_scale_and_sum[out] = vec2<f32>(1.0 / k, total); }
}
