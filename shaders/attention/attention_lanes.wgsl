// Attention of many queries with software subgroups (ops/attention.rs): 8 lanes take a block of 8 queries of one kv
// head over chunks of 32 keys, with a running maximum. A lane holds 4 keys for the scores, and 8 columns of the values.
// Grid: x = kv heads · slices of 64 columns, y = 4 blocks of queries. Workgroup: 32 lanes, which share nothing.
// Source: Dao et al. 2022.
#import subgroup_lanes
#import vectors
#import queries

const QUERIES: u32 = 8u;
const LANES: u32 = 8u;
const SLICE: u32 = 64u;

#ifdef CACHED
#bind var<storage, read> rows: array<vec4<u32>>; // [rows]: token, pos, seq_base, seq_len
#endif
#bind var<storage, read_write> y: array<f32>; // [rows, heads · d]

struct Query {
    at: u32, // in q, for this lane's elements
    keys: u32, // in this run
    max_score: f32,
    total: f32, // of this lane's keys
}

var<private> asked: array<Query, QUERIES>;
var<private> even: array<vec4<f32>, QUERIES>; // outputs of this lane's even columns
var<private> odd: array<vec4<f32>, QUERIES>;

// Adds 8 neighbouring keys' values, weighted; lane i holds the weights of key i of them.
fn add_values(lane: Lane, weights: array<f32, QUERIES>, key: u32, last: u32, kv: u32, column: u32) {
    for (var i = 0u; i < LANES; i++) {
        let at = value_at(min(key + i, last), kv);
        let scale = v_scale(min(key + i, last), kv);
        let a = v_pair(at + min(column, params.d - 2u));
        let b = v_pair(at + min(column + 16u, params.d - 2u));
        let c = v_pair(at + min(column + 32u, params.d - 2u));
        let d = v_pair(at + min(column + 48u, params.d - 2u));
        let evens = vec4<f32>(a.x, b.x, c.x, d.x) * scale;
        let odds = vec4<f32>(a.y, b.y, c.y, d.y) * scale;
        let begin = (lane.in_subgroup & ~7u) + i;
        for (var t = 0u; t < QUERIES; t++) {
            let w = vec4<f32>(subgroupShuffle(weights[t], begin));
            even[t] = fma(w, evens, even[t]);
            odd[t] = fma(w, odds, odd[t]);
        }
    }
}

// q · k of 4 keys of this lane, 8 apart.
fn scores_of(base: u32, keys: vec4<u32>) -> array<vec4<f32>, QUERIES> {
    var scores: array<vec4<f32>, QUERIES>;
    for (var i = 0u; i < params.d; i += 4u) {
        var mine: array<f32, QUERIES>; // lane j of 4 holds element i + j
        for (var t = 0u; t < QUERIES; t++) { mine[t] = q[asked[t].at + i]; }
        for (var j = 0u; j < 4u; j += 2u) {
            let a = k_pair(keys.x + i + j);
            let b = k_pair(keys.y + i + j);
            let c = k_pair(keys.z + i + j);
            let d = k_pair(keys.w + i + j);
            let first = vec4<f32>(a.x, b.x, c.x, d.x);
            let second = vec4<f32>(a.y, b.y, c.y, d.y);
            for (var t = 0u; t < QUERIES; t++) {
                scores[t] = fma(vec4<f32>(subgroupShuffle(mine[t], base + j)), first, scores[t]);
                scores[t] = fma(vec4<f32>(subgroupShuffle(mine[t], base + j + 1u)), second, scores[t]);
            }
        }
    }
    return scores;
}

// One query's weights of 4 keys from their scores, `place` the first one's number in the run.
fn weigh(lane: Lane, t: u32, scores: vec4<f32>, place: u32) -> vec4<f32> {
    let used = vec4<u32>(place) + vec4<u32>(0u, 8u, 16u, 24u) < vec4<u32>(asked[t].keys);
    let s = select(vec4<f32>(MIN_SCORE), scores, used);
    let max_score = max(asked[t].max_score, max_of_lanes(lane, max(max(s.x, s.y), max(s.z, s.w))));
    let w = select(vec4<f32>(), exp(s - vec4<f32>(max_score)), used);
    let shrink = exp(asked[t].max_score - max_score);
    asked[t].max_score = max_score;
    asked[t].total = asked[t].total * shrink + w.x + w.y + w.z + w.w;
    even[t] *= shrink;
    odd[t] *= shrink;
    return w;
}

// Takes a run of keys of one sequence.
fn take(lane: Lane, run: Run, kv: u32, column: u32) {
    let mine = lane.id % LANES;
    let base = lane.in_subgroup & ~7u;
    let last = run.first + max(run.keys, 1u) - 1u;
    for (var chunk = 0u; chunk < run.keys; chunk += 4u * LANES) {
        let key0 = run.first + chunk;
        let places = min(vec4<u32>(key0 + mine) + vec4<u32>(0u, 8u, 16u, 24u), vec4<u32>(last));
        let keys = vec4<u32>(key_at(places.x, kv), key_at(places.y, kv), key_at(places.z, kv), key_at(places.w, kv));
        let scores = scores_of(base, keys);
        let scale = params.scale
            * vec4<f32>(k_scale(places.x, kv), k_scale(places.y, kv), k_scale(places.z, kv), k_scale(places.w, kv));
        var w0: array<f32, QUERIES>;
        var w1: array<f32, QUERIES>;
        var w2: array<f32, QUERIES>;
        var w3: array<f32, QUERIES>;
        for (var t = 0u; t < QUERIES; t++) {
            let w = weigh(lane, t, scores[t] * scale, chunk + mine);
            w0[t] = w.x;
            w1[t] = w.y;
            w2[t] = w.z;
            w3[t] = w.w;
        }
        add_values(lane, w0, key0, last, kv, column);
        if chunk + 8u < run.keys { add_values(lane, w1, key0 + 8u, last, kv, column); }
        if chunk + 16u < run.keys { add_values(lane, w2, key0 + 16u, last, kv, column); }
        if chunk + 24u < run.keys { add_values(lane, w3, key0 + 24u, last, kv, column); }
    }
}

@compute @workgroup_size(32)
fn main(
    @builtin(local_invocation_index) id: u32,
    @builtin(subgroup_invocation_id) in_subgroup: u32,
    @builtin(workgroup_id) group: vec3<u32>,
) {
    let lane = Lane(id, in_subgroup);
    let slices = (params.d + SLICE - 1u) / SLICE;
    let kv = group.x / slices;
    let mine = lane.id % LANES;
    let column = group.x % slices * SLICE + 2u * mine;
    let queries = n_queries();
    let block = (group.y * 4u + lane.id / LANES) * QUERIES;
    let end = min(block + QUERIES, queries);
    for (var t = 0u; t < QUERIES; t++) {
        asked[t] = Query(queried_at(min(block + t, queries - 1u), kv) + (mine & 3u), 0u, MIN_SCORE, 0.0);
        even[t] = vec4<f32>();
        odd[t] = vec4<f32>();
    }
    var begin = block;
    while begin < end {
        let run = run_from(begin, end);
        for (var t = 0u; t < QUERIES; t++) { asked[t].keys = keys_in(block + t, begin, run.end); }
        take(lane, run, kv, column);
        begin = run.end;
    }
    for (var t = 0u; t < QUERIES; t++) {
        let sum = sum_of_lanes(lane, asked[t].total);
        if block + t < end {
            let out = output_at(block + t, kv);
            for (var c = 0u; c < 4u; c++) {
                let i = column + 16u * c;
                if i < params.d {
                    y[out + i] = component(even[t], c) / sum;
                    y[out + i + 1u] = component(odd[t], c) / sum;
                }
            }
        }
    }
}
