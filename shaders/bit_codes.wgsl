// The first of two launches of a layer of few rows (ops/bit_linear.rs): the absmax codes of each row under each norm that
// its product needs. Grid: x = rows (with experts: rows · slots), a workgroup each.
#import bit_codes
// Of each set UNITS vec4s of codes, and one with 1/k and their sum.
#bind var<storage, read_write> between: array<vec4<u32>>; // [sets, UNITS + 1]

override TERMS: u32 = 3u; // sets of codes of a workgroup
override UNITS: u32 = 128u; // vec4s of codes of a set
const THREADS: u32 = 8u;

fn keep(set_number: u32, unit: u32, words: vec4<u32>) {
    between[set_number * (UNITS + 1u) + unit] = words;
}

var<private> first_set: u32;
var<private> lane: u32; // in its subgroup

// Eight lanes of a subgroup add up without a barrier.
fn sum_all(id: u32, v: f32) -> f32 {
    var sum = v + subgroupShuffle(v, lane ^ 4u);
    sum += subgroupShuffle(sum, lane ^ 2u);
    return sum + subgroupShuffle(sum, lane ^ 1u);
}

fn max_all(id: u32, v: f32) -> f32 {
    var most = max(v, subgroupShuffle(v, lane ^ 4u));
    most = max(most, subgroupShuffle(most, lane ^ 2u));
    return max(most, subgroupShuffle(most, lane ^ 1u));
}

fn keep_codes(term: u32, unit: u32, words: vec4<u32>) {
    keep(first_set + term, unit, words);
}

fn keep_meta(term: u32, v: vec2<f32>) {
    keep(first_set + term, UNITS, vec4<u32>(bitcast<vec2<u32>>(v), 0u, 0u));
}

@compute @workgroup_size(THREADS)
fn main(
    @builtin(local_invocation_index) id: u32,
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(subgroup_invocation_id) in_subgroup: u32,
) {
    lane = in_subgroup;
    let quarter = params.width / 4u;
#ifdef PLAIN
    let at = group.x * quarter;
    let first = 0u;
#else
    let row = group.x / params.slots;
    let first = expert_of(row, group.x % params.slots, params.slots - 1u) * TERMS;
#ifdef SWIGLU
    let at = row * quarter;
#else
    let at = group.x * quarter;
#endif
#endif
    first_set = group.x * TERMS;
    let pre_rms = pre_rms_of(id, at);
    let rms = rms_of(id, at, pre_rms);
    for (var t = 0u; t < TERMS; t++) { make_codes(id, t, at, (first + t) * quarter, pre_rms, rms); }
}
