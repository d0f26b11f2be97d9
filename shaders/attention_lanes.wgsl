// Attention of many queries where lanes pass words on (ops/attention.rs): 8 lanes take a block of 8 queries of one kv
// head over chunks of 32 keys, with a running maximum. A lane holds 4 keys for the scores, and 8 columns of the values.
// Grid: x = kv heads · slices of 64 columns, y = 4 blocks of queries. Workgroup: 32 lanes, which share nothing.
// Source: Dao et al. 2022.
#import queries

const QUERIES: u32 = 8u;
const LANES: u32 = 8u;
const SLICE: u32 = 64u;

#ifdef CACHED
#bind var<storage, read> rows: array<vec4<u32>>; // [rows]: token, pos, seq_base, seq_len
#endif
#bind var<storage, read_write> y: array<f32>; // [rows, heads · d]

var<private> even: array<vec4<f32>, QUERIES>; // outputs of this lane's even columns
var<private> odd: array<vec4<f32>, QUERIES>;

struct Lane {
    @builtin(local_invocation_index) id: u32,
    @builtin(subgroup_invocation_id) in_subgroup: u32,
}

// Adds 8 neighbouring keys' values, weighted; lane i holds the weights of key i of them.
fn add_values(lane: Lane, weights: array<f32, QUERIES>, key: u32, last: u32, kv: u32, column: u32) {
    for (var i = 0u; i < LANES; i++) {
        let at = value_at(min(key + i, last), kv);
        let a = v_pair(at + min(column, params.d - 2u));
        let b = v_pair(at + min(column + 16u, params.d - 2u));
        let c = v_pair(at + min(column + 32u, params.d - 2u));
        let d = v_pair(at + min(column + 48u, params.d - 2u));
        let evens = vec4<f32>(a.x, b.x, c.x, d.x);
        let odds = vec4<f32>(a.y, b.y, c.y, d.y);
        let begin = (lane.in_subgroup & ~7u) + i;
        for (var t = 0u; t < QUERIES; t++) {
            let w = vec4<f32>(subgroupShuffle(weights[t], begin));
            even[t] = fma(w, evens, even[t]);
            odd[t] = fma(w, odds, odd[t]);
        }
    }
}

fn max_of_lanes(lane: Lane, v: f32) -> f32 {
    var most = max(v, subgroupShuffle(v, lane.in_subgroup ^ 4u));
    most = max(most, subgroupShuffle(most, lane.in_subgroup ^ 2u));
    return max(most, subgroupShuffle(most, lane.in_subgroup ^ 1u));
}

fn sum_of_lanes(lane: Lane, v: f32) -> f32 {
    var sum = v + subgroupShuffle(v, lane.in_subgroup ^ 4u);
    sum += subgroupShuffle(sum, lane.in_subgroup ^ 2u);
    return sum + subgroupShuffle(sum, lane.in_subgroup ^ 1u);
}

@compute @workgroup_size(32)
fn main(lane: Lane, @builtin(workgroup_id) group: vec3<u32>) {
    let slices = (params.d + SLICE - 1u) / SLICE;
    let kv = group.x / slices;
    let mine = lane.id % LANES;
    let column = group.x % slices * SLICE + 2u * mine;
    let queries = n_queries();
    let block = (group.y * 4u + lane.id / LANES) * QUERIES;
    let end = min(block + QUERIES, queries);
    let base = lane.in_subgroup & ~7u;

    var q_at: array<u32, QUERIES>;
    var top: array<f32, QUERIES>;
    var total: array<f32, QUERIES>; // of this lane's keys
    for (var t = 0u; t < QUERIES; t++) {
        q_at[t] = queried_at(min(block + t, queries - 1u), kv) + (mine & 3u);
        top[t] = LEAST;
        total[t] = 0.0;
        even[t] = vec4<f32>();
        odd[t] = vec4<f32>();
    }
    var begin = block;
    while begin < end {
        let run = run_from(begin, end);
        var n: array<u32, QUERIES>;
        for (var t = 0u; t < QUERIES; t++) { n[t] = keys_in(block + t, begin, run.end); }
        let last = run.first + max(run.keys, 1u) - 1u;
        for (var chunk = 0u; chunk < run.keys; chunk += 4u * LANES) {
            let key = run.first + chunk + mine;
            let k0 = key_at(min(key, last), kv);
            let k1 = key_at(min(key + 8u, last), kv);
            let k2 = key_at(min(key + 16u, last), kv);
            let k3 = key_at(min(key + 24u, last), kv);
            var scores: array<vec4<f32>, QUERIES>;
            for (var i = 0u; i < params.d; i += 4u) {
                var qs: array<f32, QUERIES>; // lane j of 4 holds element i + j
                for (var t = 0u; t < QUERIES; t++) { qs[t] = q[q_at[t] + i]; }
                for (var h = 0u; h < 2u; h++) {
                    let j = 2u * h;
                    let a = k_pair(k0 + i + j);
                    let b = k_pair(k1 + i + j);
                    let c = k_pair(k2 + i + j);
                    let d = k_pair(k3 + i + j);
                    let first = vec4<f32>(a.x, b.x, c.x, d.x);
                    let second = vec4<f32>(a.y, b.y, c.y, d.y);
                    for (var t = 0u; t < QUERIES; t++) {
                        scores[t] = fma(vec4<f32>(subgroupShuffle(qs[t], base + j)), first, scores[t]);
                        scores[t] = fma(vec4<f32>(subgroupShuffle(qs[t], base + j + 1u)), second, scores[t]);
                    }
                }
            }
            var w0: array<f32, QUERIES>;
            var w1: array<f32, QUERIES>;
            var w2: array<f32, QUERIES>;
            var w3: array<f32, QUERIES>;
            let places = vec4<u32>(chunk + mine) + vec4<u32>(0u, 8u, 16u, 24u);
            for (var t = 0u; t < QUERIES; t++) {
                let used = places < vec4<u32>(n[t]);
                let s = select(vec4<f32>(LEAST), scores[t] * params.scale, used);
                let new_top = max(top[t], max_of_lanes(lane, max(max(s.x, s.y), max(s.z, s.w))));
                let w = select(vec4<f32>(), exp(s - vec4<f32>(new_top)), used);
                let shrink = exp(top[t] - new_top);
                top[t] = new_top;
                total[t] = total[t] * shrink + w.x + w.y + w.z + w.w;
                even[t] *= shrink;
                odd[t] *= shrink;
                w0[t] = w.x;
                w1[t] = w.y;
                w2[t] = w.z;
                w3[t] = w.w;
            }
            let key0 = run.first + chunk;
            add_values(lane, w0, key0, last, kv, column);
            if chunk + 8u < run.keys { add_values(lane, w1, key0 + 8u, last, kv, column); }
            if chunk + 16u < run.keys { add_values(lane, w2, key0 + 16u, last, kv, column); }
            if chunk + 24u < run.keys { add_values(lane, w3, key0 + 24u, last, kv, column); }
        }
        begin = run.end;
    }
    for (var t = 0u; t < QUERIES; t++) {
        let sum = sum_of_lanes(lane, total[t]);
        if block + t < end {
            let out = output_at(block + t, kv);
            for (var c = 0u; c < 4u; c++) {
                let i = column + 16u * c;
                if i < params.d {
                    y[out + i] = even[t][c] / sum;
                    y[out + i + 1u] = odd[t][c] / sum;
                }
            }
        }
    }
}
