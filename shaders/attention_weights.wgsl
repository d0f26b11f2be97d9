// Softmax of q · kᵀ · scale for one query row a workgroup, the mean over its heads (ops/attention_weights.rs): keys are
// spread over the threads, each of which adds up its own. Grid: x = rows.
#import reduce

const MAX_D: u32 = 256u;
const LEAST: f32 = -1e30; // finite, so that a difference of two is no NaN

struct Params {
    heads: u32,
    group: u32, // query heads for a kv head
    d: u32,
    n_keys: u32,
    q_at: u32,
    q_width: u32,
    k_at: u32,
    k_width: u32,
    scale: f32,
}
@group(0) @binding(1) var<uniform> params: Params;
#bind var<storage, read> q: array<f32>; // [rows, q_width]
#bind var<storage, read> k: array<u32>; // [keys, k_width] f32, or f16 in pairs
#ifdef CACHED
#bind var<storage, read> rows: array<vec4<u32>>; // [rows]: token, pos, seq_base, seq_len
#endif
#bind var<storage, read_write> y: array<f32>; // [rows, keys]

var<workgroup> query: array<f32, MAX_D>;

// Elements i and i + 1 of k; i is even.
fn k_pair(i: u32) -> vec2<f32> {
#ifdef F16
    return unpack2x16float(k[i / 2u]);
#else
    return vec2<f32>(bitcast<f32>(k[i]), bitcast<f32>(k[i + 1u]));
#endif
}

// The query's score with the key whose elements begin at `base`.
fn score(base: u32) -> f32 {
    var sum = 0.0;
    for (var i = 0u; i < params.d; i += 2u) {
        sum += dot(vec2<f32>(query[i], query[i + 1u]), k_pair(base + i));
    }
    return sum * params.scale;
}

@compute @workgroup_size(64)
fn main(lane: Lane, @builtin(workgroup_id) group: vec3<u32>) {
    let row = group.x;
    var first = 0u;
    var n = params.n_keys;
#ifdef CACHED
    first = rows[row].z;
    n = rows[row].w;
#endif
    let out = row * params.n_keys;
    for (var key = lane.id; key < params.n_keys; key += WG) { y[out + key] = 0.0; }
    for (var head = 0u; head < params.heads; head++) {
        workgroupBarrier();
        for (var i = lane.id; i < params.d; i += WG) {
            query[i] = q[row * params.q_width + params.q_at + head * params.d + i];
        }
        workgroupBarrier();
        let base = first * params.k_width + params.k_at + head / params.group * params.d;
        var top = LEAST;
        for (var key = lane.id; key < n; key += WG) { top = max(top, score(base + key * params.k_width)); }
        top = workgroup_max(lane, top);
        var total = 0.0;
        for (var key = lane.id; key < n; key += WG) { total += exp(score(base + key * params.k_width) - top); }
        let share = 1.0 / (workgroup_sum(lane, total) * f32(params.heads));
        for (var key = lane.id; key < n; key += WG) {
            y[out + key] += exp(score(base + key * params.k_width) - top) * share;
        }
    }
}
