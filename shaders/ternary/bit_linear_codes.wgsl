// The first of two launches of a layer of few rows (ops/bit_linear.rs): the absmax codes of each row under each norm that
// its product needs. A lane keeps its elements from the norm in front to the codes.
// Grid: x = rows (with COMBINE: rows · slots), a workgroup each.
#import bit_linear_codes
// Of each set UNITS vec4s of codes, and one with 1/k and their sum.
#bind var<storage, read_write> between: array<vec4<u32>>; // [sets, UNITS + 1]

override TERMS: u32 = 3u; // sets of codes of a workgroup
override UNITS: u32 = 128u; // vec4s of codes of a set
override HELD: u32 = 2u; // of a lane, at most 10
override THREADS: u32 = 64u; // UNITS / HELD, at most 64
override SHARES: u32 = 64u; // (TERMS + 1) · 2 · EIGHTS
const EIGHTS: u32 = 8u;
const MAX_HELD: u32 = 40u; // 4 · 10

var<workgroup> shares: array<f32, SHARES>; // what each eight lanes add to a sum or maximum
var<private> held: array<vec4<f32>, MAX_HELD>;
var<private> lane: u32; // in its subgroup

// Eight lanes of a subgroup add up without a barrier.
fn sum_of_eight(v: f32) -> f32 {
    var sum = v + subgroupShuffle(v, lane ^ 4u);
    sum += subgroupShuffle(sum, lane ^ 2u);
    return sum + subgroupShuffle(sum, lane ^ 1u);
}

// The largest of magnitudes, NaN above all.
fn max_of_eight(v: f32) -> f32 {
    var max_order = magnitude(v);
    max_order = max(max_order, subgroupShuffle(max_order, lane ^ 4u));
    max_order = max(max_order, subgroupShuffle(max_order, lane ^ 2u));
    return of_order(max(max_order, subgroupShuffle(max_order, lane ^ 1u)));
}

// Leaves what eight lanes have found for number `at`; behind a barrier all find it.
fn leave(id: u32, at: u32, v: f32) {
    if id % EIGHTS == 0u { shares[at * EIGHTS + id / EIGHTS] = v; }
}

// Share `lane` of number `at`, 0 where there is none.
fn share(at: u32) -> f32 {
    let i = lane % EIGHTS;
    return select(0.0, shares[at * EIGHTS + i], i * EIGHTS < THREADS);
}

fn sum_all(id: u32, at: u32, v: f32) -> f32 {
    leave(id, at, sum_of_eight(v));
    workgroupBarrier();
    return sum_of_eight(share(at));
}

// Holds a row's elements under the norm, without its weights; 0 behind the last ones.
fn hold(id: u32, at: u32) {
    let quarter = params.width / 4u;
    var squares = 0.0;
    for (var h = 0u; h < HELD; h++) {
        for (var j = 0u; j < 4u; j++) {
            let i = (id + h * THREADS) * 4u + j;
            let v = select(vec4<f32>(), x[at + min(i, quarter - 1u)], vec4<bool>(i < quarter));
            held[4u * h + j] = v;
#ifdef PRE_NORM
            squares += dot(front(v), front(v));
#endif
        }
    }
    var pre_norm_rms = 1.0;
#ifdef PRE_NORM
    pre_norm_rms = root_mean_square(sum_all(id, 0u, squares), params.pre_norm_floor, params.pre_norm_eps);
#endif
    squares = 0.0;
    for (var h = 0u; h < HELD; h++) {
        for (var j = 0u; j < 4u; j++) {
            let v = input(held[4u * h + j], min((id + h * THREADS) * 4u + j, quarter - 1u), pre_norm_rms);
            held[4u * h + j] = v;
            squares += dot(v, v);
        }
    }
    let rms = root_mean_square(sum_all(id, 1u, squares), params.rms_floor, params.eps);
    for (var h = 0u; h < HELD; h++) {
        for (var j = 0u; j < 4u; j++) { held[4u * h + j] = scaled(held[4u * h + j], rms); }
    }
}

// Elements 4j.. of the h-th held unit under weights that begin at `norm`.
fn element(id: u32, norm: u32, h: u32, j: u32) -> vec4<f32> {
    let i = min((id + h * THREADS) * 4u + j, params.width / 4u - 1u);
    return weighted(held[4u * h + j], norms[norm + i]);
}

// The largest of this lane's elements, and `act_floor`.
fn largest_of(id: u32, norm: u32) -> f32 {
    var max_order = magnitude(params.act_floor);
    for (var h = 0u; h < HELD; h++) {
        for (var j = 0u; j < 4u; j++) { max_order = max(max_order, largest(element(id, norm, h, j))); }
    }
    return of_order(max_order);
}

// Writes this lane's codes of a set, and returns their sum.
fn write_codes(id: u32, norm: u32, set_at: u32, k: f32) -> f32 {
    var sum = 0.0;
    for (var h = 0u; h < HELD; h++) {
        let a = codes_of(element(id, norm, h, 0u) * k, params.max_code);
        let b = codes_of(element(id, norm, h, 1u) * k, params.max_code);
        let c = codes_of(element(id, norm, h, 2u) * k, params.max_code);
        let d = codes_of(element(id, norm, h, 3u) * k, params.max_code);
        sum += dot(a + b + c + d, vec4<f32>(1.0));
        let unit = id + h * THREADS;
        if unit < UNITS {
            between[set_at + unit] = vec4<u32>(word_of(a), word_of(b), word_of(c), word_of(d));
        }
    }
    return sum;
}

// Where the weights of the norm of set `t` of a workgroup begin.
fn norm_of(group: u32, t: u32) -> u32 {
    var norm = t;
#ifdef SWIGLU
    let per = TERMS / params.slots;
    norm = expert_of(group, t / per) * per + t % per;
#endif
#ifdef COMBINE
    norm = expert_of(group / params.slots, group % params.slots);
#endif
    return norm * (params.width / 4u);
}

@compute @workgroup_size(THREADS)
fn main(
    @builtin(local_invocation_index) id: u32,
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(subgroup_invocation_id) in_subgroup: u32,
) {
    lane = in_subgroup;
    hold(id, group.x * (params.width / 4u));
    for (var t = 0u; t < TERMS; t++) {
        leave(id, 2u + t, max_of_eight(largest_of(id, norm_of(group.x, t))));
    }
    workgroupBarrier();
    for (var t = 0u; t < TERMS; t++) {
        let k = params.max_code / max_of_eight(share(2u + t));
        let sum = write_codes(id, norm_of(group.x, t), (group.x * TERMS + t) * (UNITS + 1u), k);
        leave(id, 2u + TERMS + t, sum_of_eight(sum));
    }
    workgroupBarrier();
    for (var t = 0u; t < TERMS; t++) {
        let k = params.max_code / max_of_eight(share(2u + t));
        let sum = sum_of_eight(share(2u + TERMS + t));
        let at = (group.x * TERMS + t) * (UNITS + 1u) + UNITS;
        if id == 0u { between[at] = vec4<u32>(bitcast<u32>(1.0 / k), bitcast<u32>(sum), 0u, 0u); }
    }
}
